# SPDX-License-Identifier: Apache-2.0
"""From SFT rows to token-exact triplets and batches."""

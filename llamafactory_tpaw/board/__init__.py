# SPDX-License-Identifier: Apache-2.0
"""The part of self-play that is shown in and started from LlamaBoard."""

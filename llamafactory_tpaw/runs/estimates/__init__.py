# SPDX-License-Identifier: Apache-2.0
"""How much memory, disk and time an iteration will take, each figure with how it was estimated."""

# SPDX-License-Identifier: Apache-2.0
"""The `tpaw_*` keys of a run: what they are, what values they take, and how they are read."""

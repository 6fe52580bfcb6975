# SPDX-License-Identifier: Apache-2.0
"""Self-play in LlamaBoard's Train tab: an accordion for the `tpaw_*` keys, Start and Abort, and what came of a run."""

# SPDX-License-Identifier: Apache-2.0
"""Team-based self-play with dual adaptive weighting (TPAW) as a training stage of LlamaFactory."""

# Every interpreter of the environment imports this module at start-up: it must import nothing.
__version__ = "0.1.0"

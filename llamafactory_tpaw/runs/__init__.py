# SPDX-License-Identifier: Apache-2.0
"""Iterations of self-play: their plan, their start, their record, and the run files that describe them."""

# SPDX-License-Identifier: Apache-2.0
"""The team of past checkpoints: which they are, that they are the right ones, and their log-probs."""

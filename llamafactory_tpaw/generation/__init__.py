# SPDX-License-Identifier: Apache-2.0
"""Sampling one response for each prompt: engines, and the workflow that writes triplets."""

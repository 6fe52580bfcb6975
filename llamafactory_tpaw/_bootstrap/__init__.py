# SPDX-License-Identifier: Apache-2.0
"""Holds the `sitecustomize` of child processes; the folder itself goes on their path."""

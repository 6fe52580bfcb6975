# SPDX-License-Identifier: Apache-2.0
"""What `llamafactory-tpaw doctor` finds out: packages, hook, seams, devices, and what is wrong with them."""

# SPDX-License-Identifier: Apache-2.0
"""Everything that touches LlamaFactory: its seams, its functions, and how its arguments are read."""

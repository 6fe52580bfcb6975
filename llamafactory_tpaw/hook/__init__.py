# SPDX-License-Identifier: Apache-2.0
"""What LlamaFactory calls of this package: the import hook's seams."""

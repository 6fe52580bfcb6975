# SPDX-License-Identifier: Apache-2.0
"""The ground floor: all that is called of LlamaFactory and of processes."""

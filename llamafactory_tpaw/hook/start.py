# SPDX-License-Identifier: Apache-2.0
"""Registers the import hook with the seams of this package.

Every interpreter of the environment runs this module at start-up, so it imports nothing but the hook.
"""

from .. import _hook


def install():
    """Let LlamaFactory be extended when it is imported; see `_hook.install`."""
    _hook.install(_extend)


def _extend(package):
    from .seams import callbacks

    return callbacks(package)

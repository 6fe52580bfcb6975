# SPDX-License-Identifier: Apache-2.0
"""Registers the import hook at the start-up of every interpreter, so that nothing but the hook is imported."""

from .. import _hook


def install():
    """Let LlamaFactory be extended when it is imported; see `_hook.install`."""
    _hook.install(_extend)


def _extend(package):
    from .seams import callbacks

    return callbacks(package)

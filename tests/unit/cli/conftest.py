# SPDX-License-Identifier: Apache-2.0
"""The stand-ins of the plugin's tests, for commands that start LlamaFactory."""

from tests.unit.plugin.conftest import calls


__all__ = ["calls"]

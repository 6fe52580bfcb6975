# SPDX-License-Identifier: Apache-2.0
"""The fakes of the hook's tests, for commands that start LlamaFactory."""

from tests.unit.hook.conftest import calls


__all__ = ["calls"]

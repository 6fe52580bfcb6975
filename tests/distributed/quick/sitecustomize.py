# SPDX-License-Identifier: Apache-2.0
"""Keeps DeepSpeed from compiling an operator for shared memory: it takes minutes, and training does not use it."""

import importlib.abc
import importlib.util
import sys


MODULE = "deepspeed.comm.torch"


class _WithoutOperator(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.build_shm_op = lambda: None

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _WithoutOperator())

# SPDX-License-Identifier: Apache-2.0
"""Registers the hook in child processes where no `.pth` file is processed; see `hook/bootstrap.py`."""

import os
import sys


def _install_hook():
    try:
        from llamafactory_tpaw.hook import start
    except ImportError:
        # Started from a checkout: the children do not have its folder on their path. Last, so that it shadows nothing.
        sys.path.append(os.path.dirname(os.path.dirname(_here)))
        from llamafactory_tpaw.hook import start

    start.install()


def _run_shadowed():
    """Run the sitecustomize that would have been found without this one."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) != _here])
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_here = os.path.dirname(os.path.abspath(__file__))
_install_hook()
_run_shadowed()

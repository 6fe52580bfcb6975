# SPDX-License-Identifier: Apache-2.0
"""The import hook that the `.pth` file registers: it wakes up only when `llamafactory` is imported.

Every interpreter of the environment runs this module at start-up, so it imports nothing that is not loaded already.
"""

import os
import sys


SWITCH = "LLAMAFACTORY_TPAW"
PACKAGE = "llamafactory"


class Finder:
    """Meta path finder that lets the other finders find, and runs callbacks around the watched modules' bodies."""

    llamafactory_tpaw = True  # known by this even after a reload of this module

    def __init__(self, extend):
        # Module name -> called with the module after its body ran. The package's entry is filled on its import.
        self.watched = {PACKAGE: None}
        self.extend = extend
        self.failure = None

    def find_spec(self, name, path=None, target=None):
        """Answer for watched modules with the real spec and a loader that calls back; else None."""
        if name not in self.watched:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = Loader(self, spec.loader)
                return spec
        return None

    def before(self, module):
        """Ask what to extend when the package itself is about to run; a failure must not harm LlamaFactory."""
        if module.__name__ != PACKAGE:
            return
        try:
            self.watched.update(self.extend(module))
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"

    def after(self, module):
        """Call what waits for this module."""
        callback = self.watched[module.__name__]
        if callback is not None:
            callback(module)


class Loader:
    """Stands in for a module's loader until its body runs."""

    def __init__(self, finder, real):
        self.finder = finder
        self.real = real

    def __getattr__(self, name):
        return getattr(self.real, name)

    def create_module(self, spec):
        """Create the module as its own loader does."""
        return self.real.create_module(spec)

    def exec_module(self, module):
        """Put the real loader back, so that inspect, reload and pickle see nothing unusual, and run the body."""
        module.__spec__.loader = module.__loader__ = self.real
        self.finder.before(module)
        self.real.exec_module(module)
        self.finder.after(module)


def active_finder():
    """Return the registered finder or None."""
    return next((finder for finder in sys.meta_path if getattr(finder, "llamafactory_tpaw", False)), None)


def install(extend):
    """Register the hook, once. Does nothing where it is switched off or where LlamaFactory is imported already.

    `extend` is called with the module `llamafactory` before its body runs, and returns the names of modules with what
    is called with each of them after its body ran.
    """
    if os.environ.get(SWITCH) != "0" and PACKAGE not in sys.modules and active_finder() is None:
        sys.meta_path.insert(0, Finder(extend))


def inactive_reason():
    """Return why stage `tpaw` is not there, with the way out, or None where the hook is in order."""
    finder = active_finder()
    if finder is not None:
        return finder.failure and f"llamafactory-tpaw could not load its hook ({finder.failure}). Install it again."
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 switches stage `tpaw` off. Unset the variable."
    if PACKAGE in sys.modules:
        return (
            "`llamafactory` was imported before llamafactory-tpaw's hook was registered. "
            "Call `llamafactory_tpaw.hook.start.install()` before the first import of llamafactory."
        )
    return "llamafactory-tpaw's hook is not registered. Start with `llamafactory-tpaw train` instead."

"""Python imports this at the start of every process that has its folder on PYTHONPATH: the driver
under test and, because they inherit its environment, Ray's processes. It waits for modules of ours
and hands each to `chaos_patches` once it is imported. It does nothing without CHAOS_FOLDER.
"""

import importlib.abc
import importlib.machinery
import os
import sys

_OURS = ("orchestrator.", "trainers.", "dashboards.")


class _Loader(importlib.abc.Loader):
    """A module's own loader; afterwards the module is patched."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        import chaos_patches

        chaos_patches.patch(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if not name.startswith(_OURS):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if os.environ.get("CHAOS_FOLDER"):
    sys.meta_path.insert(0, _Finder())

"""The modules behind `python -m NAME`."""

import importlib
from importlib.util import find_spec
from types import ModuleType


def program_of(name: str) -> ModuleType:
    """The module that `python -m NAME` runs: a package's `__main__`, or the module itself."""
    spec = find_spec(name)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return importlib.import_module(f"{name}.__main__" if is_package else name)

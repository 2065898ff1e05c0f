"""Every method, one file each: a file dropped into this folder is found, and needs no other change."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from posthoc_lt.methods.method import Method


def _defined_in(module: ModuleType) -> list[type[Method]]:
    own = (item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__)
    return [item for item in own if issubclass(item, Method) and item is not Method]


def _discover() -> dict[str, type[Method]]:
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    methods = [method for module in modules for method in _defined_in(module)]
    return {method.name: method for method in sorted(methods, key=lambda m: (not m.control, m.name))}


METHODS: dict[str, type[Method]] = _discover()
"""Methods by name, in the order of every table: the controls first, then by name."""

DEFAULT_METHODS = tuple(name for name, method in METHODS.items() if method.default)
"""The names of those fitted where none is named."""

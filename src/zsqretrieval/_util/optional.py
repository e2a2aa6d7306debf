"""Packages that only some features need."""

from __future__ import annotations

import importlib
from typing import Any

from zsqretrieval.errors import MissingDependencyError


def import_optional(module: str, needed_for: str, install: str, *, package: str | None = None) -> Any:
    """Import a module, untyped; a MissingDependencyError without it or a package that it needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(package or error.name or module, needed_for, install) from error

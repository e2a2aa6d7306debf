"""Public names are those without an underscore; packages that re-export list theirs in ``__all__``."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import zsqretrieval
from zsqretrieval import errors

MODULES = [
    info.name for info in pkgutil.walk_packages([str(Path(zsqretrieval.__file__).parent)], "zsqretrieval.")
]


FRAMEWORKS = {  # that adapters import
    "haystack": ["haystack"],
    "langchain": ["langchain_core"],
    "llama_index": ["llama_index.core"],
    "mteb": ["datasets", "mteb"],
}


@pytest.mark.parametrize("module", ["zsqretrieval", *MODULES])
def test_every_module_imports_and_its_exports_exist(module: str) -> None:
    if module.startswith("zsqretrieval.integrations."):
        for package in FRAMEWORKS.get(module.rpartition(".")[2], ()):
            pytest.importorskip(package)
    loaded = importlib.import_module(module)
    exported = list(getattr(loaded, "__all__", ()))
    assert len(exported) == len(set(exported))
    assert [name for name in exported if not hasattr(loaded, name)] == []


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Retreiver'"):
        zsqretrieval.Retreiver  # noqa: B018
    assert set(dir(zsqretrieval)) == set(zsqretrieval.__all__)


def test_the_tree_in_the_docstring_is_the_tree_of_errors() -> None:
    drawn: dict[str, tuple[str | None, str | None]] = {}
    above: list[tuple[int, str]] = []  # indent and name of every ancestor of the line
    for line in errors.__doc__.splitlines():
        match = re.match(r"^([ │├└─]+)([A-Z]\w+Error)\b(?:\s+\(also (\w+)\))?", line)
        if match is None:
            continue
        indent, name, builtin = len(match[1]), match[2], match[3]
        while above and above[-1][0] >= indent:
            above.pop()
        drawn[name] = (above[-1][1] if above else None, builtin)
        above.append((indent, name))

    def family(error: type) -> Iterator[type]:
        yield error
        for child in error.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from family(child)

    real = {}
    for error in family(errors.ZsqError):
        parents = [base.__name__ for base in error.__bases__ if issubclass(base, errors.ZsqError)]
        builtins = [base.__name__ for base in error.__bases__ if base.__module__ == "builtins"]
        real[error.__name__] = (
            parents[0] if parents else None,
            builtins[0] if parents and builtins else None,
        )
    assert drawn == real
    assert set(drawn) == {name for name in vars(errors) if name.endswith("Error")}

"""``__all__`` is the public face: it says what a module defines, and every name in it is there."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import zsqretrieval
from zsqretrieval import errors

ROOT = Path(zsqretrieval.__file__).parent


def public_modules() -> list[str]:
    names = [info.name for info in pkgutil.walk_packages([str(ROOT)], "zsqretrieval.")]
    return ["zsqretrieval", *(name for name in names if not any(p.startswith("_") for p in name.split(".")))]


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run on import, those inside ``if`` and ``try`` included."""
    for statement in body:
        yield statement
        for field in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try | ast.With):
                yield from statements(getattr(statement, field, []))


def source_of(module: str) -> list[ast.stmt]:
    base = ROOT.joinpath(*module.split(".")[1:])
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return list(statements(ast.parse(path.read_text(encoding="utf-8")).body))


def offered(module: str) -> set[str]:
    """The functions and classes a module makes for others.

    Not those with an underscore, and not those it hands to a private decorator, which lists them elsewhere.
    """
    return {
        statement.name
        for statement in source_of(module)
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not statement.name.startswith("_")
        and not any(ast.unparse(decorator).startswith("_") for decorator in statement.decorator_list)
    }


def bound(module: str) -> set[str]:
    """Every name that a module's top level binds, lazily imported ones included."""
    names: set[str] = set()
    for statement in source_of(module):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in statement.names}
    return names


@pytest.mark.parametrize("module", public_modules())
def test_all_is_what_the_module_offers(module: str) -> None:
    face = list(getattr(importlib.import_module(module), "__all__", ()))
    assert len(face) == len(set(face)), "a name stands there twice"
    assert not {name for name in face if name.startswith("_")} - {"__version__"}
    # A constant may be public without being offered; a function or class may not.
    assert offered(module) <= set(face) <= bound(module)


@pytest.mark.parametrize("module", public_modules())
def test_every_name_resolves(module: str) -> None:
    loaded = importlib.import_module(module)
    assert [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)] == []


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
    assert set(drawn) == set(errors.__all__)

"""Sphinx roles in docstrings, as links of mkdocs-autorefs."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(?:([^`<]*?) <)?~?([^`>]+)>?`")

PRIVATE = re.compile(r"\._")


class Roles(griffe.Extension):
    """Turn ``:class:`~a.b.Name``` into a link, once all of the package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package."""
        self._rewrite(pkg)

    def _rewrite(self, owner: griffe.Object) -> None:
        if owner.docstring:
            owner.docstring.value = ROLE.sub(lambda role: link(role, owner), owner.docstring.value)
        for member in owner.members.values():
            if not member.is_alias:
                self._rewrite(member)


def link(role: re.Match[str], owner: griffe.Object) -> str:
    """The Markdown of a role: a link, or code if the target is not public."""
    title, target = role[1], role[2].rstrip("()")
    text = title or (target.rpartition(".")[2] if "~" in role[0] else target)
    found = _resolved(target, owner)
    return f"[`{text}`][{found}]" if found else f"`{text}`"


def _resolved(target: str, owner: griffe.Object | None) -> str | None:
    """The path of a public name as its docstring says it: whole, of the class, or of the module."""
    if target.startswith("zsqretrieval"):
        return None if PRIVATE.search(target) else target
    first, *rest = target.split(".")
    while owner is not None:
        if first in owner.members:
            found = owner.members[first]
            path = found.target_path if found.is_alias else found.path
            path = ".".join([path, *rest])
            return path if path.startswith("zsqretrieval.") and not PRIVATE.search(path) else None
        owner = owner.parent
    return None

"""Names to parts: every encoder, index and generator that an installed package offers.

A package offers a part by an entry point in the group ``zsqretrieval.encoders``, ``zsqretrieval.indexes`` or
``zsqretrieval.generators``; nothing is imported until a part is loaded by name.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias

from zsqretrieval.errors import InvalidInputError, ZsqError

__all__ = ["Kind", "available", "create", "load", "name_of"]

Kind: TypeAlias = Literal["encoder", "index", "generator"]
"""What a part is."""

_GROUPS = {
    "encoder": "zsqretrieval.encoders",
    "index": "zsqretrieval.indexes",
    "generator": "zsqretrieval.generators",
}


def available(kind: Kind) -> dict[str, EntryPoint]:
    """List the parts of one kind, without importing them.

    Args:
        kind: ``"encoder"``, ``"index"`` or ``"generator"``.

    Returns:
        Their entry points by name, sorted. A name that two packages claim is listed once;
        :func:`load` refuses it.

    Raises:
        InvalidInputError: there is no such kind.
    """
    return {name: claims[0] for name, claims in _claims(kind).items()}


def load(kind: Kind, name: str) -> type[Any]:
    """Import the class of a part.

    Args:
        kind: ``"encoder"``, ``"index"`` or ``"generator"``.
        name: its name.

    Returns:
        The class.

    Raises:
        InvalidInputError: no package offers the name; says which names there are.
        ZsqError: two packages claim the name, or the package that offers it cannot be imported or does not
            hold a class there; names the packages.
    """
    claims = _claims(kind)
    if name not in claims:
        close = difflib.get_close_matches(name, claims)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise InvalidInputError(
            f"no {kind} is named {name!r}; {hint}Installed: {', '.join(claims) or 'none'}"
        )
    first, *others = claims[name]
    if others:
        packages = " and ".join(_package(claim) for claim in claims[name])
        raise ZsqError(f"the {kind} {name!r} is claimed by {packages}: uninstall all but one of them")
    try:
        part = first.load()
    except Exception as error:  # importing runs foreign code, which may raise anything
        raise ZsqError(
            f"the {kind} {name!r} of {_package(first)} cannot be imported from {first.value}: "
            f"{type(error).__name__}: {error}. Install what it needs, or reinstall or uninstall it"
        ) from error
    if not isinstance(part, type):
        raise ZsqError(
            f"the {kind} {name!r} of {_package(first)} is not a class: {first.value} is {part!r}; "
            "its entry point has to name a class"
        )
    return part


def create(kind: Kind, name: str, config: Mapping[str, Any]) -> Any:
    """Rebuild a part from its settings.

    Args:
        kind: ``"encoder"``, ``"index"`` or ``"generator"``.
        name: its name.
        config: what its ``config`` was; see :class:`zsqretrieval.protocols.Configurable`.

    Returns:
        The part.

    Raises:
        InvalidInputError: no package offers the name, or the part cannot be rebuilt from settings.
        ZsqError: as :func:`load`.
        Exception: whatever the part raises.
    """
    part = load(kind, name)
    if not hasattr(part, "from_config"):
        raise InvalidInputError(
            f"the {kind} {name!r} has no from_config, so it cannot be rebuilt by name; construct a "
            f"{part.__qualname__} and pass that"
        )
    return part.from_config(config)


def name_of(kind: Kind, part: object) -> str | None:
    """Find the name under which a part's class is offered.

    Args:
        kind: ``"encoder"``, ``"index"`` or ``"generator"``.
        part: the object.

    Returns:
        A name for which :func:`load` gives the class of ``part`` itself; None when there is none.

    Raises:
        InvalidInputError: there is no such kind.
    """
    for name, claims in _claims(kind).items():
        if len(claims) == 1 and _imported(claims[0]) is type(part):
            return name
    return None


def _claims(kind: str) -> dict[str, list[EntryPoint]]:
    """Who offers which name. Entry points that name the same class make one claim."""
    if kind not in _GROUPS:
        raise InvalidInputError(f"there is no kind of part {kind!r}; there are {', '.join(_GROUPS)}")
    claims: dict[str, dict[str, EntryPoint]] = {}
    for point in sorted(entry_points(group=_GROUPS[kind]), key=lambda point: (point.name, _package(point))):
        claims.setdefault(point.name, {}).setdefault(point.value, point)
    return {name: list(points.values()) for name, points in claims.items()}


def _package(point: EntryPoint) -> str:
    dist = point.dist
    return f"{dist.name} {dist.version}" if dist else "an unknown package"


def _imported(point: EntryPoint) -> object:
    """What the entry point names, if its module has been imported; the class of an object always has."""
    found: object = sys.modules.get(point.module)
    for attribute in point.attr.split("."):
        found = getattr(found, attribute, None)
    return found

"""Plugins: encoders, indexes, generators and fusions by name, and parts restored from their description.

A package offers a part by an entry point in the group ``zsqretrieval.encoders``, ``zsqretrieval.indexes``,
``zsqretrieval.generators`` or ``zsqretrieval.fusions``, a running program by :func:`register`. A part without
a name is described by where its class is imported from, ``module:Class``. Nothing is imported before a part
is loaded by name.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias, cast

from zsqretrieval._util.checks import check_text
from zsqretrieval.errors import AlbumError, InvalidInputError, MismatchError, ZsqError
from zsqretrieval.protocols import Configurable, Encoder, Index

Kind: TypeAlias = Literal["encoder", "index", "generator", "fusion"]

_GROUPS: Mapping[str, str] = {
    "encoder": "zsqretrieval.encoders",
    "index": "zsqretrieval.indexes",
    "generator": "zsqretrieval.generators",
    "fusion": "zsqretrieval.fusions",
}

_MEMBERS: Mapping[Kind, tuple[str, ...]] = {
    "encoder": ("dim", "fingerprint", "encode_image", "encode_text"),
    "index": ("dim", "fingerprint", "__len__", "search"),
    "generator": ("fingerprint", "log_likelihood"),
    "fusion": ("fuse",),
}

_registered: dict[str, dict[str, type[Any]]] = {kind: {} for kind in _GROUPS}
_PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")  # module:Class


# --- classes by name --------------------------------------------------------------------------------------


def register(kind: Kind, name: str, part: type[Any]) -> None:
    """Make a class a plugin in this program, as if an installed package offered it.

    The same class, or one that was defined again in the same place (as in a notebook), may be registered
    again.

    Args:
        kind: ``"encoder"``, ``"index"``, ``"generator"`` or ``"fusion"``.
        name: plugin name, without a colon.
        part: the class; with ``config`` and ``from_config``
            (:class:`~zsqretrieval.protocols.Configurable`), albums restore it by this name.

    Raises:
        InvalidInputError: the name is taken, or the class lacks methods of its kind.
    """
    taken = _claims(kind).get(name)
    check_text(name, "the name of a plugin")
    if ":" in name:
        raise InvalidInputError(f"the name of a plugin has no colon: {name!r}")
    if not isinstance(part, type) or (missing := _missing(kind, part)):
        lacks = f": it has no {', '.join(missing)}" if isinstance(part, type) else "; pass the class itself"
        raise InvalidInputError(f"{part!r} is no class of {kind}s{lacks}")
    before = _registered[kind].get(name)
    again = before is not None and _place(before) == _place(part)
    if taken and not again:
        owner = _place(before) if before is not None else _package(taken[0])
        raise InvalidInputError(f"the {kind} {name!r} is taken by {owner}; choose another name")
    _registered[kind][name] = part


def _missing(kind: Kind, part: type) -> list[str]:
    """Methods of a kind that a class lacks; what is not a method may be set when an object is made."""
    return [name for name in _MEMBERS[kind] if name not in ("dim", "fingerprint") and not hasattr(part, name)]


def _place(part: type) -> str:
    return f"{part.__module__}:{part.__qualname__}"


def available(kind: Kind) -> dict[str, EntryPoint]:
    """List the plugins of a kind by name, without importing them.

    A name that two packages claim is listed once; :func:`load` refuses it.
    """
    return {name: claims[0] for name, claims in _claims(kind).items()}


def load(kind: Kind, name: str) -> type[Any]:
    """Import the class of a plugin, or of an import path ``module:Class``.

    Raises:
        InvalidInputError: no package offers the name; lists the installed ones. Or an import path leads to
            something else than a class of this kind.
        ZsqError: two packages claim the name, the package cannot be imported, or the entry point is not a
            class; names the packages.
    """
    claims = _claims(kind)
    if name in _registered[kind]:
        return _registered[kind][name]
    if name not in claims and _PATH.fullmatch(name):
        claims[name] = [EntryPoint(name, name, _GROUPS[kind])]
    if name not in claims:
        close = difflib.get_close_matches(name, claims)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise InvalidInputError(
            f"no {kind} is named {name!r}; {hint}Installed: {', '.join(claims) or 'none'}"
        )
    first, *others = claims[name]
    if others:
        packages = " and ".join(sorted(map(_package, claims[name])))
        raise ZsqError(f"the {kind} {name!r} is claimed by {packages}: uninstall all but one of them")
    try:
        part = first.load()
    except Exception as error:  # importing runs foreign code, which may raise anything
        raise ZsqError(
            f"the {kind} {name!r} of {_package(first)} cannot be imported from {first.value}: "
            f"{type(error).__name__}: {error}. Install its dependencies, reinstall it, or uninstall it"
        ) from error
    if not isinstance(part, type):
        raise ZsqError(
            f"the {kind} {name!r} of {_package(first)} is not a class: {first.value} is {part!r}; "
            "the entry point must name a class"
        )
    if ":" in name and (missing := _missing(kind, part)):
        raise InvalidInputError(f"{name} is no class of {kind}s: it has no {', '.join(missing)}")
    return part


def name_of(kind: Kind, part: object) -> str | None:
    """Find the plugin name of a part's class; None when no package offers it."""
    for name, claims in _claims(kind).items():
        if len(claims) == 1 and (_registered[kind].get(name) or _imported(claims[0])) is type(part):
            return name
    return None


def _claims(kind: str) -> dict[str, list[EntryPoint]]:
    """Entry points by name; those that name the same class count once."""
    if kind not in _GROUPS:
        raise InvalidInputError(f"there is no kind of part {kind!r}; choose from {', '.join(_GROUPS)}")
    claims: dict[str, dict[str, EntryPoint]] = {}
    for point in sorted(_installed(_GROUPS[kind]), key=lambda point: point.name):
        claims.setdefault(point.name, {}).setdefault(point.value, point)
    for name, part in _registered[kind].items():
        claims[name] = {_place(part): EntryPoint(name, _place(part), _GROUPS[kind])}
    return {name: list(points.values()) for name, points in claims.items()}


def _installed(group: str) -> Sequence[EntryPoint]:
    """Entry points of installed packages; read again when a folder of ``sys.path`` has changed."""
    return _read(group, tuple((folder, _changed(folder)) for folder in sys.path))


@lru_cache(maxsize=len(_GROUPS))
def _read(group: str, _: object) -> Sequence[EntryPoint]:
    return tuple(entry_points(group=group))


def _changed(folder: str) -> tuple[int, int] | None:
    """Inode and time of change of a folder: both stay as long as no package is added to it or removed."""
    try:
        found = Path(folder).stat()
    except (OSError, TypeError, ValueError):  # nothing is imported from there
        return None
    return found.st_ino, found.st_mtime_ns


def _package(point: EntryPoint) -> str:
    dist = point.dist
    return f"{dist.name} {dist.version}" if dist else "an unknown package"


def _imported(point: EntryPoint) -> object:
    """The object of an entry point if its module has been imported, as it has for an existing part."""
    found: object = sys.modules.get(point.module)
    for attribute in point.attr.split("."):
        found = getattr(found, attribute, None)
    return found


# --- parts and their descriptions -------------------------------------------------------------------------


def create(kind: Kind, name: str, config: Mapping[str, Any]) -> Any:
    """Build a part from its plugin name and settings.

    Args:
        kind: kind of part.
        name: plugin name.
        config: settings; see :class:`zsqretrieval.protocols.Configurable`. A dataclass takes its fields.

    Raises:
        InvalidInputError: no package offers the name, or the class cannot be built from settings.
        ZsqError: as :func:`load`.
        Exception: whatever the part raises.
    """
    part = load(kind, name)
    if hasattr(part, "from_config"):
        return part.from_config(config)
    if is_dataclass(part):
        return part(**config)
    raise InvalidInputError(
        f"the {kind} {name!r} has no from_config, so it cannot be built by name; construct a "
        f"{part.__qualname__} and pass that"
    )


def describe(kind: Kind, part: object) -> dict[str, Any] | None:
    """Describe a part as JSON that :func:`restore` takes; None when it has no settings or no name.

    A part whose class no package offers is named by its import path. Classes of ``__main__`` and of functions
    have none.
    """
    name = name_of(kind, part)
    path = _place(type(part))
    if name is None and (path.startswith("__main__:") or _at(path) is not type(part)):
        return None
    # From Python 3.12 on, isinstance does not see that a property raises.
    if isinstance(part, Configurable) and hasattr(part, "config"):
        config = dict(part.config)
    elif is_dataclass(part) and not isinstance(part, type):
        config = asdict(part)
    else:
        return None
    if name is None:
        try:
            json.dumps(config, allow_nan=False)
        except (TypeError, ValueError):  # not meant for an album
            return None
    return {"plugin": name or path, "config": config}


def _at(path: str) -> type[Any] | None:
    """The imported class of an import path, or None; runs no code, such as a module's ``__getattr__``."""
    module, _, names = path.partition(":")
    found: object = sys.modules.get(module)
    for name in names.split("."):
        found = vars(found).get(name) if isinstance(found, ModuleType | type) else None
    return found if isinstance(found, type) else None


def restore(kind: Kind, description: Mapping[str, Any] | None, album: object) -> Any:
    """Rebuild a part of an album from its description.

    Whoever made the album wrote the description: ask :func:`names_nothing` or the user first.

    Raises:
        AlbumError: there is no description, because the part was not a plugin; or its settings are wrong.
        ZsqError: as :func:`create`.
    """
    if description is None:
        raise AlbumError(
            f"{album} was made with an {kind} that is not a plugin, so it cannot be restored by name; "
            f"pass it: Retriever.open(path, {kind}=...)"
        )
    try:
        return create(kind, description["plugin"], description["config"])
    except (ZsqError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever settings of another type make of the part's own code
        raise AlbumError(
            f"{album} names the {kind} {description['plugin']!r} with the settings {description['config']}, "
            f"from which it cannot be built ({type(error).__name__}: {error}); pass it: "
            f"Retriever.open(path, {kind}=...)"
        ) from error


def names_nothing(kind: Kind, description: Mapping[str, Any]) -> bool:
    """Whether a part can be built without loading anything that its settings name.

    True if there are no settings, or if the class declares each of them harmless: its ``safe_settings`` maps
    the name of a setting to the values that may come from anybody, which cannot name a file, a repository or
    code, nor ask for more memory than the computer has. They are a value, a type, a ``range`` of integers, or
    a tuple of these. An import path is followed only to a class that this program has imported, and that is
    of the kind and has ``safe_settings``; nothing is imported.

    Args:
        kind: kind of part.
        description: as :func:`describe` makes it. A plugin that is not installed cannot load anything.
    """
    name, config = description["plugin"], description["config"]
    if name not in available(kind):
        part = _at(name)
        if part is None or _missing(kind, part) or not hasattr(part, "safe_settings"):
            return not _PATH.fullmatch(name)
    elif not config:
        return True
    else:
        part = load(kind, name)
    safe = getattr(part, "safe_settings", {})
    return all(setting in safe and _is_among(value, safe[setting]) for setting, value in config.items())


def _is_among(value: object, values: Any) -> bool:
    if isinstance(values, type):
        return type(value) is values
    if isinstance(values, range):
        return type(value) is int and value in values
    if isinstance(values, tuple):
        return any(_is_among(value, one) for one in values)
    return type(value) is type(values) and value == values


def check_part(kind: Kind, part: object) -> None:
    """Check that an object is an instance with the members of its protocol; an InvalidInputError if not."""
    if isinstance(part, type):
        raise InvalidInputError(f"the {kind} is the class {part.__name__}; pass an instance")
    if isinstance(part, str):
        raise InvalidInputError(
            f"the {kind} is the string {part!r}; pass an object, or use a preset: Retriever.from_preset(...)"
        )
    # Look at the class first: reading a property may start work.
    missing = [name for name in _MEMBERS[kind] if not (hasattr(type(part), name) or hasattr(part, name))]
    if missing:
        article = "an" if kind[0] in "ei" else "a"
        raise InvalidInputError(f"{part!r} is not {article} {kind}: it has no {', '.join(missing)}")


def check_empty_index(encoder: Encoder, index: Index) -> None:
    """Check that an index is empty and fits an encoder.

    Raises:
        MismatchError: dim or fingerprint differ.
        InvalidInputError: either is not of its kind, or the index holds vectors.
    """
    check_part("encoder", encoder)
    check_part("index", index)
    if index.dim != encoder.dim:
        raise MismatchError(
            f"the index has dim {index.dim}, the encoder {encoder.dim}; make an index of dim {encoder.dim}"
        )
    if index.fingerprint and index.fingerprint != encoder.fingerprint:
        raise MismatchError(
            f"the index was made for encoder {index.fingerprint!r}, but this encoder is "
            f"{encoder.fingerprint!r}; make an index for this one"
        )
    if len(index):
        raise InvalidInputError(f"the index holds {len(index)} vectors already; pass an empty one")


def new_index(name: str, encoder: Encoder) -> Index:
    """Make an empty index for an encoder, with the plugin's default settings."""
    return cast(Index, load("index", name)(encoder.dim, fingerprint=encoder.fingerprint))


def empty_like(index: Index) -> Index:
    """Make an empty index of the same class and settings; an AlbumError if there are no settings."""
    if not isinstance(index, Configurable):
        raise AlbumError(
            f"a change to the {type(index).__name__} was interrupted, and it has no config to make another "
            "from; open the album again with an empty one"
        )
    return cast(Index, type(index).from_config(index.config))

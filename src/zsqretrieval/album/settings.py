"""The parts and constants that a catalog names: its JSON, read at one door and with known types.

A catalog may be damaged or made by somebody else. Whoever uses a :class:`PartName` or a :class:`SavedIndex`
can rely on its types, but not on its values: a name may be unknown, a setting unfit for its part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, cast

from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.changes import Position
from zsqretrieval.errors import IntegrityError

SNAPSHOTS = {name: re.compile(rf"{name}-[0-9a-f]{{8}}") for name in ("index", "questions")}
"""Names of the folders of saved indexes."""


class PartName(TypedDict):
    """Description of a part: plugin name and settings."""

    plugin: str
    config: dict[str, Any]


class Described(Protocol):
    """What has settings: a catalog, or a collection of Milvus."""

    @property
    def where(self) -> str:
        """Its name in error messages."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it was made with."""
        ...

    def setting(self, name: str) -> Any:
        """What it was last saved with, else made with; None without."""
        ...


@dataclass(frozen=True, slots=True)
class AlbumSettings:
    """What an album was made with, or last saved with."""

    encoder: str  # fingerprint
    encoder_part: PartName | None  # None if it is not a plugin
    index: PartName | None  # of a new index; the saved one may have another
    generator: PartName | None
    states: Literal["lazy", "disk"] | None  # when image features are cached
    calibration: Mapping[str, Any] | None  # parts and numbers by name

    @classmethod
    def read(cls, catalog: Described) -> AlbumSettings:
        """Read the settings of a catalog or collection.

        Raises:
            IntegrityError: they are missing or of another shape.
        """
        made = catalog.settings
        try:
            fingerprint = made["encoder"]
            _require(isinstance(fingerprint, str), "the fingerprint of its encoder is not a text")
            viewer = catalog.setting("generator") or {"part": None, "states": "lazy"}
            _require(isinstance(viewer, dict), "its generator is not described by an object")
            states = viewer["states"]
            _require(states in ("lazy", "disk", None), f"it caches features in {states!r}")
            return cls(
                encoder=fingerprint,
                encoder_part=_part(made["encoder_part"], "encoder"),
                index=_part(made["index"], "index"),
                generator=_part(viewer["part"], "generator"),
                states=states,
                calibration=_calibration(catalog.setting("calibration")),
            )
        except (KeyError, TypeError, ValueError) as error:
            fault = f"it has no setting {error}" if isinstance(error, KeyError) else str(error)
            raise IntegrityError(
                f"{catalog.where} is damaged or was made by another program: {fault}; restore a backup"
            ) from error


@dataclass(frozen=True, slots=True)
class SavedIndex:
    """The description of an index's snapshot. It can be lost: the index is then built from the catalog."""

    part: PartName
    folder: str  # name of the snapshot's folder
    position: Position  # that the snapshot stands at

    @classmethod
    def read(cls, catalog: Catalog, name: str) -> SavedIndex | None:
        """Read a description; None before the first save. ``name`` is ``"index"`` or ``"questions"``.

        Raises:
            IntegrityError: it is damaged, or of another shape.
        """
        saved = catalog.get_snapshot(name)
        if saved is None:
            return None
        try:
            part, folder, position = _part(saved["part"], "index"), saved["folder"], saved["position"]
            _require(part is not None, "its plugin is missing")
            _require(isinstance(folder, str), "its folder is not a text")
            _require(SNAPSHOTS[name].fullmatch(folder), f"its folder is {folder!r}")
            _require(all(type(one) is int and one >= 0 for one in position.values()), "its position is wrong")
            return cls(cast(PartName, part), folder, Position(**position))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(
                f"{catalog.where}: the description of the saved {name} is damaged ({error})"
            ) from error


def _part(value: Any, what: str) -> PartName | None:
    if value is None:
        return None
    _require(isinstance(value, dict) and set(value) == {"plugin", "config"}, f"its {what} has no plugin")
    _require(isinstance(value["plugin"], str), f"the plugin of its {what} is not a text")
    _require(isinstance(value["config"], dict), f"the settings of its {what} are not an object")
    return PartName(plugin=value["plugin"], config=value["config"])


def _calibration(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    _require(isinstance(value, dict), "its calibration is not an object")
    return {
        name: one if type(one) in (int, float) and abs(one) < 1e300 else _part(one, name)
        for name, one in value.items()
    }


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)

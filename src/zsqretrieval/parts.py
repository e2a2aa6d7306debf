"""The parts of an album: which go together, and how it remembers them, by plugin name and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from zsqretrieval import plugins
from zsqretrieval.errors import AlbumError, InvalidInputError, MismatchError
from zsqretrieval.protocols import Configurable, Encoder, Index

__all__ = [
    "PRESETS",
    "Preset",
    "check_parts",
    "describe",
    "empty_like",
    "new_index",
    "preset_encoder",
    "preset_parts",
    "restore",
]


@dataclass(frozen=True, slots=True)
class Preset:
    """Parts that go together.

    Attributes:
        encoder: plugin name.
        encoder_config: settings of the encoder; what is left out has the encoder's defaults.
        index: plugin name.
    """

    encoder: str
    encoder_config: Mapping[str, Any] = field(default_factory=dict)
    index: str = "hnsw"


PRESETS: Mapping[str, Preset] = {
    "mini": Preset("mini"),
    "clip": Preset("clip", {"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}),
}
"""The presets by name."""


def preset_encoder(name: str) -> Encoder:
    """Make the encoder of a preset.

    Raises:
        InvalidInputError: no such preset.
    """
    preset = _preset(name)
    return cast(Encoder, plugins.create("encoder", preset.encoder, preset.encoder_config))


def preset_parts(name: str, index: str | None = None) -> tuple[Encoder, Index]:
    """Make the parts of a preset.

    Args:
        name: a key of :data:`PRESETS`.
        index: plugin name of another index than the preset's.

    Raises:
        InvalidInputError: no such preset or index.
    """
    encoder = preset_encoder(name)
    return encoder, new_index(index or _preset(name).index, encoder)


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise InvalidInputError(f"there is no preset {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def new_index(name: str, encoder: Encoder) -> Index:
    """An empty index for an encoder's vectors, of the plugin's default settings."""
    return cast(Index, plugins.load("index", name)(encoder.dim, fingerprint=encoder.fingerprint))


def empty_like(index: Index) -> Index:
    """An empty index of the same kind and settings.

    Raises:
        AlbumError: its class cannot be made anew from settings.
    """
    if not isinstance(index, Configurable):
        raise AlbumError(
            f"a change to the {type(index).__name__} was interrupted, and it has no config to make another "
            "from; open the album again with an empty one"
        )
    return cast(Index, type(index).from_config(index.config))


def check_parts(encoder: Encoder, index: Index) -> None:
    """Refuse an index that cannot be filled with an encoder's vectors.

    Raises:
        MismatchError: dim or fingerprint differ.
        InvalidInputError: the index is not empty.
    """
    if index.dim != encoder.dim:
        raise MismatchError(f"the index has dim {index.dim}, the encoder {encoder.dim}; make them equal")
    if index.fingerprint and index.fingerprint != encoder.fingerprint:
        raise MismatchError(
            f"the index was made for encoder {index.fingerprint!r}, but the encoder here is "
            f"{encoder.fingerprint!r}; make an index for this one"
        )
    if len(index):
        raise InvalidInputError(f"the index holds {len(index)} vectors already; give an empty one")


def describe(kind: plugins.Kind, part: object) -> dict[str, Any] | None:
    """What :func:`restore` needs, JSON-serialisable; None when the part is not a plugin with settings."""
    name = plugins.name_of(kind, part)
    if name is None or not isinstance(part, Configurable):
        return None
    return {"plugin": name, "config": dict(part.config)}


def restore(kind: plugins.Kind, description: Mapping[str, Any] | None, album: Path) -> Any:
    """Make a part again from its description.

    Raises:
        AlbumError: there is none, because the part was not a plugin.
        InvalidInputError: no installed package offers the plugin.
    """
    if description is None:
        raise AlbumError(
            f"{album} was made with an {kind} that is not a plugin, so it cannot be restored by name; "
            f"give it: Retriever.load(path, {kind}=...)"
        )
    return plugins.create(kind, description["plugin"], description["config"])

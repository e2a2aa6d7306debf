"""What lies in an album's directory, told without loading a model or an index."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.features import segment_facts
from zsqretrieval.album.questions import StyleFacts
from zsqretrieval.errors import AlbumError

__all__ = [
    "CATALOG",
    "AlbumFacts",
    "EncoderFacts",
    "GeneratorFacts",
    "IndexFacts",
    "StatesFacts",
    "describe_album",
    "find_catalog",
]

CATALOG = "catalog.sqlite"
"""Name of the catalog's file in an album."""


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """The encoder an album was made with.

    Attributes:
        plugin: its plugin name; None when it is not a plugin.
        config: settings that rebuild it; None when it is not a plugin.
        dim: length of its vectors.
        fingerprint: what every vector of the album was made by.
    """

    plugin: str | None
    config: Mapping[str, Any] | None
    dim: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """The index of an album.

    Attributes:
        plugin: its plugin name; None when it is not a plugin.
        config: settings that rebuild it; None when it is not a plugin.
        saved: whether there is a snapshot of it.
        up_to_date: whether the snapshot holds exactly the images of the catalog.
    """

    plugin: str | None
    config: Mapping[str, Any] | None
    saved: bool
    up_to_date: bool


@dataclass(frozen=True, slots=True)
class GeneratorFacts:
    """The generator that reads an album's candidates.

    Attributes:
        plugin: its plugin name.
        config: settings that rebuild it; what is left out has the generator's defaults.
        states: where its image states are kept: ``"disk"``, ``"memory"`` or None.
    """

    plugin: str
    config: Mapping[str, Any]
    states: str | None


@dataclass(frozen=True, slots=True)
class StatesFacts:
    """The image states of one generator that lie in an album, the present generator or a former one.

    Attributes:
        fingerprint: of the generator that made them.
        dtype: of their numbers.
        images: of how many of the album's images there is a state.
        bytes_on_disk: size of all of them.
    """

    fingerprint: str
    dtype: str
    images: int
    bytes_on_disk: int


@dataclass(frozen=True, slots=True)
class AlbumFacts:
    """An album.

    Attributes:
        album: its directory.
        images: how many it holds.
        encoder: what made its vectors.
        index: what searches them.
        generator: what reads the candidates; None when there is none, or none that is a plugin.
        fusion: ``name`` and ``config`` of how the scores of encoder and generator are joined; None when it is
            not one of the library's own, or the album is older than this entry.
        states: the image states, one entry for every generator of which there are some.
        questions: what the images were asked, one entry for every style.
        bytes_on_disk: size of ``catalog``, ``index`` (of images and of questions) and ``states``.
    """

    album: str
    images: int
    encoder: EncoderFacts
    index: IndexFacts
    generator: GeneratorFacts | None
    fusion: Mapping[str, Any] | None
    states: tuple[StatesFacts, ...]
    questions: tuple[StyleFacts, ...]
    bytes_on_disk: Mapping[str, int]


def find_catalog(path: Path) -> Path:
    """The catalog's file of the album at ``path``.

    Raises:
        AlbumError: there is no album.
    """
    catalog = path / CATALOG
    if not os.path.isfile(catalog):  # noqa: PTH113  # Path.is_file raises at what is too long or not allowed
        raise AlbumError(
            f"{path} is not an album (it holds no {CATALOG}); make one with `zsq index`, or check the path"
        )
    return catalog


def describe_album(path: Path) -> AlbumFacts:
    """Read what the catalog says of an album.

    Raises:
        AlbumError: there is no album at ``path``.
        IntegrityError: its catalog is damaged.
    """
    with Catalog.open(find_catalog(path)) as catalog:
        snapshot = catalog.get_meta("index")  # None until the index is first saved
        snapshots = [one["folder"] for one in (snapshot, catalog.get_meta("questions")) if one]
        encoder = catalog.settings.get("encoder_part") or {}
        index = (snapshot["part"] if snapshot else catalog.settings.get("index")) or {}
        reader = catalog.get_meta("generator") or catalog.settings.get("generator") or {}
        part = reader.get("part")
        position = asdict(catalog.position)
        return AlbumFacts(
            album=str(path.absolute()),
            images=len(catalog),
            encoder=EncoderFacts(
                encoder.get("plugin"), encoder.get("config"), catalog.dim, catalog.settings["encoder"]
            ),
            index=IndexFacts(
                index.get("plugin"),
                index.get("config"),
                saved=snapshot is not None,
                up_to_date=snapshot is not None and snapshot["position"] == position,
            ),
            generator=None
            if part is None
            else GeneratorFacts(part["plugin"], part["config"], reader.get("states")),
            fusion=catalog.get_meta("fusion") or catalog.settings.get("fusion"),
            states=tuple(_describe_states(catalog, path)),
            questions=tuple(catalog.questions.styles()),
            bytes_on_disk={
                "catalog": _size(path.glob(f"{CATALOG}*")),
                "index": sum(_size((path / folder).rglob("*")) for folder in snapshots),
                "states": _size(path.glob("states-*/*")),
            },
        )


def _describe_states(catalog: Catalog, path: Path) -> Iterator[StatesFacts]:
    for folder in sorted(path.glob("states-*")):
        digests: set[str] = set()
        facts: Mapping[str, Any] = {}
        for segment in folder.glob("*.states"):
            with contextlib.suppress(OSError, ValueError, KeyError):  # damaged, or put together with others
                facts = segment_facts(segment)
                digests.update(digest for digest, _ in facts["rows"])
        if facts:
            images = len(catalog.known_digests(digests))
            yield StatesFacts(
                facts["fingerprint"], np.dtype(facts["dtype"]).name, images, _size(folder.iterdir())
            )


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())

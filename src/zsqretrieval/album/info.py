"""The content of an album's directory, read without loading a model or an index."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.features import read_facts
from zsqretrieval.errors import AlbumError

CATALOG = "catalog.sqlite"
"""File name of the catalog in an album."""


@dataclass(frozen=True, slots=True)
class AlbumInfo:
    """The content of an album; all values are JSON.

    Attributes:
        album: its directory.
        images: number of images.
        encoder: ``plugin`` and ``config`` (None if it is not a plugin), ``dim`` and ``fingerprint``.
        index: as ``encoder``; ``saved``: whether there is a snapshot, and ``up_to_date``: whether the
            snapshot holds exactly the images of the catalog.
        generator: ``plugin``, ``config``, and ``states``: ``"disk"``, ``"memory"`` or None; None without a
            generator, or if it is not a plugin.
        calibration: constants of the pair of models, as stored by the retriever; None if there are none.
        states: cached image features, one entry per generator: ``fingerprint``, ``dtype``, ``images``: number
            of the album's images with features, and ``bytes_on_disk``.
        questions: one entry per style, see :class:`~zsqretrieval.album.questions.StyleFacts`.
        bytes_on_disk: size of ``catalog``, ``index`` (of images and of questions) and ``states``.
    """

    album: str
    images: int
    encoder: Mapping[str, Any]
    index: Mapping[str, Any]
    generator: Mapping[str, Any] | None
    calibration: Mapping[str, Any] | None
    states: tuple[Mapping[str, Any], ...]
    questions: tuple[Mapping[str, Any], ...]
    bytes_on_disk: Mapping[str, int]


def find_catalog(path: Path) -> Path:
    """The catalog file of the album at ``path``; an AlbumError if there is none."""
    catalog = path / CATALOG
    if not os.path.isfile(catalog):  # noqa: PTH113  # Path.is_file raises on paths that are too long or forbidden
        raise AlbumError(
            f"{path} is not an album (it holds no {CATALOG}); make one with `zsq index`, or check the path"
        )
    return catalog


def describe_album(path: Path) -> AlbumInfo:
    """Read the content of an album.

    Raises:
        AlbumError: there is no album at ``path``.
        IntegrityError: its catalog is damaged.
    """
    with Catalog.open(find_catalog(path)) as catalog:
        settings = catalog.settings
        snapshot = catalog.get_meta("index")  # None until the first save
        snapshots = [one["folder"] for one in (snapshot, catalog.get_meta("questions")) if one]
        generator = catalog.setting("generator") or {}
        part = generator.get("part")
        encoder = settings.get("encoder_part") or _NO_PLUGIN
        index = (snapshot["part"] if snapshot else settings.get("index")) or _NO_PLUGIN
        up_to_date = snapshot is not None and snapshot["position"] == asdict(catalog.log.position)
        return AlbumInfo(
            album=str(path.absolute()),
            images=len(catalog),
            encoder={**encoder, "dim": catalog.dim, "fingerprint": settings["encoder"]},
            index={**index, "saved": snapshot is not None, "up_to_date": up_to_date},
            generator=None if part is None else {**part, "states": generator.get("states")},
            calibration=catalog.setting("calibration"),
            states=tuple(_describe_states(catalog, path)),
            questions=tuple(map(asdict, catalog.questions.styles())),
            bytes_on_disk={
                "catalog": _size(path.glob(f"{CATALOG}*")),
                "index": sum(_size((path / folder).rglob("*")) for folder in snapshots),
                "states": _size(path.glob("states-*/*")),
            },
        )


_NO_PLUGIN = {"plugin": None, "config": None}


def _describe_states(catalog: Catalog, path: Path) -> Iterator[Mapping[str, Any]]:
    for folder in sorted(path.glob("states-*")):
        digests: set[str] = set()
        facts: Mapping[str, Any] = {}
        for file in folder.glob("*.safetensors"):
            with contextlib.suppress(OSError, ValueError):  # damaged, or just merged by another process
                facts = read_facts(file)
                digests.update(facts["crc32"])
        if facts:
            yield {
                "fingerprint": facts["fingerprint"],
                "dtype": np.dtype(facts["dtype"]).name,
                "images": len(catalog.known_digests(digests)),
                "bytes_on_disk": _size(folder.iterdir()),
            }


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())

"""The content of an album's directory, read without loading a model or an index."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsqretrieval._util.untrusted import check_regular, check_tree, deletes_another_file
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.features import FOLDER, read_facts
from zsqretrieval.album.kept import IMAGES
from zsqretrieval.album.removal import LIST
from zsqretrieval.album.settings import SNAPSHOTS, AlbumSettings
from zsqretrieval.album.sync import saved_index
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
        generator: ``plugin``, ``config``, and ``states``: ``"lazy"``, ``"disk"`` or None; None without a
            generator, or if it is not a plugin.
        calibration: constants of the pair of models, as stored by the retriever; None if there are none.
        states: cached image features, one entry per generator: ``fingerprint``, ``dtype``, ``images``: number
            of the album's images with features, and ``bytes_on_disk``.
        fields: names of the fields that filters can use; ``indexed_fields``: those whose values are sorted.
        questions: one entry per style, see :class:`~zsqretrieval.album.questions.StyleFacts`.
        bytes_on_disk: size of ``catalog``, ``index`` (of images and of questions), ``states`` and ``images``
            (kept bytes of images).
    """

    album: str
    images: int
    encoder: Mapping[str, Any]
    index: Mapping[str, Any]
    generator: Mapping[str, Any] | None
    calibration: Mapping[str, Any] | None
    states: tuple[Mapping[str, Any], ...]
    questions: tuple[Mapping[str, Any], ...]
    fields: tuple[str, ...]
    indexed_fields: tuple[str, ...]
    bytes_on_disk: Mapping[str, int]


def find_catalog(path: Path) -> Path:
    """The catalog file of the album at ``path``.

    Raises:
        AlbumError: there is no album, or :func:`check_files` refuses it.
    """
    catalog = path / CATALOG
    if not os.path.isfile(catalog):  # noqa: PTH113  # Path.is_file raises on paths that are too long or forbidden
        raise AlbumError(
            f"{path} is not an album (it holds no {CATALOG}); make one with `zsq index` or "
            "Retriever.open(path, preset='mini'), or check the path"
        )
    check_files(path)
    return catalog


def check_files(album: Path) -> None:
    """Check that the files of an album are files.

    Somebody else may have made it: a link would lead reading and deleting elsewhere, a pipe or device would
    never end, and SQLite deletes the file that a journal names.

    Raises:
        AlbumError: they are not; names one.
    """
    try:
        for entry in album.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has just replaced it
                if entry.name.startswith(CATALOG):
                    check_regular(entry)
                elif any(one.fullmatch(entry.name) for one in _FOLDERS):
                    check_tree(entry)
        if deletes_another_file(album / f"{CATALOG}-journal"):
            raise ValueError(f"{CATALOG}-journal names another file, which opening it would delete")
    except ValueError as error:
        raise AlbumError(f"{album} is not opened: {error}; remove it if you trust the rest") from error
    except OSError as error:
        raise AlbumError(f"{album} cannot be read: {error.strerror or error}") from error


_FOLDERS = (*SNAPSHOTS.values(), FOLDER, re.compile(IMAGES), re.compile(LIST))


def describe_album(path: Path) -> AlbumInfo:
    """Read the content of an album.

    Raises:
        AlbumError: there is no album at ``path``.
        IntegrityError: its catalog is damaged.
    """
    with Catalog.open(find_catalog(path)) as catalog:
        settings = AlbumSettings.read(catalog)
        snapshot, *_ = saved = [saved_index(catalog, name) for name in ("index", "questions")]
        snapshots = [one.folder for one in saved if one is not None]
        part = settings.generator
        encoder = settings.encoder_part or _NO_PLUGIN
        index = (snapshot.part if snapshot else settings.index) or _NO_PLUGIN
        up_to_date = snapshot is not None and snapshot.position == catalog.log.position
        return AlbumInfo(
            album=str(path.absolute()),
            images=len(catalog),
            encoder={**encoder, "dim": catalog.dim, "fingerprint": settings.encoder},
            index={**index, "saved": snapshot is not None, "up_to_date": up_to_date},
            generator=None if part is None else {**part, "states": settings.states},
            calibration=settings.calibration,
            states=tuple(_describe_states(catalog, path)),
            questions=tuple(map(asdict, catalog.questions.styles())),
            fields=tuple(catalog.fields.names()),
            indexed_fields=tuple(catalog.fields.indexed()),
            bytes_on_disk={
                "catalog": _size(path.glob(f"{CATALOG}*")),
                "index": sum(_size((path / folder).rglob("*")) for folder in snapshots),
                "states": _size(path.glob("states-*/*")),
                "images": _size(path.glob(f"{IMAGES}/*")),
            },
        )


_NO_PLUGIN: Mapping[str, Any] = {"plugin": None, "config": None}


def _describe_states(catalog: Catalog, path: Path) -> Iterator[Mapping[str, Any]]:
    for folder in sorted(one for one in path.glob("states-*") if FOLDER.fullmatch(one.name)):
        digests: set[str] = set()
        facts: Mapping[str, Any] = {}
        for file in folder.glob("*.safetensors"):
            # damaged, or just merged by another process
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                read = read_facts(file)
                facts = {"fingerprint": str(read["fingerprint"]), "dtype": np.dtype(read["dtype"]).name}
                digests.update(read["crc32"])
        if facts:
            yield {
                **facts,
                "images": len(catalog.known_digests(digests)),
                "bytes_on_disk": _size(folder.iterdir()),
            }


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())

"""Taking over the images of another album, without encoding them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import batched, tell
from zsqretrieval.album.candidates import parts_by_size
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.features import take_states
from zsqretrieval.album.ingest import copy_of, counted, free_id
from zsqretrieval.album.questions import Asked
from zsqretrieval.album.removal import listed, removal_list
from zsqretrieval.album.settings import AlbumSettings
from zsqretrieval.data.loader import NewImage
from zsqretrieval.errors import MismatchError
from zsqretrieval.types import Progress


@dataclass(frozen=True, slots=True, repr=False)
class MergeReport:
    """Result of :meth:`Retriever.merge <zsqretrieval.retriever.Retriever.merge>`."""

    added: tuple[str, ...]  # ids of new images
    known: int  # images of the other album that were in this one
    kept: int  # images whose bytes were taken over
    questions: int  # new stored questions
    features: int  # images with cached features that were taken over
    seconds: float
    denied: int = 0  # images that are on the album's removal list

    __repr__ = counted


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some images of the other album, read in one snapshot."""

    records: list[Record]
    vectors: NDArray[np.float32]  # [n, dim]
    asked: list[Asked]
    kept: dict[str, bytes]  # by digest


def merge(
    ours: Catalog, theirs: Catalog, folders: tuple[Path | None, Path | None], progress: Progress | None
) -> MergeReport:
    """Add the images of another catalog, with what belongs to them; one transaction per batch.

    ``folders`` has the directories of both albums; None for one in memory, which takes and gives no features.

    Raises:
        MismatchError: the albums have different encoders; names both.
    """
    begin = time.perf_counter()
    encoders = [AlbumSettings.read(one) for one in (ours, theirs)]
    if encoders[0].encoder != encoders[1].encoder or ours.dim != theirs.dim:
        raise MismatchError(
            f"{theirs.where} was made with encoder {encoders[1].encoder!r} (dim {theirs.dim}), {ours.where} "
            f"with {encoders[0].encoder!r} (dim {ours.dim}): their vectors cannot be compared; use "
            "reencode on one of them first"
        )
    added: list[str] = []
    done = kept = questions = denied = 0
    removed = removal_list(folders[0])
    total = len(theirs)
    for batch in batched(theirs.iter_records(), 900):
        if removed is not None:
            hits = listed(removed, batch)
            batch = [one for one, hit in zip(batch, hits, strict=True) if not hit]
            denied += int(hits.sum())
        for some in parts_by_size(batch):
            part = _read(theirs, batch[some])
            here = _write(ours, part)
            added += here[0]
            kept, questions = kept + here[1], questions + here[2]
            done += len(batch[some])
            tell(progress, "merging", done + denied, total)
    features = 0
    if None not in folders:
        alike = encoders[0].generator == encoders[1].generator is not None
        features = take_states(*folders, every=alike)  # type: ignore[arg-type]  # no None
    return MergeReport(
        tuple(added), done - len(added), kept, questions, features, time.perf_counter() - begin, denied
    )


def _read(theirs: Catalog, records: Sequence[Record]) -> _Part:
    with theirs.reading():
        found, vectors = theirs.present([one.key for one in records])
        asked = theirs.questions.asked_of([one.key for one in found])
    kept: dict[str, bytes] = {}
    for one in found:
        if theirs.kept.intact(one.digest) and (content := theirs.kept.get(one.digest)) is not None:
            kept[one.digest] = content
    return _Part(found, vectors, asked, kept)


def _write(ours: Catalog, part: _Part) -> tuple[list[str], int, int]:
    """Ids of new images, and numbers of kept images and of questions."""
    keep = {digest: content for digest, content in part.kept.items() if not ours.kept.intact(digest)}
    with ours.transaction():
        known = ours.known_digests(one.digest for one in part.records)
        taken = {one.id for one in ours.namesakes(one.id for one in part.records)}
        new: list[NewImage] = []
        for record, vector in zip(part.records, part.vectors, strict=True):
            if record.digest not in known:
                image = copy_of(record, vector)
                image.id = free_id(record, taken)
                taken.add(image.id)
                new.append(image)
        ours.kept.put(keep)
        if new:
            ours.add(new)
        key_of = ours.known_digests(one.digest for one in part.records)
        ours_of = {one.key: key_of[one.digest] for one in part.records}
        questions = sum(
            ours.questions.write(recipe, {ours_of[key]: some for key, some in of.items()})[0]
            for recipe, of in part.asked
        )
    return [one.id for one in new], len(keep), questions

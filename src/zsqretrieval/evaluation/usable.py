"""The images of a data set that can be measured: those that can be encoded, each once.

What is left out is counted and named, in the notes of the data set, which every report shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.images import digest
from zsqretrieval.encoders.checked import Row
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset, Judgments
from zsqretrieval.types import Image

_NAMED = 10  # in a note


@dataclass(frozen=True, slots=True, eq=False)
class Usable:
    """The usable part of a data set."""

    dataset: Dataset
    vectors: NDArray[np.float32]  # [n, D], of its images
    digests: list[str]  # of its images
    places: NDArray[np.int64]  # [N], of each image that was given: its place or its copy's; -1: left out
    facts: Mapping[str, Any]  # left out: ``images`` (id: reason), ``queries``, ``texts`` (ids); ``copies``

    def kept(self, judged: Judgments) -> Judgments:
        """The rated pairs whose image is usable."""
        images = self.places[judged.images]
        return some_pairs(replace(judged, images=images), images >= 0)


def some_pairs(judged: Judgments, chosen: NDArray[np.bool_]) -> Judgments:
    """Some of n rated pairs, bool [n]."""
    captions = tuple(judged.captions[n] for n in np.flatnonzero(chosen))
    return replace(judged, images=judged.images[chosen], captions=captions, ratings=judged.ratings[chosen])


def digests_of(images: Iterable[Image]) -> list[str | ImageError]:
    """The digest of every image, or why it cannot be read."""
    found: list[str | ImageError] = []
    for image in images:
        try:
            found.append(digest(image))
        except ImageError as error:
            found.append(error)
    return found


def usable_part(
    dataset: Dataset,
    encode: Callable[[Sequence[Image]], Sequence[Row | ImageError]],
    encode_texts: Callable[[Sequence[str]], Sequence[Row | InvalidInputError]],
) -> Usable:
    """Leave out images and texts that cannot be encoded, queries that only these images answer, and copies.

    Images with equal bytes are one image, the first of them, which answers the queries of all: no system can
    tell them apart.

    Raises:
        ImageError: no image is usable.
    """
    digests = digests_of(dataset.gallery)
    faults = {n: one for n, one in enumerate(digests) if isinstance(one, ImageError)}
    firsts = dict[str, int]()
    for n, one in enumerate(digests):
        if isinstance(one, str):
            firsts.setdefault(one, n)
    order = sorted(firsts.values())
    rows = dict(zip(order, encode([dataset.gallery[n] for n in order]), strict=True))
    faults |= {n: one for n, one in rows.items() if isinstance(one, ImageError)}
    kept = [n for n in order if n not in faults]
    if not kept:
        raise next(iter(faults.values()))
    position = {n: place for place, n in enumerate(kept)}
    owner = [n if n in faults else firsts[str(one)] for n, one in enumerate(digests)]
    places = np.array([position.get(n, -1) for n in owner], np.int64)
    ids = [str(image.id) for image in dataset.gallery]
    new_id = {id: ids[kept[place]] for id, place in zip(ids, places.tolist(), strict=True) if place >= 0}
    qrels: dict[str, dict[str, int]] = {}
    for query, judged in dataset.qrels.items():
        own: dict[str, int] = {}
        for id, grade in judged.items():
            if id in new_id:
                own[new_id[id]] = max(grade, own.get(new_id[id], grade))
        qrels[query] = own
    has_answer = {id: any(grade > 0 for grade in own.values()) for id, own in qrels.items()}
    answered = [query for query in dataset.queries if has_answer[query.id]]
    without = [query.id for query in dataset.queries if not has_answer[query.id]]
    encoded = list(zip(answered, encode_texts([query.text for query in answered]), strict=True))
    texts = [query.id for query, one in encoded if isinstance(one, InvalidInputError)]
    answered = [query for query, one in encoded if not isinstance(one, InvalidInputError)]
    out = {ids[n]: faults[owner[n]] for n in np.flatnonzero(places < 0).tolist()}
    copies = {ids[n]: ids[owner[n]] for n in range(len(ids)) if places[n] >= 0 and owner[n] != n}
    told = {
        f"{len(out)} of {len(ids)} images cannot be read or encoded and are left out": [
            f"{id} ({error.reason})" for id, error in out.items()
        ],
        f"{len(without)} of {len(dataset.queries)} queries are left out, since only these images answer "
        "them": without,
        f"{len(texts)} of {len(dataset.queries)} texts cannot be encoded and are left out": texts,
        f"{len(copies)} images are copies of others, byte for byte; equal images count as one": [
            f"{id} is {first}" for id, first in copies.items()
        ],
    }
    notes = (*dataset.notes, *notes_of(told))
    if not answered:
        raise InvalidInputError(f"{dataset.name}: no query is left to measure: {'; '.join(notes)}")
    part = replace(
        dataset,
        gallery=tuple(dataset.gallery[n] for n in kept),
        queries=tuple(answered),
        qrels={query.id: qrels[query.id] for query in answered},
        notes=notes,
    )
    reasons = {id: one.reason for id, one in out.items()}
    facts = {"images": reasons, "queries": without, "texts": texts, "copies": copies}
    vectors = np.stack([row for row in rows.values() if not isinstance(row, ImageError)])
    return Usable(part, vectors, [str(digests[n]) for n in kept], places, facts)


def notes_of(told: Mapping[str, Sequence[str]]) -> list[str]:
    """A note for each sentence with names behind it: the first ones, and how many more there are."""
    return [
        f"{what}: {'; '.join(names[:_NAMED])}"
        + (f"; and {len(names) - _NAMED} more, in report.json" if len(names) > _NAMED else "")
        for what, names in told.items()
        if names
    ]

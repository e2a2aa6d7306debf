"""Searching images by the questions they answer as well: doc2query (arXiv 1904.08375) carried to images.

    question --encoder--> vector --index of images----> images that look like it  --+
                                 --index of questions-> images that were asked it --+--join--> first stage

:class:`QuestionIndex` holds the vectors of the kept questions and follows the catalog as the index of images
does. The images that either one finds are compared in both ways, exactly, and :func:`join` makes one score of
both.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.plugins import empty_like, new_index
from zsqretrieval.protocols import Configurable, Encoder, Index
from zsqretrieval.search.fusion import FIRST_STAGE, Fusion, best_first, fuse, standardized

__all__ = ["ALIKE", "Compared", "QuestionIndex", "best_questions", "compare", "join"]

ALIKE = 1e-6
"""Images whose similarities differ by no more than this look alike: float32 vectors tell no more."""

_NAME = "questions"  # of the snapshot


@final
class QuestionIndex:
    """The kept questions of an album by their vectors, as extra vectors of their images.

    It is of the same kind as the album's index of images, or exact where that cannot be made anew. It is
    opened, and filled from the catalog where there is no snapshot, when it is first needed.

    Args:
        catalog: the truth.
        encoder: makes the vectors.
        like: the index of images.
        album: directory with snapshots; None while the album lives in memory.
    """

    def __init__(self, catalog: Catalog, encoder: Encoder, like: Index, album: Path | None) -> None:
        self._catalog, self._encoder, self._like, self._album = catalog, encoder, like, album
        self._follower: IndexSync | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of questions."""
        return len(self._catalog.questions)

    def _opened(self) -> IndexSync:
        with self._lock:
            if self._follower is None:
                log = self._catalog.questions.log
                configurable = isinstance(self._like, Configurable)
                empty = empty_like(self._like) if configurable else new_index("exact", self._encoder)
                self._follower = (
                    IndexSync(self._catalog, log, empty, name=_NAME)
                    if self._album is None
                    else IndexSync.load(
                        self._catalog, log, self._encoder, self._album, name=_NAME, empty=empty
                    )
                )
            return self._follower

    def nearest(self, vector: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The images whose questions are nearest to a text.

        Args:
            vector: float32 [1, dim], of the text.
            k: how many images, >= 1.

        Returns:
            int64 [at most k], keys of images, no two the same, best first.
        """
        index = self._opened().update()
        depth = k
        while True:  # an image has several questions, so more of these are needed than of images
            found = index.search(vector, depth).keys[0]
            owners = self._catalog.questions.owners(found[found >= 0])
            images = list(dict.fromkeys(owners[key] for key in found.tolist() if key in owners))
            if len(images) >= k or depth >= len(index):
                return np.array(images[:k], np.int64)
            depth *= 2

    def save(self, album: Path) -> None:
        """Write a snapshot into the album; nothing where there never was a question.

        Raises:
            OSError: the disk refuses; the former snapshot is still valid.
        """
        self._album = album
        if self._follower is not None or len(self):
            self._opened().save(album)


@dataclass(frozen=True, slots=True)
class Compared:
    """An image that was compared with a text in both ways.

    Attributes:
        record: the image.
        image: cosine similarity of image and text.
        question: that of the nearest of its kept questions and the text; None when it has none.
        matched: that question; None when it has none.
        joined: both together, on the scale of ``image``.
    """

    record: Record
    image: float
    question: float | None
    matched: str | None
    joined: float

    @property
    def scores(self) -> dict[str, float]:
        """As :attr:`Hit.scores <zsqretrieval.types.Hit.scores>` has them."""
        scores = {FIRST_STAGE: self.joined, "image_similarity": self.image}
        return scores if self.question is None else {**scores, "question_similarity": self.question}


def compare(
    catalog: Catalog, keys: NDArray[np.int64], vector: NDArray[np.float32], expansion: Fusion
) -> list[Compared]:
    """Compare images with a text, and the questions they answer as well.

    Args:
        catalog: holds the vectors of both.
        keys: int64 [n], of images; repeats count once, and those that are gone are left out.
        vector: float32 [1, dim], of the text.
        expansion: joins both similarities.

    Returns:
        The images, best first.

    Raises:
        InvalidInputError: as :func:`join`.
        IntegrityError: a vector is damaged.
    """
    with catalog.reading():
        present = np.array(sorted(catalog.known_keys(np.unique(keys))), np.int64)
        records = catalog.records(present)
        vectors = catalog.log.get(present)
        kept = catalog.questions.kept(present)
    image = _cosines(vectors, vector)
    question, which = best_questions(present, kept.images, _cosines(kept.vectors, vector))
    order = best_first(image)  # a tie of the expansion keeps the order of the images
    joined = join(expansion, image[order], question[order])
    return [
        Compared(
            records[n],
            float(image[n]),
            float(question[n]) if which[n] >= 0 else None,
            kept.texts[which[n]] if which[n] >= 0 else None,
            float(joined[place]),
        )
        for place, n in ((place, order[place]) for place in best_first(joined))
    ]


def _cosines(vectors: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float64]:
    rows, (one,) = vectors.astype(np.float64), vector.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(one)
    cosines: NDArray[np.float64] = rows @ one / lengths
    return cosines


def best_questions(
    images: NDArray[np.int64], owners: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The best question of every image.

    Args:
        images: int64 [n], keys, rising.
        owners: int64 [m], the image of each question, one of ``images``.
        scores: float64 [m], of the questions.

    Returns:
        The best score float64 [n] of each image, nan where it has no question, and which question that is,
        int64 [n], the first of equal ones, -1 where there is none.
    """
    best, which = np.full(len(images), np.nan), np.full(len(images), -1, np.int64)
    order = np.lexsort((-np.arange(len(scores)), scores))  # the best one is written last
    rows = np.searchsorted(images, owners[order])
    best[rows], which[rows] = scores[order], order
    return best, which


def join(expansion: Fusion, image: NDArray[np.float64], question: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make one first-stage score of two.

    An image without questions counts as the average of those that have some: nothing is known of it. The
    result is brought to mean and deviation of the image similarities, so that whatever follows, such as a
    fusion on the raw scale, finds the numbers it was made for; that changes no order. Where all images look
    alike (:data:`ALIKE`), the deviation is 1.

    Args:
        expansion: joins similarities to images, in the place of the first stage, with those to questions.
        image: float64 [n], best first.
        question: float64 [n], nan where an image has no question.

    Returns:
        float64 [n], higher is better.

    Raises:
        InvalidInputError: the expansion gave anything but one finite number for each.
    """
    known = ~np.isnan(question)
    if not known.any():
        return np.array(image, np.float64)
    asked = question[known]
    average = np.clip(asked.mean(), asked.min(), asked.max())  # of equal ones, rounding makes another
    joined = fuse(expansion, image, np.where(known, question, average))
    if not np.isfinite(joined).all():
        raise InvalidInputError(f"the expansion {expansion!r} gave {joined.tolist()}; all must be finite")
    spread = image.std() if np.ptp(image) > ALIKE else 1.0  # else the questions were lost in rounding
    scaled: NDArray[np.float64] = image.mean() + spread * standardized(joined)
    return scaled

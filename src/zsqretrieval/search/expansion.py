"""Search expanded by the stored questions of images: doc2query (arXiv 1904.08375) carried to images.

    question --encoder--> vector --index of images----> images that look like it  --+
                                 --index of questions-> images that were asked it --+--join--> first stage

:class:`QuestionIndex` indexes the kept questions and stays in step with the catalog. Candidates of either
index are compared exactly in both ways, and :func:`join` combines the two similarities. This is the only join
of image and question scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.processes import Lock
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.indexes.checks import nearest
from zsqretrieval.plugins import empty_like, new_index
from zsqretrieval.protocols import Configurable, Encoder, Index
from zsqretrieval.search.fusion import FIRST_STAGE, Fusion, best_first, fuse, standardized
from zsqretrieval.types import Hit

Candidate: TypeAlias = tuple[Record, Hit]
"""An image that the first stage found."""

ALIKE = 1e-6
"""Largest range of similarities that counts as equal: the resolution of float32 vectors."""

_NAME = "questions"  # of the snapshot


@final
class QuestionIndex:
    """Index of the kept questions of an album, as extra vectors of their images.

    It has the class and settings of the index of images, or is exact if that cannot be built from settings.
    It is opened on first use, and filled from the catalog if there is no snapshot.

    Args:
        catalog: the questions.
        encoder: the encoder of the questions.
        like: the index of images.
        album: directory of the album; None while it is in memory.
    """

    def __init__(self, catalog: Catalog, encoder: Encoder, like: Index, album: Path | None) -> None:
        self._catalog, self._encoder, self._like, self._album = catalog, encoder, like, album
        self._follower: IndexSync | None = None
        self._lock = Lock()

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
                    else IndexSync.saved(
                        self._catalog, log, self._encoder, self._album, name=_NAME, empty=empty
                    )
                )
            return self._follower

    def nearest(
        self, vector: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Keys int64 [at most k] of the images whose questions are nearest to a text, best first.

        ``vector`` is that of the text, float32 [1, dim]; the images are among those keys, int64 [m].
        """
        allowed = None if among is None else set(among.tolist())
        return self._opened().ask(lambda index: self._images(index, vector, k, allowed))

    def _images(
        self, index: Index, vector: NDArray[np.float32], k: int, allowed: set[int] | None
    ) -> NDArray[np.int64]:
        depth = k = min(k, max(len(index), 1))
        while True:  # an image has several questions, so k questions may belong to fewer images
            found = nearest(index, vector, depth).keys[0]
            owners = self._catalog.questions.owners(found[found >= 0])
            of_questions = (owners[key] for key in found.tolist() if key in owners)
            images = [key for key in dict.fromkeys(of_questions) if allowed is None or key in allowed]
            if len(images) >= k or depth >= len(index):
                return np.array(images[:k], np.int64)
            depth = min(2 * depth, len(index))

    def compact(self) -> None:
        """Let the index, if there is one, forget the vectors of removed questions."""
        if self._follower is not None or len(self) or self._catalog.get_snapshot(_NAME) is not None:
            self._opened().compact()

    def joined(
        self,
        by_image: NDArray[np.int64],
        vector: NDArray[np.float32],
        k: int,
        expansion: Fusion,
        among: NDArray[np.int64] | None,
    ) -> list[Candidate]:
        """The best k of images int64 [n], and of those that the questions give; see :func:`compare`."""
        keys = np.concatenate([by_image, self.nearest(vector, k, among)])
        return compare(self._catalog, keys, vector, expansion)[:k]

    def save(self, album: Path) -> None:
        """Write a snapshot into the album, if there are or were questions."""
        self._album = album
        if self._follower is not None or len(self):
            self._opened().save(album)


def hit_of(record: Record, scores: Mapping[str, float], matched: str | None = None) -> Hit:
    """A hit by its first-stage score; ``matched`` is its nearest kept question."""
    return Hit(
        key=record.key,
        id=record.id,
        source=record.source,
        score=scores[FIRST_STAGE],
        scores=scores,
        caption=record.caption,
        metadata=record.metadata,
        matched_question=matched,
        digest=record.digest,
    )


def compare(
    catalog: Catalog, keys: NDArray[np.int64], vector: NDArray[np.float32], expansion: Fusion
) -> list[Candidate]:
    """Compare images and their questions with a text, float32 [1, dim]; best first by :func:`join`.

    Of the ``keys`` int64 [n], repeats and removed images are dropped. The scores of a hit also have the
    similarities to the image and to its nearest kept question.
    """
    with catalog.reading():
        records, vectors = catalog.present(np.unique(keys))
        present = np.array([record.key for record in records], np.int64)
        kept = catalog.questions.kept(present)
    image = _cosines(vectors, vector)
    question, which = best_questions(present, kept.images, _cosines(kept.vectors, vector))
    order = best_first(image)  # a tie of the expansion keeps the order of the images
    joined = join(expansion, image[order], question[order])
    found: list[Candidate] = []
    for place in best_first(joined):
        n = order[place]
        scores = {FIRST_STAGE: float(joined[place]), "image_similarity": float(image[n])}
        matched = None
        if which[n] >= 0:
            scores["question_similarity"], matched = float(question[n]), kept.texts[which[n]]
        found.append((records[n], hit_of(records[n], scores, matched)))
    return found


def _cosines(vectors: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float64]:
    rows, (one,) = vectors.astype(np.float64), vector.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(one)
    cosines: NDArray[np.float64] = rows @ one / lengths
    return cosines


def best_questions(
    images: NDArray[np.int64], owners: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Find the best question of every image.

    Args:
        images: int64 [n], rising keys.
        owners: int64 [m], the image of each question, one of ``images``.
        scores: float64 [m], scores of the questions.

    Returns:
        The best score of each image float64 [n], nan without questions; and the position of that question
        int64 [n], the first of equals, -1 without.
    """
    best, which = np.full(len(images), np.nan), np.full(len(images), -1, np.int64)
    order = np.lexsort((-np.arange(len(scores)), scores))  # the best one is written last
    rows = np.searchsorted(images, owners[order])
    best[rows], which[rows] = scores[order], order
    return best, which


def join(expansion: Fusion, image: NDArray[np.float64], question: NDArray[np.float64]) -> NDArray[np.float64]:
    """Combine image and question similarities into one first-stage score.

    Images without questions get the mean question score. The result is scaled to mean and deviation of the
    image similarities, which changes no order, so that a fusion on the raw scale finds numbers in its unit.
    If all image similarities are equal (:data:`ALIKE`), the deviation is 1.

    Args:
        expansion: combines image similarities, as the first stage, with question similarities.
        image: float64 [n], best first.
        question: float64 [n], nan for images without questions.

    Returns:
        float64 [n], higher is better.

    Raises:
        InvalidInputError: as :func:`~zsqretrieval.search.fusion.fuse`.
    """
    known = ~np.isnan(question)
    if not known.any():
        return np.array(image, np.float64)
    asked = question[known]
    average = np.clip(asked.mean(), asked.min(), asked.max())  # the mean of equals may differ by rounding
    joined = fuse(expansion, image, np.where(known, question, average))
    spread = image.std() if np.ptp(image) > ALIKE else 1.0  # keeps the questions from vanishing in rounding
    scaled: NDArray[np.float64] = image.mean() + spread * standardized(joined)
    return scaled

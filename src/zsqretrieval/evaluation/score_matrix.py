"""The score of every candidate of every question: the long part of a bench, so it can be interrupted.

Pairs are scored in chunks that hold the questions about one image side by side, because a generator that
shares what texts begin with has the most to share then. With a folder to work in, each chunk is kept in a
file named by a digest of all that determines it (generator, rule, questions, pixels): a second run finds what
the first has computed, and nothing that was computed of anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final, overload

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.images import digest
from zsqretrieval.evaluation.progress import Progress, untold
from zsqretrieval.evaluation.writing import write_whole
from zsqretrieval.protocols import Generator, ImageStates
from zsqretrieval.search.scoring import Scoring, score_text_image_pairs
from zsqretrieval.types import Image, ImageState

__all__ = ["Seen", "score_matrix"]

CHUNK = 1000
"""Pairs of a question and an image between two saves."""

_SCORE = np.dtype("<f8")
_DIGEST = 32  # bytes of a SHA-256
_PART = 100  # images seen between two reports


@final
class Seen(Sequence["Image | ImageState"]):
    """What a generator is shown of images: their states where it makes some, made when the first is needed.

    A run of which all scores are known looks at no image then.

    Args:
        generator: what sees.
        images: n images.
        only: positions that will be asked for; all when None.
        batch_size: how many are computed together.
        progress: told how far it is.
    """

    def __init__(
        self,
        generator: Generator,
        images: Sequence[Image],
        *,
        only: Sequence[int] | None = None,
        batch_size: int = 16,
        progress: Progress = untold,
    ) -> None:
        self._generator, self._images = generator, images
        self._only = range(len(images)) if only is None else only
        self._batch_size, self._progress = batch_size, progress
        self._seen: list[Image | ImageState] | None = None

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, place: int) -> Image | ImageState: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Image | ImageState]: ...
    def __getitem__(self, place: Any) -> Any:
        if self._seen is None:
            self._seen = self._look()
        return self._seen[place]

    def _look(self) -> list[Image | ImageState]:
        shown: list[Image | ImageState] = list(self._images)
        if not isinstance(self._generator, ImageStates):
            return shown
        for start in range(0, len(self._only), _PART):
            some = self._only[start : start + _PART]
            values = self._generator.image_states(
                [self._images[n] for n in some], batch_size=self._batch_size
            )
            for n, value in zip(some, values, strict=True):
                shown[n] = ImageState(value, self._generator.fingerprint, self._images[n].source)
            self._progress("seeing images", min(start + _PART, len(self._only)), len(self._only))
        return shown


def score_matrix(
    generator: Generator,
    scoring: Scoring,
    questions: Sequence[str],
    images: Sequence[Image],
    candidates: NDArray[np.int64],
    *,
    shown: Sequence[Image | ImageState] | None = None,
    batch_size: int = 64,
    work: Path | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Score the candidates of many questions.

    Args:
        generator: reads the candidates.
        scoring: the rule; its ``repr`` has to tell it from others.
        questions: q questions.
        images: n images.
        candidates: int64 [q, k], positions in ``images``.
        shown: what the generator is given in place of the images, as :class:`Seen` makes it.
        batch_size: pairs computed together.
        work: folder where chunks are kept; made when missing.
        progress: told after each chunk.

    Returns:
        float64 [q, k], finite, higher is better.

    Raises:
        ImageError, InvalidInputError, ZsqError: as :func:`~zsqretrieval.search.scoring.score_text_image_pairs`.
        OSError: ``work`` cannot be written to.
    """
    shown = images if shown is None else shown
    digests = [digest(image) for image in images] if work is not None else []
    scores = np.empty(candidates.size)
    by_image = np.argsort(candidates.ravel(), kind="stable")
    for start in range(0, len(by_image), CHUNK):
        chunk = by_image[start : start + CHUNK]
        pairs = [(questions[i // candidates.shape[1]], int(candidates.flat[i])) for i in chunk]
        path = known = None
        if work is not None:
            named = [[question, digests[image]] for question, image in pairs]
            path = Path(work) / _name(generator, scoring, named)
            known = _load(path, len(chunk))
        if known is None:
            # Only now are images shown, so that a run of which everything is known looks at none.
            asked = [(question, shown[image]) for question, image in pairs]
            known = score_text_image_pairs(generator, scoring, asked, batch_size=batch_size)
            if path is not None:
                _save(path, known)
        scores[chunk] = known
        if progress is not None:
            progress(f"scoring by {scoring.name}", start + len(chunk), len(by_image))
    return scores.reshape(candidates.shape)


def _name(generator: Generator, scoring: Scoring, pairs: Sequence[Sequence[str]]) -> str:
    content = repr([generator.fingerprint, repr(scoring), pairs]).encode(errors="surrogatepass")
    return f"{scoring.name}-{hashlib.sha256(content).hexdigest()[:32]}.scores"


def _load(path: Path, count: int) -> NDArray[np.float64] | None:
    """Scores as they were saved; None when there are none, or the file is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    told, saved = content[:_DIGEST], content[_DIGEST:]
    if len(saved) != count * _SCORE.itemsize or hashlib.sha256(saved).digest() != told:
        return None
    return np.frombuffer(saved, _SCORE).astype(np.float64)


def _save(path: Path, scores: NDArray[np.float64]) -> None:
    """A digest, and behind it the scores."""
    saved = scores.astype(_SCORE).tobytes()
    write_whole(path, [hashlib.sha256(saved).digest(), saved])

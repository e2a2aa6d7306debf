"""Checks of every re-ranker; the contract is :class:`zsqretrieval.search.rerank.Reranker`."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import ImageError
from zsqretrieval.testing.checks import (
    Check,
    ContractError,
    expect,
    expect_accepted,
    expect_refusal,
    lister,
    run_checks,
)
from zsqretrieval.testing.encoder import UNUSUAL_TEXTS
from zsqretrieval.testing.pictures import (
    as_image,
    broken_images,
    colour_modes,
    encoded,
    painting,
    paintings,
    unchanged_images,
)
from zsqretrieval.types import Image

QUESTION = "what is the colour of the red thing?"

SAME = 1e-4
"""Largest difference of a score between calls, unless ``check_reranker`` is given another."""


@dataclass(frozen=True, slots=True)
class RerankerCase:
    """A re-ranker under test.

    Attributes:
        reranker: an object with ``score(question, images)``.
        tolerance: largest difference of one image's score between calls with other images beside it.
        question: a question that the re-ranker can take.
    """

    reranker: Any
    tolerance: float = SAME
    question: str = QUESTION

    def score(self, images: Sequence[Image], question: str | None = None) -> NDArray[np.float64]:
        """The scores, checked: one finite number per image."""
        found = self.reranker.score(question or self.question, images)
        try:
            scores = np.asarray(found, np.float64)
        except (TypeError, ValueError) as error:
            raise ContractError(f"Expected numbers; got {type(found).__name__} {found!r:.200}.") from error
        expect(scores.shape == (len(images),), f"{len(images)} scores, one per image", scores.shape)
        expect(np.isfinite(scores).all(), "finite scores", scores)
        return scores


RerankerFactory: TypeAlias = Callable[[], Any]

_listed: list[Check[RerankerFactory]] = []
_check = lister(_listed, lambda make: one if isinstance(one := make(), RerankerCase) else RerankerCase(one))


def check_reranker(reranker: Any, *, tolerance: float = SAME) -> None:
    """Run every re-ranker check on ``reranker``.

    Args:
        reranker: an object with ``score(question, images)``.
        tolerance: largest difference of one image's score between calls; 16-bit arithmetic needs about 0.1.

    Raises:
        ContractError: names each failed check, with what was expected and what was got.
    """
    run_checks(reranker_checks, lambda: RerankerCase(reranker, tolerance))


@_check
def one_finite_score_per_image(case: RerankerCase) -> None:
    """``score`` returns one finite number per image, also for one image and for a tuple."""
    for images in (paintings(1), paintings(5), tuple(paintings(2))):
        case.score(images)


@_check
def no_images_give_no_scores(case: RerankerCase) -> None:
    """``score(question, [])`` is empty."""
    case.score([])


@_check
def scoring_is_deterministic(case: RerankerCase) -> None:
    """Scoring twice gives the same scores."""
    images = paintings(4)
    _expect_same(case, case.score(images), case.score(images), "images scored twice")


@_check
def order_of_images_is_kept(case: RerankerCase) -> None:
    """Score i belongs to image i: permuted images give permuted scores."""
    images = paintings(6)
    straight = case.score(images)
    for seed in range(3):
        order = list(range(len(images)))
        random.Random(seed).shuffle(order)
        _expect_same(case, straight[order], case.score([images[i] for i in order]), f"the order {order}")


@_check
def other_images_change_nothing(case: RerankerCase) -> None:
    """An image scored alone, with a few or with many others has the same score."""
    images = paintings(20)
    together = case.score(images)
    alone = np.concatenate([case.score([image]) for image in images[:5]])
    _expect_same(case, together[:5], alone, "images scored alone and with others")
    for size in (2, 7):
        parts = [case.score(images[start : start + size]) for start in range(0, len(images), size)]
        _expect_same(case, together, np.concatenate(parts), f"calls of {size} and of {len(images)} images")


@_check
def repeated_image_has_the_same_score(case: RerankerCase) -> None:
    """An image that is given twice gets the same score twice, as one object or as two."""
    one = paintings(1)[0]
    again = Image(one.content, "the same bytes", id="another", caption="a red boat", metadata={"year": 1999})
    scores = case.score([one, *paintings(2, first_seed=5), one, again])
    _expect_same(case, scores[[0, 0]], scores[[3, 4]], "copies of an image")


@_check
def different_images_differ(case: RerankerCase) -> None:
    """Some of five different images get different scores."""
    scores = case.score(paintings(5))
    expect(np.ptp(scores) > case.tolerance, "different scores for different images", scores)


@_check
def question_counts(case: RerankerCase) -> None:
    """Another question gives other scores."""
    images = paintings(4)
    gap = np.abs(case.score(images) - case.score(images, "is the thing in the picture green?")).max()
    expect(gap > case.tolerance, "other scores for another question", f"a difference of {gap:.3g}")


@_check
def bytes_paths_and_pictures_agree(case: RerankerCase) -> None:
    """The same image as bytes, as a path and as a PIL picture gets the same score."""
    picture = painting(3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "painting.png"
        path.write_bytes(encoded(picture))
        forms = [as_image(picture, "bytes"), Image(path, str(path)), Image(picture, "PIL picture")]
        scores = case.score(forms)
    _expect_same(case, scores[[0, 0]], scores[1:], "bytes, path and PIL picture")


@_check
def colour_modes_are_accepted(case: RerankerCase) -> None:
    """Grey, black-and-white, palette, RGBA, CMYK, 16-bit, WebP and GIF images are scored."""
    for name, image in colour_modes().items():
        expect_accepted(partial(case.score, [image]), "a score", name)


@_check
def small_images_are_accepted(case: RerankerCase) -> None:
    """Images of 1 x 1, 1 x 100 and 100 x 1 pixels are scored."""
    for size in ((1, 1), (1, 100), (100, 1)):
        image = as_image(painting(5, size), f"{size[0]} x {size[1]} pixels")
        expect_accepted(partial(case.score, [image]), "a score", image.source)


@_check
def unusual_questions_are_accepted(case: RerankerCase) -> None:
    """Multi-line, emoji and non-Latin questions are scored."""
    for name in ("line breaks", "emoji", "accents and other scripts"):
        expect_accepted(partial(case.score, paintings(1), UNUSUAL_TEXTS[name]), "a score", name)


@_check
def broken_image_is_named(case: RerankerCase) -> None:
    """An image that cannot be decoded raises ImageError naming that image, wherever it stands."""
    for image in broken_images():
        score = partial(case.reranker.score, case.question, [*paintings(2), image, *paintings(1)])
        expect_refusal(score, image.source, ImageError, naming=image.source)


@_check
def inputs_are_not_changed(case: RerankerCase) -> None:
    """Scoring leaves the list, the images and their pixels as they were."""
    with unchanged_images() as images:
        case.score(images)


@_check
def results_are_fresh(case: RerankerCase) -> None:
    """Later calls do not change an answer, and the caller may overwrite it."""
    images = paintings(2)
    first = case.reranker.score(case.question, images)
    kept = np.array(first, np.float64)
    case.score(paintings(2, first_seed=10))
    _expect_same(case, kept, np.asarray(first, np.float64), "an answer, before and after another call")
    if isinstance(first, np.ndarray) and first.flags.writeable:
        first[:] = 0
    _expect_same(case, kept, case.score(images), "an answer, before and after the caller overwrote one")


@_check
def threads_agree(case: RerankerCase) -> None:
    """Concurrent calls and sequential calls give the same scores."""
    jobs = [paintings(2, first_seed=seed) for seed in range(6)]
    serial = [case.score(job) for job in jobs]
    with ThreadPoolExecutor(3) as pool:
        for one, other in zip(serial, pool.map(case.score, jobs), strict=True):
            _expect_same(case, one, other, "serial and concurrent calls")


reranker_checks = tuple(_listed)
"""Every re-ranker check; each takes a function that returns the re-ranker, or a :class:`RerankerCase`."""


def _expect_same(case: RerankerCase, one: NDArray[np.float64], other: NDArray[np.float64], what: str) -> None:
    gap = float(np.abs(one - other).max(initial=0))
    expect(
        gap <= case.tolerance, f"equal scores to {case.tolerance:g} for {what}", f"a difference of {gap:.3g}"
    )

"""The prior of a text: its log-likelihood when the image shows nothing in particular."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts, check_shares
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import read_texts
from zsqretrieval.protocols import Generator
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.types import Image, ImageState, Progress


def null_images(count: int = 3, *, seed: int = 0) -> tuple[Image, ...]:
    """Make images without content: one mid-grey, the others Gaussian noise; 224 x 224, always the same.

    Raises:
        InvalidInputError: ``count`` < 1.
    """
    check_counts(count=count)
    from PIL import Image as PILImage

    random = np.random.default_rng(seed)
    noise = random.normal(127.5, 64, (count - 1, 224, 224, 3)).clip(0, 255).astype(np.uint8)
    pictures = [PILImage.new("RGB", (224, 224), (127, 127, 127)), *map(PILImage.fromarray, noise)]
    return tuple(Image(picture, f"<null image {n}>") for n, picture in enumerate(pictures))


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """Correction of a likelihood for how likely the text is with any image.

    The score becomes log P(text | image) - alpha * log P(text), after VisualGPTScore (Lin et al., arXiv
    2306.01879), where P(text) is the probability given a null image, averaged over a few of them.

    Attributes:
        alpha: share of the prior that is subtracted, in [0, 1]. The paper tunes it to 0.82 on COCO, 0.72 on
            Flickr30k and 0.67 on ImageNet.
        null_images: images without content, one or more.

    Raises:
        InvalidInputError: alpha is out of range, or ``null_images`` is empty or holds anything but images.
    """

    alpha: float = 0.8
    null_images: tuple[Image, ...] = field(default_factory=null_images)

    def __post_init__(self) -> None:
        check_shares(alpha=self.alpha)
        if not self.null_images:
            raise InvalidInputError("a prior needs at least one null image")
        if wrong := [one for one in self.null_images if not isinstance(one, Image)]:
            raise InvalidInputError(
                f"null_images must be records of zsqretrieval.data.images.as_image, not {wrong[0]!r}"
            )


def log_prior(
    generator: Generator,
    likelihood: Likelihood,
    images: Sequence[Image | ImageState],
    texts: Sequence[str],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Estimate log P(text) as the logarithm of the mean of P(text | null image).

    ``images`` are null images or their cached features; the other arguments and the errors are those of
    :func:`~zsqretrieval.search.scoring.score_pairs`.

    Returns:
        float64 [n], in nats; with ``aggregate="mean"`` per token, too.
    """
    pairs = [pair for image in images for text in texts for pair in likelihood.pairs(text, image)]
    given = read_texts(
        generator,
        [pair.context for pair in pairs],
        [pair.continuation for pair in pairs],
        batch_size=batch_size,
        progress=progress,
    )
    sums = [one.sum for one in given]  # the mean is over probabilities, not over their logarithms
    averaged = np.logaddexp.reduce(np.reshape(sums, (len(images), len(texts)))) - math.log(len(images))
    if likelihood.aggregate == "mean":
        averaged /= [len(one) for one in given[: len(texts)]]
    return np.asarray(averaged, np.float64)

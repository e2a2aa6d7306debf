"""The prior of a text: its log-likelihood when the image shows nothing in particular."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_numbers
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.protocols import Generator
from zsqretrieval.search.scoring import Likelihood, pair_likelihoods
from zsqretrieval.types import Image, ImageState, Progress

__all__ = ["Prior", "log_prior", "null_images"]


def null_images(count: int = 3, *, seed: int = 0) -> tuple[Image, ...]:
    """Pictures of nothing: one mid-grey, the others Gaussian noise around it; 224 x 224, always the same.

    Raises:
        InvalidInputError: ``count`` < 1.
    """
    if count < 1:
        raise InvalidInputError(f"count must be at least 1, not {count}")
    from PIL import Image as PILImage

    random = np.random.default_rng(seed)
    noise = random.normal(127.5, 64, (count - 1, 224, 224, 3)).clip(0, 255).astype(np.uint8)
    pictures = [PILImage.new("RGB", (224, 224), (127, 127, 127)), *map(PILImage.fromarray, noise)]
    return tuple(Image(picture, f"<null image {n}>") for n, picture in enumerate(pictures))


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """Corrects the likelihood of a text for how likely it is whatever the image shows.

    The score becomes log P(text | image) - alpha * log P(text), after VisualGPTScore (Lin et al., arXiv
    2306.01879), where log P(text) is the likelihood given a null image, averaged over a few of them.

    Attributes:
        alpha: how much of the prior is taken away, in [0, 1]. The paper tunes it to 0.82 on COCO, 0.72 on
            Flickr30k and 0.67 on ImageNet.
        null_images: pictures of nothing in particular; :func:`null_images` unless given.

    Raises:
        InvalidInputError: alpha is out of range, or there is no null image.
    """

    alpha: float = 0.8
    null_images: tuple[Image, ...] = field(default_factory=null_images)

    def __post_init__(self) -> None:
        check_numbers(alpha=self.alpha)
        if not 0 <= self.alpha <= 1:
            raise InvalidInputError(f"alpha must lie between 0 and 1, not {self.alpha}")
        if not self.null_images:
            raise InvalidInputError("a prior needs at least one null image")
        if strange := [one for one in self.null_images if not isinstance(one, Image)]:
            raise InvalidInputError(
                "null_images must be Image records, which zsqretrieval.data.images.as_image makes, not "
                f"{strange[0]!r}"
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
    """Estimate log P(text): the average of P(text | null image), in log space.

    Args:
        generator: reads the null images.
        likelihood: the rule; what its aggregate is, is done to the estimate as well.
        images: the null images, or their states.
        texts: n texts.
        batch_size: texts scored between two calls of ``progress``.
        progress: told how far it is, over all images; may raise to stop.

    Returns:
        float64 [n], in nats, or nats per token.

    Raises:
        ImageError, InvalidInputError, ZsqError: as :func:`score_texts`.
    """
    found = pair_likelihoods(
        generator,
        likelihood,
        [text for _ in images for text in texts],
        [image for image in images for _ in texts],
        batch_size=batch_size,
        progress=progress,
    )
    given = [one for (one,) in found]
    sums = [one.sum for one in given]  # probabilities are averaged, and no means of their logarithms
    averaged = np.logaddexp.reduce(np.reshape(sums, (len(images), len(texts)))) - math.log(len(images))
    if likelihood.aggregate == "mean":
        averaged /= [len(one) for one in given[: len(texts)]]
    return np.asarray(averaged, np.float64)

"""Records that are passed between the parts: small and frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image as PILImage

Progress: TypeAlias = Callable[[str, int, "int | None"], object]
"""Called between batches with the name of the step, the number of items done and the total.

The total is None when it is unknown. The callback may raise to cancel the work; what is on disk stays there.
"""


MAX_PIXELS = 200_000_000
"""Default size limit of an image in pixels: 800 MB of RGB in Pillow."""


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One image, not decoded yet.

    A folder of a million files can be listed before any is opened; :func:`zsqretrieval.data.images.decode`
    makes upright RGB pixels.

    Attributes:
        content: encoded bytes (JPEG, PNG, WebP, GIF, ...), a path to them, or a PIL image.
        source: origin, for error messages and reports.
        id: the caller's name for the image; None to name it after ``source``.
        caption: text of the image (alt text, human caption), or None.
        metadata: JSON values, stored in the catalog.
        max_pixels: size limit in pixels, above which it is not decoded.
        notes: what was replaced in caption and metadata when they were read, in words.
    """

    content: bytes | Path | PILImage.Image
    source: str
    id: str | None = None
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ImageState:
    """Cached image features of a generator, which may replace the image in a context.

    Attributes:
        values: float array of the generator's ``state_shape``; may be memory-mapped.
        fingerprint: fingerprint of the generator that computed them; others refuse them.
        source: origin of the image, for error messages.
    """

    values: NDArray[np.floating[Any]]
    fingerprint: str
    source: str


Context: TypeAlias = Sequence["str | Image | ImageState"]
"""Interleaved text and images in reading order, as in Kosmos-1.

An :class:`ImageState` may replace an image for a generator with cached features
(:class:`zsqretrieval.protocols.ImageStates`).
"""


@dataclass(frozen=True, slots=True, eq=False)
class LogLikelihood:
    """Log-likelihood of a continuation given a context, token by token.

    Attributes:
        tokens: the continuation's tokens as text, length T.
        token_log_probs: float32 [T], natural logarithms (nats), each <= 0; entry t is
            log P(token t | context, tokens before t).
    """

    tokens: tuple[str, ...]
    token_log_probs: NDArray[np.float32]

    @property
    def sum(self) -> float:
        """Log P(continuation | context) in nats."""
        return float(self.token_log_probs.sum(dtype=np.float64))

    @property
    def mean(self) -> float:
        """Log-probability per token in nats: ``sum / len``."""
        return self.sum / len(self)

    def __len__(self) -> int:
        return len(self.token_log_probs)


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors:
    """Answer of an index to ``q`` queries: one row per query, best first.

    Attributes:
        keys: int64 [q, k]; -1 where fewer than k neighbours exist.
        scores: float32 [q, k], cosine similarity in [-1, 1]; nan where the key is -1.
    """

    keys: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Explanation of a hit: the generator's answer, and the gain of each token of the question.

    Attributes:
        answer: the generator's answer to the question given the image; may be empty.
        tokens: the question's tokens as text, length T.
        with_image: float32 [T], natural logarithms; entry t is log P(token t | image, tokens before t).
        without_image: float32 [T], the same given null images.
    """

    answer: str
    tokens: tuple[str, ...]
    with_image: NDArray[np.float32]
    without_image: NDArray[np.float32]

    @property
    def gain(self) -> NDArray[np.float32]:
        """Gain of each token from the image in nats, float32 [T]; negative where the image contradicts it."""
        return self.with_image - self.without_image


@dataclass(frozen=True, slots=True)
class Hit:
    """One image of a ranking.

    Attributes:
        key: the image's int64 key in the catalog and the index.
        id: the image's name in the catalog.
        source: origin of the image.
        score: score that the ranking is sorted by; higher is better. None for a candidate that was not or
            could not be scored by the last stage, and in a dialog for an impossible one.
        scores: finite score of every stage by name; higher is better. ``"first_stage"``: cosine similarity.
            ``"likelihood"`` or ``"yes_no"``: generator score. ``"fused"``: both combined. With expansion,
            ``"image_similarity"`` and ``"question_similarity"``: cosine similarities to the image and to its
            nearest stored question, which ``"first_stage"`` combines. With a query bank, ``"normalized"``:
            the normalised first stage. In a dialog, ``"dialog"``: log P(image | answers) in nats.
        caption: caption in the catalog, or None.
        metadata: metadata in the catalog.
        matched_question: nearest stored question of this image; None without expansion or questions.
        explanation: explanation of the hit; None unless asked for, or if the image cannot be opened.
        digest: hexadecimal SHA-256 of the image (:func:`zsqretrieval.data.images.digest`), which tells
            whether ``source`` still holds it. That of a vector without an image ends in ``-vector``; None
            when unknown.
        duplicates: number of near-duplicates that this hit stands for (``search(collapse=...)``).
        probability: estimated probability that the image is relevant (``search(min_probability=...)``); None
            when not asked for.
    """

    key: int
    id: str
    source: str
    score: float | None
    scores: Mapping[str, float]
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    matched_question: str | None = None
    explanation: Explanation | None = None
    digest: str | None = None
    duplicates: int = 0
    probability: float | None = None

"""The records that travel between the parts: small, frozen, without behaviour of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = [
    "Context",
    "Explanation",
    "Hit",
    "Image",
    "ImageState",
    "LogLikelihood",
    "Neighbors",
    "Progress",
    "Ranking",
]

Progress: TypeAlias = Callable[[str, int, "int | None"], object]
"""Called between batches with the name of the step, the number of items done and the total.

The total is None when it is unknown. The callback may raise to cancel the work; what is on disk stays there.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One image, not decoded yet.

    Decoding is deferred so that a folder of a million files can be described before any is opened;
    :func:`zsqretrieval.data.images.decode` turns the record into upright RGB pixels.

    Attributes:
        content: encoded bytes (JPEG, PNG, WebP, GIF, ...), a path to them, or a PIL image.
        source: where it came from, as error messages and reports should name it.
        id: the caller's own name for the image, or None to be named after ``source``.
        caption: text that came with it (alt text, human caption), or None.
        metadata: free JSON-serialisable facts, kept by the catalog.
    """

    content: bytes | Path | PILImage.Image
    source: str
    id: str | None = None
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ImageState:
    """What the seeing part of a generator makes of an image, computed once; stands in for it in a context.

    Attributes:
        values: float array of the generator's ``state_shape``; may be memory-mapped.
        fingerprint: of the generator that computed it. No other can read it.
        source: where the image came from, as error messages should name it.
    """

    values: NDArray[np.floating[Any]]
    fingerprint: str
    source: str


Context: TypeAlias = Sequence["str | Image | ImageState"]
"""Interleaved text and images, in reading order, as Kosmos-1 takes them.

An :class:`ImageState` may stand where an image may, for a generator that makes such states
(:class:`zsqretrieval.protocols.ImageStates`).
"""


@dataclass(frozen=True, slots=True, eq=False)
class LogLikelihood:
    """How likely a continuation is after a context, token by token.

    Attributes:
        tokens: the continuation's tokens as text, length T.
        token_log_probs: float32 [T], natural logarithms (nats), each <= 0; entry t is
            log P(token t | context, tokens before t).
    """

    tokens: tuple[str, ...]
    token_log_probs: NDArray[np.float32]

    @property
    def sum(self) -> float:
        """The natural logarithm of P(continuation | context)."""
        return float(self.token_log_probs.sum(dtype=np.float64))

    @property
    def mean(self) -> float:
        """Log-probability per token in nats: ``sum / len``."""
        return self.sum / len(self)

    def __len__(self) -> int:
        return len(self.token_log_probs)


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors:
    """What an index answers to ``q`` queries: one row per query, best first.

    Attributes:
        keys: int64 [q, k]; -1 where fewer than k neighbours exist.
        scores: float32 [q, k], cosine similarity in [-1, 1]; nan where the key is -1.
    """

    keys: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What an image says to a question: its answer, and which words of the question it explains.

    Attributes:
        answer: the generator's answer to the question, read from the image; empty when it gave none.
        tokens: the question's tokens as text, length T.
        with_image: float32 [T], natural logarithms; entry t is log P(token t | image, tokens before t).
        without_image: float32 [T], the same given pictures of nothing: what the words before tell already.
    """

    answer: str
    tokens: tuple[str, ...]
    with_image: NDArray[np.float32]
    without_image: NDArray[np.float32]

    @property
    def gain(self) -> NDArray[np.float32]:
        """float32 [T], nats: how much likelier the image makes each token; below 0 if it speaks against."""
        return self.with_image - self.without_image


@dataclass(frozen=True, slots=True)
class Hit:
    """One image of a ranking.

    Attributes:
        key: the image's int64 key in the catalog and the index.
        id: the image's name in the catalog.
        source: where the image came from.
        score: the score the ranking is sorted by; higher is better. -inf for a candidate that could not be
            scored where others were.
        scores: the score of every stage that judged this image, by the stage's name; higher is better.
            ``"first_stage"`` is the cosine similarity, ``"likelihood"`` or ``"yes_no"`` what the generator
            made of the image, ``"fused"`` what the fusion made of both. Where a search looked at questions
            as well, ``"image_similarity"`` and ``"question_similarity"`` are the cosine similarities of the
            image and of the nearest question it was asked, and ``"first_stage"`` joins them; with a bank of
            questions, ``"normalized"`` is the first stage without what the image gets from any. In a dialog,
            ``"dialog"`` is log P(image | what was said), in nats.
        caption: the caption kept in the catalog, or None.
        metadata: the free facts kept in the catalog.
        matched_question: of the questions kept for this image, the nearest one; None when the search did not
            look at questions, or the image has none.
        explanation: what the image says to the question; None when nobody asked for it, or the image cannot
            be shown to the generator.
        digest: SHA-256 of the image in hexadecimal, as :func:`zsqretrieval.data.images.digest` gives it, by which
            to tell whether ``source`` still holds it; None when it is not known.
    """

    key: int
    id: str
    source: str
    score: float
    scores: Mapping[str, float]
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    matched_question: str | None = None
    explanation: Explanation | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[Hit]):
    """Hits for one query, best first; a sequence of :class:`Hit`.

    Attributes:
        query: the question, or the source of the query image.
        hits: the hits, best first.
        timings: seconds spent per stage, by the stage's name.
    """

    query: str
    hits: tuple[Hit, ...]
    timings: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __getitem__(self, position: Any) -> Any:
        return self.hits[position]

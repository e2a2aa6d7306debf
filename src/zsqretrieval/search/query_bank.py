"""Query-bank normalisation: subtract each image's similarity to a bank of other queries.

In a space of many dimensions some images are near to every query and rank before the right one: hubs
(Radovanović et al., JMLR 2010). A bank of queries identifies them without labels. This is querybank
normalisation (Bogolin et al., arXiv 2112.12777) by the inverted softmax, in cosine similarities; texts that a
generator wrote about the images of an album can be the bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from zsqretrieval._util.checks import check_amounts, check_sequence, check_text
from zsqretrieval.encoders.checked import encode_texts
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.protocols import Encoder

SCALE = 20.0
"""Default inverse temperature; like the strength, chosen on Flickr8k dev (docs/rerank.md)."""

STRENGTH = 0.5
"""Default share of the hubness that is subtracted."""

_TOGETHER = 2**22  # similarities computed at once


@dataclass(frozen=True, slots=True, eq=False)
class QueryBank:
    """Vectors of queries that identify images near every query.

    The score of an image is ``similarity - strength * hubness``. Its hubness is
    log mean_b exp(scale * cos(b, image)) / scale over the queries b of the bank: the mean cosine similarity
    for a small scale, the largest for a large one. With strength 1 this orders images as the inverted softmax
    of arXiv 2112.12777 does.

    Attributes:
        vectors: float32 [b, dim], b >= 1; made unit length here.
        fingerprint: fingerprint of their encoder.
        scale: inverse temperature, > 0.
        strength: share of the hubness that is subtracted, >= 0.

    Raises:
        InvalidInputError: there is no vector, one is zero or not finite, or a number is out of range.
    """

    vectors: NDArray[np.float32]
    fingerprint: str
    scale: float = SCALE
    strength: float = STRENGTH

    def __post_init__(self) -> None:
        check_amounts(scale=self.scale, strength=self.strength)
        if self.scale == 0:
            raise InvalidInputError("scale must be above 0")
        given = np.asarray(self.vectors)
        if given.ndim != 2 or not len(given) or given.dtype.kind != "f":
            raise InvalidInputError(
                f"a bank needs the vectors of one question or more, float32 [b, dim], not {given.dtype} "
                f"{list(given.shape)}"
            )
        object.__setattr__(self, "vectors", _unit(given, "question of the bank"))

    @classmethod
    def from_texts(
        cls, encoder: Encoder, texts: Sequence[str], *, scale: float = SCALE, strength: float = STRENGTH
    ) -> Self:
        """Encode texts as a bank.

        Args:
            encoder: the encoder of the images.
            texts: one or more, similar to the queries to come.
            scale: inverse temperature, > 0.
            strength: share of the hubness that is subtracted.

        Raises:
            InvalidInputError: there is no text, one is empty, or a number is out of range.
        """
        check_sequence(texts, "texts")
        if not texts:
            raise InvalidInputError("a bank needs one text or more")
        for n, text in enumerate(texts):
            check_text(text, f"text {n} of the bank")
        return cls(encode_texts(encoder, texts), encoder.fingerprint, scale, strength)

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.vectors)

    def hubness(self, images: ArrayLike) -> NDArray[np.float64]:
        """Compute the hubness of images float32 [n, dim]: float64 [n], in [-1, 1].

        Raises:
            InvalidInputError: another dim, or a vector that is zero or not finite.
        """
        rows = np.asarray(images)
        if rows.ndim != 2 or rows.shape[1] != self.vectors.shape[1]:
            raise InvalidInputError(
                f"images must be float32 [n, {self.vectors.shape[1]}] to be compared with this bank, not "
                f"{rows.dtype} {list(rows.shape)}"
            )
        rows = _unit(rows, "image")
        found = np.empty(len(rows))
        step = max(_TOGETHER // len(self), 1)
        for start in range(0, len(rows), step):
            scaled = self.scale * (rows[start : start + step] @ self.vectors.T).astype(np.float64)
            highest = scaled.max(1)
            found[start : start + step] = highest + np.log(np.exp(scaled - highest[:, None]).mean(1))
        return found / self.scale

    def taken(self, images: ArrayLike) -> NDArray[np.float64]:
        """Strength times hubness of images float32 [n, dim]: float64 [n]; errors as :meth:`hubness`."""
        taken: NDArray[np.float64] = self.strength * self.hubness(images)
        return taken

    def normalized(self, similarities: ArrayLike, images: ArrayLike) -> NDArray[np.float64]:
        """Normalise cosine similarities [..., n] of queries and images float32 [n, dim].

        Returns float64 [..., n], higher is better, which are not cosines; errors as :meth:`hubness`.
        """
        corrected: NDArray[np.float64] = np.asarray(similarities, np.float64) - self.taken(images)
        return corrected


def _unit(vectors: NDArray[np.floating], what: str) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(wrong):
        raise InvalidInputError(f"{what} {wrong[0]} has a vector that is zero or not finite")
    unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return unit

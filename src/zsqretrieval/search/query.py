"""Queries: a question, an image, or a weighted sum of several.

    Query("a beach") - 0.5 * Query("people") + Query(Path("sunset.jpg"))

The first stage searches with the weighted sum of the unit vectors of the terms. The second stage scores every
text term by itself and adds the scores with the same weights; images and vectors play no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_numbers, check_text
from zsqretrieval.data.images import ImageLike, as_image, decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.types import Hit, Image

_LEAST = 1e-6
"""Smallest weight: beside one that is larger than its inverse, nothing is left of a term in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One part of a query."""

    weight: float
    content: str | Image | Hit | NDArray[np.float32]  # a question, an image, "more like this", a vector


@final
class Query:
    """A question, an image, a hit, a vector, or a weighted sum of several.

    Queries are added, subtracted, and multiplied by numbers; a plain text, path or hit may stand on one side.

    Args:
        content: a question (``str``); an image (a ``Path``, bytes, a PIL image or a record), decoded now; a
            hit, whose image is left out of the results; or a vector of the album's encoder, float [dim].

    Attributes:
        terms: the parts.

    Raises:
        InvalidInputError: the content is none of these, or a text is empty.
        ImageError: the image cannot be decoded.
    """

    __array_ufunc__ = None  # numbers of NumPy leave the multiplication to this class

    def __init__(self, content: QueryLike) -> None:
        self.terms: tuple[Term, ...]
        if isinstance(content, Query):
            self.terms = content.terms
            return
        if isinstance(content, str):
            check_text(content, "the question")
        elif isinstance(content, np.ndarray):
            content = _vector(content)
        elif not isinstance(content, Hit):
            content = query_image(content)
        self.terms = (Term(1.0, content),)

    @classmethod
    def _of(cls, terms: Sequence[Term]) -> Query:
        query = cls.__new__(cls)
        query.terms = tuple(terms)
        return query

    def __add__(self, other: QueryLike) -> Query:
        return Query._of([*self.terms, *Query(other).terms])

    def __radd__(self, other: QueryLike) -> Query:
        return Query(other) + self

    def __sub__(self, other: QueryLike) -> Query:
        return self + -Query(other)

    def __rsub__(self, other: QueryLike) -> Query:
        return Query(other) - self

    def __mul__(self, weight: float) -> Query:
        check_numbers(weight=weight)
        terms = [replace(term, weight=float(term.weight * weight)) for term in self.terms]
        if not all(_LEAST <= abs(term.weight) <= 1 / _LEAST for term in terms):
            raise InvalidInputError(
                f"the weight of a query must not be 0, below {_LEAST:g} or above {1 / _LEAST:g} in size; "
                "leave the term out"
            )
        return Query._of(terms)

    def __rmul__(self, weight: float) -> Query:
        return self * weight

    def __neg__(self) -> Query:
        return self * -1

    def __repr__(self) -> str:
        return f"Query({str(self)!r})"

    def __str__(self) -> str:
        """The query in words: the question itself, or ``a beach - 0.5 * people + sunset.jpg``."""
        parts: list[str] = []
        for term in self.terms:
            sign = "- " if term.weight < 0 else "+ " * bool(parts)
            factor = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} * "
            parts.append(f"{sign}{factor}{_name(term.content)}")
        return " ".join(parts)

    @property
    def texts(self) -> list[tuple[float, str]]:
        """Weights and questions of the text terms."""
        return [(term.weight, term.content) for term in self.terms if isinstance(term.content, str)]

    @property
    def question(self) -> str | None:
        """The text of a query that is one question; None for any other."""
        return self.texts[0][1] if len(self.terms) == 1 and self.texts else None


QueryLike: TypeAlias = "Query | ImageLike | Hit | NDArray[Any]"
"""What can be searched with; a ``str`` is always a question."""


def query_image(image: ImageLike) -> Image:
    """Decode as an album does on adding: an encoder may decode a large JPEG at reduced size by itself."""
    record = as_image(image)
    return Image(decode(record), record.source, max_pixels=record.max_pixels)


def _vector(values: NDArray[Any]) -> NDArray[np.float32]:
    length = np.linalg.norm(values.astype(np.float64)) if values.dtype.kind == "f" else np.nan
    if values.ndim != 1 or not (np.isfinite(length) and length > 0):
        raise InvalidInputError(
            "a query vector must be float [dim], finite and not zero (convert the pixels of an image with "
            f"PIL.Image.fromarray), not {values.dtype} {list(values.shape)}"
        )
    unit: NDArray[np.float32] = (values / length).astype(np.float32)
    return unit


def _name(content: str | Image | Hit | NDArray[np.float32]) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Image):
        return content.source
    return content.id if isinstance(content, Hit) else "<vector>"

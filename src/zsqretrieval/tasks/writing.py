"""What every task does with its input and with a generator: check the one, ask the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.images import ImageLike, as_image
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import read_texts, write_texts
from zsqretrieval.protocols import Generator
from zsqretrieval.types import Context, Image, ImageState

__all__ = ["Aggregate", "Pictures", "listed", "pictures", "scored", "texts_for", "written"]

Aggregate: TypeAlias = Literal["sum", "mean"]
"""A log-likelihood in nats, or that divided by its number of tokens."""

Pictures: TypeAlias = ImageLike | ImageState | Sequence[ImageLike | ImageState]
"""One image or several: paths, encoded bytes, PIL images, records, or states made by the generator."""


def pictures(images: Pictures) -> list[Image | ImageState]:
    """Describe one image or several, without opening any.

    Raises:
        InvalidInputError: there are none, or one is no image.
    """
    several = [*images] if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
    if not several:
        raise InvalidInputError("there are no images; give one or more")
    return [one if isinstance(one, ImageState) else as_image(one) for one in several]


def listed(texts: Sequence[str], what: str, *, least: int = 1) -> tuple[str, ...]:
    """Strip texts that belong together.

    Args:
        texts: the texts.
        what: what they are, in the plural, for the message.
        least: how few of them make sense.

    Raises:
        InvalidInputError: there are too few, or one of them is no text or an empty one.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidInputError(f"{what} must be a sequence of texts, not {texts!r}")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"{what} must be texts; number {position} is {type(text).__name__}")
        if not text.strip():
            raise InvalidInputError(f"{what} must say something; number {position} is {text!r}")
    if len(texts) < least:
        raise InvalidInputError(f"{len(texts)} {what} given; give at least {least}")
    return tuple(text.strip() for text in texts)


def texts_for(images: Sequence[object], texts: str | Sequence[str], what: str) -> tuple[str, ...]:
    """One text for every image: the same for all, or a list of as many.

    Raises:
        InvalidInputError: there are more or fewer of them, or one is no text or an empty one.
    """
    several = listed([texts] * len(images) if isinstance(texts, str) else texts, what)
    if len(several) != len(images):
        raise InvalidInputError(f"{len(several)} {what} for {len(images)} images; give one, or one per image")
    return several


def scored(
    generator: Generator,
    contexts: Sequence[Context],
    continuations: Sequence[str],
    *,
    aggregate: Aggregate = "sum",
    batch_size: int = 16,
) -> NDArray[np.float64]:
    """Log-likelihoods of n pairs in nats, float64 [n].

    Raises:
        InvalidInputError: there is no such aggregate.
        ZsqError: the generator gave too few or too many of them, or a number that is none.
    """
    if aggregate not in ("sum", "mean"):
        raise InvalidInputError(f"aggregate must be 'sum' or 'mean', not {aggregate!r}")
    read = read_texts(generator, contexts, continuations, batch_size=batch_size)
    return np.array([one.sum if aggregate == "sum" else one.mean for one in read], np.float64)


def written(
    generator: Generator, contexts: Sequence[Context], *, max_new_tokens: int, batch_size: int
) -> list[str]:
    """What the generator writes after each context, always taking the likeliest token.

    Raises:
        InvalidInputError: the generator writes none.
        ZsqError: it wrote too few or too many texts.
    """
    found = write_texts(generator, contexts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [text.strip() for (text,) in found]

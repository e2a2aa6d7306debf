"""Captions and answers by greedy decoding, and the argument checks that all tasks share.

image                  --"An image of"-------------------> caption
image, question        --"Question: {question} Answer:"--> answer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.images import ImageLike, as_image
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import write_texts
from zsqretrieval.generators.prompts import PROMPTS, Example, Prompt, few_shot
from zsqretrieval.protocols import Generator
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood

Aggregate: TypeAlias = Literal["sum", "mean"]
"""A log-likelihood in nats, or divided by its number of tokens."""

Pictures: TypeAlias = ImageLike | ImageState | Sequence[ImageLike | ImageState]
"""One image or several: paths, encoded bytes, PIL images, records, or the generator's cached features."""


def caption(
    generator: Generator,
    images: Pictures,
    *,
    examples: Sequence[Example] = (),
    prompt: Prompt = PROMPTS["captioning"],
    max_new_tokens: int = 32,
    batch_size: int = 16,
) -> list[str]:
    """Describe images.

    Args:
        generator: writes the captions.
        images: one image or n of them.
        examples: solved examples in front of each image (:mod:`zsqretrieval.tasks.few_shot`).
        prompt: takes one image and no texts.
        max_new_tokens: maximum length of a caption in tokens.
        batch_size: images computed together.

    Returns:
        n captions in the order of the images, by greedy decoding (Kosmos-1 used beam search with 5 beams).

    Raises:
        InvalidInputError: there are no images, the prompt takes anything else, or a limit is out of range.
        ImageError: an image cannot be decoded; names it.
    """
    contexts = [few_shot(examples, prompt.context(image)) for image in image_records(images)]
    return write(generator, contexts, max_new_tokens=max_new_tokens, batch_size=batch_size)


def answer(
    generator: Generator,
    images: Pictures,
    questions: str | Sequence[str],
    *,
    examples: Sequence[Example] = (),
    prompt: Prompt = PROMPTS["vqa"],
    max_new_tokens: int = 16,
    batch_size: int = 16,
) -> list[str]:
    """Answer questions about images in free text (visual question answering).

    ``questions`` is one question for all images, or one per image; ``prompt`` takes one image and the text
    ``question``. Otherwise as :func:`caption`.

    Raises:
        InvalidInputError, ImageError: as :func:`caption`; or a question is empty, or their number is wrong.
    """
    records = image_records(images)
    contexts = [
        few_shot(examples, prompt.context(image, question=question))
        for image, question in zip(records, text_per_image(records, questions, "questions"), strict=True)
    ]
    return write(generator, contexts, max_new_tokens=max_new_tokens, batch_size=batch_size)


# --- shared by all tasks ----------------------------------------------------------------------------------


def image_records(images: Pictures) -> list[Image | ImageState]:
    """One image or several as records, not opened; an InvalidInputError if there are none."""
    several = [*images] if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
    if not several:
        raise InvalidInputError("there are no images; give one or more")
    return [one if isinstance(one, ImageState) else as_image(one) for one in several]


def check_texts(texts: Sequence[str], what: str, *, least: int = 1) -> tuple[str, ...]:
    """The stripped texts, at least ``least`` and none empty; ``what`` is their plural noun for the error."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidInputError(f"{what} must be a sequence of texts, not {texts!r}")
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InvalidInputError(f"{what} must be non-empty strings; number {position} is {text!r}")
    if len(texts) < least:
        raise InvalidInputError(f"{len(texts)} {what} given; give at least {least}")
    return tuple(text.strip() for text in texts)


def text_per_image(images: Sequence[object], texts: str | Sequence[str], what: str) -> tuple[str, ...]:
    """One text for each image: the same for all, or a list of as many; checked by :func:`check_texts`."""
    several = check_texts([texts] * len(images) if isinstance(texts, str) else texts, what)
    if len(several) != len(images):
        raise InvalidInputError(f"{len(several)} {what} for {len(images)} images; give one, or one per image")
    return several


def write(
    generator: Generator, contexts: Sequence[Context], *, max_new_tokens: int, batch_size: int
) -> list[str]:
    """Continue each context by greedy decoding; arguments and errors as the generator's ``generate``."""
    found = write_texts(generator, contexts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [text.strip() for (text,) in found]


def aggregated(found: Sequence[LogLikelihood], aggregate: Aggregate) -> NDArray[np.float64]:
    """N log-likelihoods in nats, float64 [n]; with "mean" per token."""
    if aggregate not in ("sum", "mean"):
        raise InvalidInputError(f"aggregate must be 'sum' or 'mean', not {aggregate!r}")
    return np.array([one.sum if aggregate == "sum" else one.mean for one in found], np.float64)

"""Explanations of hits: the generator's answer, and which words of the question the image explains.

The gain of a word is log P(word | image, words before) - log P(word | words before) in nats. The second term
is the mean over null images (:func:`~zsqretrieval.search.priors.null_images`), as in
:class:`~zsqretrieval.search.priors.Prior`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import sound
from zsqretrieval.album.candidates import Viewer, parts_by_size
from zsqretrieval.album.catalog import Record
from zsqretrieval.data.sources import Reopener
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.checked import read_each, write_each
from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.search.priors import null_images
from zsqretrieval.tasks.english import first_line
from zsqretrieval.types import Explanation, Hit, Image, ImageState, LogLikelihood

SAYS = 0.5
"""Smallest gain, in nats and of either sign, that pages and the command line show beside a word."""

_MAX_NEW_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a question."""

    text: str  # in the generator's tokens
    gain: float  # in nats; negative where the image makes the word less likely


def explain_hits(
    viewer: Viewer,
    files: Reopener,
    question: str,
    hits: Sequence[Hit],
    records: Sequence[Record],
    prompt: Prompt,
) -> tuple[Hit, ...]:
    """Add explanations to n hits of n records.

    None for an image that cannot be opened or that the generator cannot take.
    """
    explained: list[Hit] = []
    for part in parts_by_size(records):
        with viewer.showing(records[part], files) as (generator, shown):
            found = explain(generator, question, shown, prompt=prompt)
        explained += [replace(hit, explanation=one) for hit, one in zip(hits[part], found, strict=True)]
    return tuple(explained)


def explain(
    generator: Generator,
    question: str,
    images: Sequence[Image | ImageState | ImageError],
    *,
    prompt: Prompt = PROMPTS["question"],
    answer_prompt: Prompt = PROMPTS["vqa"],
    batch_size: int = 16,
) -> list[Explanation | None]:
    """Explain images for a question.

    Args:
        generator: the language model.
        question: the query.
        images: n images, their cached features, or errors in the place of images that cannot be opened.
        prompt: text before the question; takes one image.
        answer_prompt: text before the answer; takes one image and the field ``question``.
        batch_size: images computed together.

    Returns:
        n explanations, in the order given; None for an image that cannot be opened or that the generator
        cannot take.

    Raises:
        InvalidInputError: the question is too long for the generator, or the generator writes no text.
    """
    able = [image for image in images if not isinstance(image, ImageError)]
    if not able:
        return [None] * len(images)
    nothing, text = null_images(), question.strip()
    contexts = [prompt.context(image) for image in (*nothing, *able)]
    read = read_each(generator, contexts, [f" {text}"] * len(contexts), batch_size=batch_size)
    blank = sound(read[: len(nothing)], InvalidInputError)
    without = _mixed(np.stack([one.token_log_probs for one in blank]))
    asking = [answer_prompt.context(image, question=text) for image in able]
    answers = write_each(generator, asking, max_new_tokens=_MAX_NEW_TOKENS, batch_size=batch_size)
    found = zip(read[len(nothing) :], answers, strict=True)
    return [None if isinstance(one, ImageError) else _explanation(*next(found), without) for one in images]


def _explanation(
    read: LogLikelihood | InvalidInputError,
    answer: list[str] | InvalidInputError,
    without: NDArray[np.float32],
) -> Explanation | None:
    if isinstance(read, ImageError) or isinstance(answer, ImageError):
        return None
    (one,), ((text,),) = sound([read], InvalidInputError), sound([answer], InvalidInputError)
    return Explanation(first_line(text), one.tokens, one.token_log_probs, without)


def _mixed(token_log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over conditions, token by token: nats, [conditions, T] -> [T].

    Conditions are weighted by their probability of the tokens before, so that the sum over tokens is the
    logarithm of the mean probability of the whole text, as in :func:`~zsqretrieval.search.priors.log_prior`.
    """
    so_far = np.cumsum(token_log_probs, axis=1, dtype=np.float64)
    mixed = np.logaddexp.reduce(so_far, axis=0) - math.log(len(so_far))  # [T]
    return np.asarray(np.diff(mixed, prepend=0.0), np.float32)


def words(explanation: Explanation) -> list[Word]:
    """Group the tokens of an explained question into words, and add up their gains.

    A word begins at the first token and at every token that begins with a space. If no token does, each token
    is a word.
    """
    spaced = any(token[:1].isspace() for token in explanation.tokens)
    found: list[Word] = []
    for token, gain in zip(explanation.tokens, explanation.gain.tolist(), strict=True):
        if found and spaced and not token[:1].isspace():
            found[-1] = Word(found[-1].text + token.strip(), found[-1].gain + gain)
        else:
            found.append(Word(token.strip(), gain))
    return found

"""Why an image was found: its answer to the question, and which words of the question it explains.

A word is explained by an image when it is likelier with the image than without, by
log P(word | image, words before) - log P(word | words before) in nats. Without an image means given pictures
of nothing (:func:`~zsqretrieval.search.priors.null_images`), as for a :class:`~zsqretrieval.search.priors.Prior`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.album.candidates import Viewer
from zsqretrieval.album.catalog import Record
from zsqretrieval.data.reopen import Reopener
from zsqretrieval.errors import ImageError
from zsqretrieval.generators.checked import read_texts, write_texts
from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.search.priors import null_images
from zsqretrieval.tasks.english import first_line
from zsqretrieval.types import Explanation, Hit, Image, ImageState

__all__ = ["SAYS", "Word", "explain", "explain_hits", "words"]

SAYS = 0.5
"""Nats from which on a word counts as explained by an image, or spoken against, where people read."""

_MAX_NEW_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a question.

    Attributes:
        text: as the generator reads it.
        gain: how much likelier the image makes it, in nats; below 0 where the image speaks against it.
    """

    text: str
    gain: float


def explain_hits(
    viewer: Viewer,
    question: str,
    hits: Sequence[Hit],
    records: Sequence[Record],
    prompt: Prompt = PROMPTS["question"],
    *,
    batch_size: int = 16,
) -> tuple[Hit, ...]:
    """Explain hits; one whose image cannot be shown has no explanation.

    Args:
        viewer: shows the images to the generator.
        question: what was searched.
        hits: n hits.
        records: their images, n.
        prompt: what the question continues.
        batch_size: images shown together.

    Raises:
        InvalidInputError: the question is too long for the generator, or it writes no answers.
    """
    explained: list[Hit] = []
    with Reopener() as files:
        for start in range(0, len(hits), batch_size):
            some = hits[start : start + batch_size]
            with viewer.showing(records[start : start + batch_size], files) as (generator, shown):
                images = [one for one in shown if not isinstance(one, ImageError)]
                found = iter(explain(generator, question, images, prompt=prompt, batch_size=batch_size))
            explained += [
                hit if isinstance(one, ImageError) else replace(hit, explanation=next(found))
                for hit, one in zip(some, shown, strict=True)
            ]
    return tuple(explained)


def explain(
    generator: Generator,
    question: str,
    images: Sequence[Image | ImageState],
    *,
    prompt: Prompt = PROMPTS["question"],
    answer_prompt: Prompt = PROMPTS["vqa"],
    batch_size: int = 16,
) -> list[Explanation]:
    """Let images answer a question and say which of its words they explain.

    Args:
        generator: reads them.
        question: the question.
        images: n images, or their states.
        prompt: what the question continues; takes one image.
        answer_prompt: what the answer continues; takes one image and the text ``question``.
        batch_size: images read together.

    Returns:
        n explanations, in the order given.

    Raises:
        InvalidInputError: the question is too long for the generator, or it writes no answers.
        ImageError: an image cannot be decoded; names it.
        ZsqError: the generator's numbers are broken; names the image.
    """
    if not images:
        return []
    nothing = null_images()
    asked = f" {question.strip()}"
    shown = [*nothing, *images]
    read = read_texts(
        generator, [prompt.context(image) for image in shown], [asked] * len(shown), batch_size=batch_size
    )
    without = _mixed(np.stack([one.token_log_probs for one in read[: len(nothing)]]))
    answers = write_texts(
        generator,
        [answer_prompt.context(image, question=question.strip()) for image in images],
        max_new_tokens=_MAX_NEW_TOKENS,
        batch_size=batch_size,
    )
    return [
        Explanation(first_line(answer), one.tokens, one.token_log_probs, without)
        for one, (answer,) in zip(read[len(nothing) :], answers, strict=True)
    ]


def _mixed(token_log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Token by token, the even mixture of several conditions: nats, [conditions, T] -> [T].

    A condition counts as much as it has foreseen so far, so that the sum over tokens is the logarithm of the
    mean probability of the whole text: that of :func:`~zsqretrieval.search.priors.log_prior`.
    """
    so_far = np.cumsum(token_log_probs, axis=1, dtype=np.float64)
    mixed = np.logaddexp.reduce(so_far, axis=0) - math.log(len(so_far))  # [T]
    return np.asarray(np.diff(mixed, prepend=0.0), np.float32)


def words(explanation: Explanation) -> list[Word]:
    """The words of an explained question, with the sum of what the image explains of their tokens.

    A token that begins with a space begins a word, and so does the first. Where no token begins with a space,
    the tokenizer tells nothing of words, and each token is one.
    """
    spaced = any(token[:1].isspace() for token in explanation.tokens)
    found: list[Word] = []
    for token, gain in zip(explanation.tokens, explanation.gain.tolist(), strict=True):
        if found and spaced and not token[:1].isspace():
            found[-1] = Word(found[-1].text + token.strip(), found[-1].gain + gain)
        else:
            found.append(Word(token.strip(), gain))
    return found

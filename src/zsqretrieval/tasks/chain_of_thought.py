"""Multimodal chain of thought: describe the picture first, then answer with the description in view.

Two passes, as in Kosmos-1 (arXiv 2302.14045, section 4.5): the rationale that the first one writes stands
between the image and the question of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.choice import Choice, choose
from zsqretrieval.tasks.writing import Aggregate, Pictures, pictures, texts_for, written
from zsqretrieval.types import Context

__all__ = ["Reasoned", "answer_step_by_step", "choose_step_by_step"]


@dataclass(frozen=True, slots=True)
class Reasoned:
    """An answer, and what was written on the way to it.

    Attributes:
        rationale: the description of the first pass; may be empty.
        answer: the text of the second.
    """

    rationale: str
    answer: str


def answer_step_by_step(
    generator: Generator,
    images: Pictures,
    questions: str | Sequence[str],
    *,
    prompt: Prompt = PROMPTS["chain_of_thought"],
    answer_prompt: Prompt = PROMPTS["chain_of_thought_answer"],
    rationale_tokens: int = 64,
    max_new_tokens: int = 16,
    batch_size: int = 16,
) -> list[Reasoned]:
    """Answer questions about images in free text, in two passes.

    Args:
        generator: writes.
        images: one image or n of them.
        questions: one question for all images, or one for each.
        prompt: of the first pass; takes one image and no texts.
        answer_prompt: of the second; takes one image and the texts ``rationale`` and ``question``.
        rationale_tokens: length limit of a rationale, in tokens.
        max_new_tokens: length limit of an answer, in tokens.
        batch_size: images that are computed together.

    Returns:
        n rationales and answers; the likeliest token is always taken.

    Raises:
        InvalidInputError: there are no images, a question is no text or empty, the numbers of images and
            questions differ, a prompt takes anything else, or a limit is out of range.
        ImageError: an image cannot be decoded; names it.
    """
    rationales, contexts = _thought(
        generator, images, questions, prompt, answer_prompt, rationale_tokens, batch_size
    )
    answers = written(generator, contexts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [Reasoned(*pair) for pair in zip(rationales, answers, strict=True)]


def choose_step_by_step(
    generator: Generator,
    images: Pictures,
    questions: str | Sequence[str],
    options: Sequence[str],
    *,
    prompt: Prompt = PROMPTS["chain_of_thought"],
    answer_prompt: Prompt = PROMPTS["chain_of_thought_answer"],
    rationale_tokens: int = 64,
    aggregate: Aggregate = "sum",
    batch_size: int = 16,
) -> list[Choice]:
    """Choose one of given answers, in two passes.

    Args:
        generator: writes the rationale, then reads it.
        images: one image or n of them.
        questions: one question for all images, or one for each.
        options: two or more different answers.
        prompt: of the first pass; takes one image and no texts.
        answer_prompt: of the second; takes one image and the texts ``rationale`` and ``question``.
        rationale_tokens: length limit of a rationale, in tokens.
        aggregate: ``"sum"`` of the log-probabilities of an option's tokens, or their ``"mean"``.
        batch_size: what is computed together.

    Returns:
        n choices among the options.

    Raises:
        InvalidInputError, ImageError: as :func:`answer_step_by_step`, and as
            :func:`~zsqretrieval.tasks.choice.choose`.
    """
    _, contexts = _thought(generator, images, questions, prompt, answer_prompt, rationale_tokens, batch_size)
    return choose(generator, contexts, options, aggregate=aggregate, batch_size=batch_size)


def _thought(
    generator: Generator,
    images: Pictures,
    questions: str | Sequence[str],
    prompt: Prompt,
    answer_prompt: Prompt,
    rationale_tokens: int,
    batch_size: int,
) -> tuple[list[str], list[Context]]:
    """The rationales, and the contexts of the second pass."""
    seen = pictures(images)
    asked = texts_for(seen, questions, "questions")
    rationales = written(
        generator,
        [prompt.context(image) for image in seen],
        max_new_tokens=rationale_tokens,
        batch_size=batch_size,
    )
    return rationales, [
        answer_prompt.context(image, rationale=rationale, question=question)
        for image, rationale, question in zip(seen, rationales, asked, strict=True)
    ]

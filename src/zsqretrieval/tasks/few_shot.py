"""Prompting techniques without training: solved examples in front of a task, and chains of thought.

A multimodal chain of thought has two passes, as in Kosmos-1 (arXiv 2302.14045, section 4.5): the generator
writes a rationale, which then stands between the image and the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import PROMPTS, Example, Prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.choice import Choice, choose
from zsqretrieval.tasks.writing import (
    Aggregate,
    Pictures,
    check_texts,
    image_records,
    text_per_image,
    write,
)
from zsqretrieval.types import Context


def labelled(
    images: Pictures, labels: Sequence[str], *, prompt: Prompt = PROMPTS["classification"]
) -> list[Example]:
    """Examples for classification, or with its prompt for captioning, in the order given.

    ``labels`` are the class names or captions of n images; ``prompt`` is that of the task, which takes one
    image and no texts.

    Raises:
        InvalidInputError: there are no images, the numbers differ, or a label is empty.
    """
    records = image_records(images)
    names = text_per_image(records, check_texts(labels, "labels"), "labels")
    return [Example(prompt.context(image), f" {name}") for image, name in zip(records, names, strict=True)]


def k_shot(
    images: Pictures,
    labels: Sequence[str],
    k: int,
    *,
    seed: int = 0,
    prompt: Prompt = PROMPTS["classification"],
) -> list[Example]:
    """Draw k examples of every label, in a random order, so that neither number nor order is a hint.

    ``k`` may be 0; the other arguments are as for :func:`labelled`.

    Raises:
        InvalidInputError: as :func:`labelled`; k is negative, or a label has fewer than k images.
    """
    if k < 0:
        raise InvalidInputError(f"k must not be negative, but is {k}")
    pool = labelled(images, labels, prompt=prompt)
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    for name in sorted({example.answer for example in pool}):
        members = [position for position, example in enumerate(pool) if example.answer == name]
        if len(members) < k:
            raise InvalidInputError(
                f"k={k}, but the label {name.strip()!r} has {len(members)} images; give more, or a smaller k"
            )
        drawn += rng.permutation(members)[:k].tolist()
    return [pool[position] for position in rng.permutation(np.array(drawn, np.int64)).tolist()]


def answered(
    images: Pictures,
    questions: str | Sequence[str],
    answers: Sequence[str],
    *,
    prompt: Prompt = PROMPTS["vqa"],
) -> list[Example]:
    """Examples for visual question answering, in the order given.

    ``questions`` is one question for all images, or one per image; ``prompt`` takes one image and the text
    ``question``.

    Raises:
        InvalidInputError: there are no images, the numbers differ, or a question or answer is empty.
    """
    records = image_records(images)
    asked = text_per_image(records, questions, "questions")
    replies = text_per_image(records, check_texts(answers, "answers"), "answers")
    return [
        Example(prompt.context(image, question=question), f" {reply}")
        for image, question, reply in zip(records, asked, replies, strict=True)
    ]


# --- chain of thought -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reasoned:
    """An answer, and the rationale of the first pass, which may be empty."""

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
    """Answer questions about n images in free text, in two passes of greedy decoding.

    The rationale, at most ``rationale_tokens`` long, follows after ``prompt``, which takes one image and no
    texts; the answer after ``answer_prompt``, which takes one image and the texts ``rationale`` and
    ``question``. Otherwise as :func:`~zsqretrieval.tasks.writing.answer`.
    """
    rationales, contexts = _first_pass(
        generator, images, questions, prompt, answer_prompt, rationale_tokens, batch_size
    )
    answers = write(generator, contexts, max_new_tokens=max_new_tokens, batch_size=batch_size)
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
    """Choose one of given answers for each of n images, in two passes.

    ``options`` and ``aggregate`` are as for :func:`~zsqretrieval.tasks.choice.choose`, the other arguments as
    for :func:`answer_step_by_step`, the errors as for both.
    """
    _, contexts = _first_pass(
        generator, images, questions, prompt, answer_prompt, rationale_tokens, batch_size
    )
    return choose(generator, contexts, options, aggregate=aggregate, batch_size=batch_size)


def _first_pass(
    generator: Generator,
    images: Pictures,
    questions: str | Sequence[str],
    prompt: Prompt,
    answer_prompt: Prompt,
    rationale_tokens: int,
    batch_size: int,
) -> tuple[list[str], list[Context]]:
    """The rationales, and the contexts of the second pass."""
    records = image_records(images)
    asked = text_per_image(records, questions, "questions")
    contexts = [prompt.context(image) for image in records]
    rationales = write(generator, contexts, max_new_tokens=rationale_tokens, batch_size=batch_size)
    return rationales, [
        answer_prompt.context(image, rationale=rationale, question=question)
        for image, rationale, question in zip(records, rationales, asked, strict=True)
    ]

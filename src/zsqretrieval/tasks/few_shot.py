"""Solved examples to show in front of a task, where nothing is trained: the model reads and imitates them.

The examples go into :func:`~zsqretrieval.tasks.recognition.classify`,
:func:`~zsqretrieval.tasks.vqa.answer` and :func:`~zsqretrieval.tasks.captioning.caption` as ``examples=``,
made with the same prompt as the task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import PROMPTS, Example, Prompt
from zsqretrieval.tasks.writing import Pictures, listed, pictures, texts_for

__all__ = ["answered", "k_shot", "labelled"]


def labelled(
    images: Pictures, labels: Sequence[str], *, prompt: Prompt = PROMPTS["classification"]
) -> list[Example]:
    """Examples of classification, or of captioning with its prompt.

    Args:
        images: one image or n of them.
        labels: the n names or captions.
        prompt: that of the task; takes one image and no texts.

    Returns:
        n examples, in the order given.

    Raises:
        InvalidInputError: there are no images, the numbers differ, or a label is no text or an empty one.
    """
    seen = pictures(images)
    names = texts_for(seen, listed(labels, "labels"), "labels")
    return [Example(prompt.context(image), f" {name}") for image, name in zip(seen, names, strict=True)]


def k_shot(
    images: Pictures,
    labels: Sequence[str],
    k: int,
    *,
    seed: int = 0,
    prompt: Prompt = PROMPTS["classification"],
) -> list[Example]:
    """Draw k examples of every label, in a random order, so that neither number nor order gives a hint.

    Args:
        images: n images to draw from.
        labels: their names.
        k: examples per label; 0 gives none.
        seed: makes the draw repeatable.
        prompt: that of the task; takes one image and no texts.

    Returns:
        k examples per label.

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
    """Examples of visual question answering.

    Args:
        images: one image or n of them.
        questions: one question for all images, or one for each.
        answers: the n answers.
        prompt: that of the task; takes one image and the text ``question``.

    Returns:
        n examples, in the order given.

    Raises:
        InvalidInputError: there are no images, the numbers differ, or a question or answer is no text or
            an empty one.
    """
    seen = pictures(images)
    asked = texts_for(seen, questions, "questions")
    given = texts_for(seen, listed(answers, "answers"), "answers")
    return [
        Example(prompt.context(image, question=question), f" {reply}")
        for image, question, reply in zip(seen, asked, given, strict=True)
    ]

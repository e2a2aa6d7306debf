"""Visual question answering: an image, a question, and "Answer:" continued."""

from __future__ import annotations

from collections.abc import Sequence

from zsqretrieval.generators.prompts import PROMPTS, Example, Prompt, few_shot
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.writing import Pictures, pictures, texts_for, written

__all__ = ["answer"]


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
    """Answer questions about images in free text.

    Args:
        generator: writes.
        images: one image or n of them.
        questions: one question for all images, or one for each.
        examples: solved examples that stand in front of each question;
            :func:`zsqretrieval.tasks.few_shot.answered` makes them.
        prompt: takes one image and the text ``question``.
        max_new_tokens: length limit of an answer, in tokens.
        batch_size: questions that are answered together.

    Returns:
        n answers, in the order of the images; the likeliest token is always taken.

    Raises:
        InvalidInputError: there are no images, a question is no text or empty, the numbers of images and
            questions differ, the prompt takes anything else, or a limit is out of range.
        ImageError: an image cannot be decoded; names it.
    """
    seen = pictures(images)
    asked = texts_for(seen, questions, "questions")
    contexts = [
        few_shot(examples, prompt.context(image, question=question))
        for image, question in zip(seen, asked, strict=True)
    ]
    return written(generator, contexts, max_new_tokens=max_new_tokens, batch_size=batch_size)

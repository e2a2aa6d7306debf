"""Captioning: an image, and "An image of" continued."""

from __future__ import annotations

from collections.abc import Sequence

from zsqretrieval.generators.prompts import PROMPTS, Example, Prompt, few_shot
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.writing import Pictures, pictures, written

__all__ = ["caption"]


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
        generator: writes.
        images: one image or n of them.
        examples: solved examples that stand in front of each image.
        prompt: what the caption continues; takes one image and no texts.
        max_new_tokens: length limit of a caption, in tokens.
        batch_size: images that are described together.

    Returns:
        n captions, in the order of the images; the likeliest token is always taken (Kosmos-1 searched with
        a beam of 5).

    Raises:
        InvalidInputError: there are no images, the prompt takes anything else, or a limit is out of range.
        ImageError: an image cannot be decoded; names it.
    """
    contexts = [few_shot(examples, prompt.context(image)) for image in pictures(images)]
    return written(generator, contexts, max_new_tokens=max_new_tokens, batch_size=batch_size)

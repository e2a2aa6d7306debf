"""Zero-shot recognition: which class name is the likeliest after the image, with or without a description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import PROMPTS, Example, Prompt, few_shot
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.choice import Choice, choose
from zsqretrieval.tasks.writing import Aggregate, Pictures, listed, pictures

__all__ = ["classify", "recognize"]


def classify(
    generator: Generator,
    images: Pictures,
    classes: Sequence[str],
    *,
    examples: Sequence[Example] = (),
    prompt: Prompt = PROMPTS["classification"],
    aggregate: Aggregate = "sum",
    batch_size: int = 16,
) -> list[Choice]:
    """Recognise what images show by the names of the classes alone.

    Args:
        generator: reads.
        images: one image or n of them.
        classes: two or more different names.
        examples: solved examples that stand in front of each image;
            :func:`zsqretrieval.tasks.few_shot.k_shot` draws them.
        prompt: what the name continues; takes one image and no texts.
        aggregate: ``"sum"`` of the log-probabilities of a name's tokens, or their ``"mean"``.
        batch_size: pairs of image and class that are computed together.

    Returns:
        n choices among the classes.

    Raises:
        InvalidInputError: there are no images, too few classes, one given twice, one that is no text or an
            empty one; or the prompt takes anything else.
        ImageError: an image cannot be decoded; names it.
    """
    contexts = [few_shot(examples, prompt.context(image)) for image in pictures(images)]
    return choose(generator, contexts, classes, aggregate=aggregate, batch_size=batch_size)


def recognize(
    generator: Generator,
    images: Pictures,
    descriptions: Mapping[str, str],
    *,
    category: str,
    prompt: Prompt = PROMPTS["recognition"],
    aggregate: Aggregate = "sum",
    batch_size: int = 16,
) -> list[Choice]:
    """Recognise what images show after reading in words what tells the classes apart.

    Kosmos-1 was shown ``three toed woodpecker: It has black and white stripes ...`` and the like for two
    classes, then asked for the name (arXiv 2302.14045, section 4.6).

    Args:
        generator: reads.
        images: one image or n of them.
        descriptions: the name of each of two or more classes, and the words that describe it; they are
            read in this order, as lines ``name: words``.
        category: what the classes have in common ("woodpecker").
        prompt: takes one image and the texts ``descriptions`` and ``category``.
        aggregate: ``"sum"`` of the log-probabilities of a name's tokens, or their ``"mean"``.
        batch_size: pairs of image and class that are computed together.

    Returns:
        n choices among the classes.

    Raises:
        InvalidInputError: there are no images, too few classes, a name, description or category that is no
            text or an empty one; or the prompt takes anything else.
        ImageError: an image cannot be decoded; names it.
    """
    if not isinstance(descriptions, Mapping):
        raise InvalidInputError(
            f"descriptions must map names of classes to words, not {type(descriptions).__name__}; "
            "classify() takes names alone"
        )
    names = listed([*descriptions], "classes", least=2)
    words = listed([*descriptions.values()], "descriptions")
    (common,) = listed([category], "categories")
    lines = "\n".join(f"{name}: {text}" for name, text in zip(names, words, strict=True))
    contexts = [prompt.context(image, descriptions=lines, category=common) for image in pictures(images)]
    return choose(generator, contexts, names, aggregate=aggregate, batch_size=batch_size)

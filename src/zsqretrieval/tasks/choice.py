"""Closed questions: choose among given texts by their likelihood.

contexts, options --generator--> log P(option | context)  float64 [n, options] --> Choice per context
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import read_texts
from zsqretrieval.generators.prompts import PROMPTS, Example, Prompt, few_shot
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.accuracy import Accuracy
from zsqretrieval.tasks.writing import Aggregate, Pictures, aggregated, check_texts, image_records
from zsqretrieval.types import Context

TIE = 1e-5
"""Scores closer than this, in nats, are a tie: rounding in float32 may move a score by as much."""

SENTIMENT_QUESTION = "what is the sentiment of the opinion?"
"""Kosmos-1's question about a text in a picture."""

SENTIMENTS = ("positive", "negative")
"""Its answers."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The scores of several options.

    Attributes:
        options: C different texts, in the order given.
        scores: float64 [C], log P(option | context) in nats, or per token with ``aggregate="mean"``.
    """

    options: tuple[str, ...]
    scores: NDArray[np.float64]

    @property
    def best(self) -> str | None:
        """The option with the highest score; None in a tie."""
        position = single_best(self.scores)
        return None if position is None else self.options[position]

    @property
    def posterior(self) -> NDArray[np.float64]:
        """P(option | context, one option is right), float64 [C], with a uniform prior; the sum is 1.

        Of means it is the softmax, not a probability.
        """
        from scipy.special import softmax  # slow to import

        return np.asarray(softmax(self.scores))

    @property
    def margin(self) -> float:
        """The difference between the highest score and the next, in nats."""
        second, first = np.sort(self.scores)[-2:]
        return float(first - second)


def choose(
    generator: Generator,
    contexts: Sequence[Context],
    options: Sequence[str],
    *,
    aggregate: Aggregate = "sum",
    batch_size: int = 16,
) -> list[Choice]:
    """Score every option as the continuation of every context.

    Args:
        generator: scores the options.
        contexts: n contexts; an option follows after a space.
        options: two or more different texts.
        aggregate: ``"sum"`` takes log P(option | context), which favours options of few tokens; ``"mean"``
            divides by the number of tokens, which favours long options, whose later tokens are predictable.
        batch_size: pairs of context and option computed together.

    Returns:
        n choices, in the order of the contexts.

    Raises:
        InvalidInputError: there are fewer than two options, an empty one, or two equal ones, also if only
            the generator's tokenizer makes them equal; or a context with an option is too long.
        ImageError: an image cannot be decoded; names it.
        ZsqError: no likelihood is finite.
    """
    names = check_texts(options, "options", least=2)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(f"the option {repeated[0]!r} is given twice; every option must differ")
    found = read_texts(
        generator,
        [context for context in contexts for _ in names],
        [f" {name}" for _ in contexts for name in names],
        batch_size=batch_size,
    )
    tokens: dict[tuple[str, ...], str] = {}
    for name, one in zip(names, found, strict=False):
        if (same := tokens.setdefault(one.tokens, name)) != name:
            raise InvalidInputError(
                f"the options {same!r} and {name!r} are the same tokens for this generator; every option "
                "must differ"
            )
    return [Choice(names, row) for row in aggregated(found, aggregate).reshape(-1, len(names))]


def single_best(scores: NDArray[np.float64]) -> int | None:
    """The position of the highest score; None when another is within :data:`TIE` of it."""
    near = np.flatnonzero(scores.max() - scores <= TIE)
    return int(near[0]) if len(near) == 1 else None


def count_correct(choices: Sequence[Choice], answers: Sequence[str]) -> Accuracy:
    """Count the choices whose best option is the right one; a tie is wrong.

    Raises:
        InvalidInputError: there are no choices or not one answer each, their options differ, or an answer is
            not an option.
    """
    if len(choices) != len(answers):
        raise InvalidInputError(f"{len(choices)} choices for {len(answers)} answers; give one answer each")
    if not choices:
        raise InvalidInputError("there are no choices to count; give one or more")
    options = choices[0].options
    for position, (choice, answer) in enumerate(zip(choices, answers, strict=True)):
        if choice.options != options:
            raise InvalidInputError(
                f"choice {position} is among {choice.options}, the first among {options}; count them apart"
            )
        if answer not in options:
            raise InvalidInputError(f"answer {position} is {answer!r}, which is not one of {options}")
    correct = sum(choice.best == answer for choice, answer in zip(choices, answers, strict=True))
    return Accuracy(correct, len(choices), 1 / len(options))


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
    """Classify n images by the names of the classes (zero-shot classification).

    ``examples`` stand in front of each image, as :func:`~zsqretrieval.tasks.few_shot.k_shot` draws them;
    ``prompt`` takes one image and no texts. Otherwise as :func:`choose`.

    Raises:
        InvalidInputError, ImageError, ZsqError: as :func:`choose`; or there are no images, or the prompt
            takes anything else.
    """
    contexts = [few_shot(examples, prompt.context(image)) for image in image_records(images)]
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
    """Classify n images by descriptions of the classes, which stand in front of the image.

    Kosmos-1 was shown ``three toed woodpecker: It has black and white stripes ...`` and the like for two
    classes, then asked for the name (arXiv 2302.14045, section 4.6). ``category`` is the common name of the
    classes ("woodpecker"), and ``prompt`` takes one image and the texts ``descriptions`` (lines of ``name:
    description``) and ``category``. Otherwise as :func:`choose`.

    Raises:
        InvalidInputError, ImageError, ZsqError: as :func:`classify`; or a description or the category is
            empty.
    """
    if not isinstance(descriptions, Mapping):
        raise InvalidInputError(
            f"descriptions must map class names to descriptions, not {type(descriptions).__name__}; "
            "classify() takes names alone"
        )
    names = check_texts([*descriptions], "classes", least=2)
    words = check_texts([*descriptions.values()], "descriptions")
    (common,) = check_texts([category], "categories")
    lines = "\n".join(f"{name}: {text}" for name, text in zip(names, words, strict=True))
    contexts = [prompt.context(image, descriptions=lines, category=common) for image in image_records(images)]
    return choose(generator, contexts, names, aggregate=aggregate, batch_size=batch_size)


def classify_sentiment(
    generator: Generator,
    images: Pictures,
    *,
    question: str = SENTIMENT_QUESTION,
    labels: Sequence[str] = SENTIMENTS,
    prompt: Prompt = PROMPTS["vqa"],
    batch_size: int = 16,
) -> list[Choice]:
    """Classify the sentiment of texts in n pictures, without OCR, by the answer to a question.

    On Rendered SST-2, film reviews drawn as images (:func:`~zsqretrieval.tasks.render.render_text` draws
    such), Kosmos-1 reached 67.1 % of two classes, and 72.9 % with a chain of thought (arXiv 2302.14045,
    section 4.3), for which :func:`~zsqretrieval.tasks.few_shot.choose_step_by_step` takes the same question
    and labels. Errors as for :func:`classify`.
    """
    (asked,) = check_texts([question], "questions")
    contexts = [prompt.context(image, question=asked) for image in image_records(images)]
    return choose(generator, contexts, labels, batch_size=batch_size)

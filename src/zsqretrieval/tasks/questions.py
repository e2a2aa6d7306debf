"""Questions that an image answers, written by a generator that nobody trained for it: a prompt, and sampling.

What doc2query does for passages (Nogueira et al., arXiv 1904.08375) and PreMIR for pages (arXiv 2508.17079):
more is sampled than wanted, what says the same is said once, and the likeliest of the rest are given. Which
of them are worth keeping only a search can tell (:mod:`zsqretrieval.tasks.album_questions`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from zsqretrieval._util.checks import check_amounts, check_counts, check_sequence, check_text
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import read_texts, write_texts
from zsqretrieval.generators.prompts import PROMPTS, Prompt, check_prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.english import first_line, normalized, question_in
from zsqretrieval.types import Image, ImageState

__all__ = [
    "STYLES",
    "Question",
    "Style",
    "check_sampling",
    "check_style",
    "generate_questions",
]

OVERSAMPLE = 2
"""How many texts are drawn for each that is wanted: some say the same, and some say nothing."""


@dataclass(frozen=True, slots=True)
class Style:
    """A way to write about an image.

    Attributes:
        name: its name.
        prompts: what the texts continue; each takes one image and no texts. Draws are shared out evenly.
        asks: whether the texts are questions: what has no question mark is then dropped, and what follows it
            cut off.

    Raises:
        InvalidInputError: there is no prompt, or one takes anything else.
    """

    name: str
    prompts: tuple[Prompt, ...]
    asks: bool

    def __post_init__(self) -> None:
        check_text(self.name, "the name of a style")
        if isinstance(self.prompts, str | Prompt) or not isinstance(self.prompts, Sequence):
            raise InvalidInputError(f"the style {self.name!r} needs a tuple of prompts, not {self.prompts!r}")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not self.prompts:
            raise InvalidInputError(f"the style {self.name!r} has no prompt; give it one or more")
        for prompt in self.prompts:
            check_prompt(prompt, what=f"a prompt of the style {self.name!r}")


STYLES: Mapping[str, Style] = MappingProxyType(
    {
        "questions": Style("questions", (PROMPTS["ask"],), asks=True),
        "captions": Style("captions", (PROMPTS["captioning"],), asks=False),
        "attributes": Style(
            "attributes",
            (
                Prompt("<image>Question: what color is it? Answer:"),
                Prompt("<image>Question: what is the person wearing? Answer:"),
                Prompt("<image>Question: where was this taken? Answer:"),
            ),
            asks=False,
        ),
        "search": Style("search", (PROMPTS["question"],), asks=False),
    }
)
"""The styles by name.

- ``questions``: what one might ask about the image.
- ``captions``: what it shows, in a sentence.
- ``attributes``: colours, clothes and places, in a few words each.
- ``search``: what somebody would type to find it; a question or not.
"""


@dataclass(frozen=True, slots=True)
class Question:
    """A text that a generator wrote about an image.

    Attributes:
        text: what is asked, or said.
        answer: what the generator answers to it, or None.
        style: name of the style.
        prompt: template that it continued.
        log_likelihood: log P(text | image) in nats, by the same generator and prompt.
        tokens: its length in tokens.
    """

    text: str
    answer: str | None
    style: str
    prompt: str
    log_likelihood: float
    tokens: int


def generate_questions(
    generator: Generator,
    images: Sequence[Image | ImageState],
    n: int = 3,
    *,
    style: str | Style = "questions",
    answers: bool = False,
    answer_prompt: Prompt = PROMPTS["vqa"],
    temperature: float = 0.7,
    seed: int | None = 0,
    max_new_tokens: int = 24,
    batch_size: int = 16,
) -> list[tuple[Question, ...]]:
    """Write about images.

    Args:
        generator: writes.
        images: m images, or their states.
        n: how many texts of each image at most, >= 1. There are fewer when what is drawn says the same, or
            nothing; at temperature 0 there is one for each prompt of the style.
        style: a name in :data:`STYLES`, or one of your own.
        answers: let the generator answer every question as well; the style has to ask some.
        answer_prompt: what an answer continues; takes one image and the text ``question``.
        temperature: of the sampling; higher is more varied and less true.
        seed: makes it repeatable for the same images in the same order; None draws anew each time.
        max_new_tokens: length limit of a text and of an answer. A question that does not end within it is
            dropped.
        batch_size: contexts computed together.

    Returns:
        For every image its texts, likeliest first, no two of which have the same
        :func:`~zsqretrieval.tasks.english.normalized` form.

    Raises:
        InvalidInputError: no such style; ``n`` or ``max_new_tokens`` < 1; temperature or seed negative;
            answers to a style without questions; a generator that scores texts but writes none.
        ImageError: an image cannot be decoded; names it.
        ZsqError: the generator's numbers are broken; names the image.
    """
    style = check_style(style, answers=answers)
    check_sequence(images, "images")
    check_sampling(n, temperature, seed, max_new_tokens)
    check_prompt(answer_prompt, "question", what="the prompt for answers")
    draws = -(-OVERSAMPLE * n // len(style.prompts)) if temperature > 0 else 1
    prompts = [(prompt, image) for image in images for prompt in style.prompts]
    drawn = write_texts(
        generator,
        [prompt.context(image) for prompt, image in prompts],
        n=draws,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    tidied = [dict.fromkeys(map(question_in if style.asks else first_line, texts)) for texts in drawn]
    pairs = [(at, text) for at, texts in enumerate(tidied) for text in texts if normalized(text)]
    likelihoods = read_texts(
        generator,
        [prompts[at][0].context(prompts[at][1]) for at, _ in pairs],
        [f" {text}" for _, text in pairs],
        batch_size=batch_size,
    )
    written: list[list[Question]] = [[] for _ in images]
    for (at, text), likelihood in zip(pairs, likelihoods, strict=True):
        template = prompts[at][0].template
        made = Question(text, None, style.name, template, likelihood.sum, len(likelihood))
        written[at // len(style.prompts)].append(made)
    chosen = [_likeliest(questions, n) for questions in written]
    if not answers:
        return chosen
    return _answered(generator, images, chosen, answer_prompt, max_new_tokens, batch_size)


def _likeliest(questions: Sequence[Question], n: int) -> tuple[Question, ...]:
    """The first n of different form."""
    ranked = sorted(questions, key=lambda one: -one.log_likelihood)
    by_form = {normalized(one.text): one for one in reversed(ranked)}  # the likeliest of a form is last
    return tuple(sorted(by_form.values(), key=lambda one: (-one.log_likelihood, one.text))[:n])


def _answered(
    generator: Generator,
    images: Sequence[Image | ImageState],
    asked: Sequence[tuple[Question, ...]],
    prompt: Prompt,
    max_new_tokens: int,
    batch_size: int,
) -> list[tuple[Question, ...]]:
    contexts = [
        prompt.context(image, question=one.text)
        for image, questions in zip(images, asked, strict=True)
        for one in questions
    ]
    found = write_texts(
        generator,
        contexts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    answers = (first_line(text) for (text,) in found)
    return [tuple(replace(one, answer=next(answers) or None) for one in questions) for questions in asked]


def check_sampling(n: int, temperature: float, seed: int | None, max_new_tokens: int) -> None:
    """Look at how many texts are to be drawn, and how.

    Raises:
        InvalidInputError: ``n`` or ``max_new_tokens`` < 1, or temperature or seed negative; names it.
    """
    check_counts(n=n, max_new_tokens=max_new_tokens)
    check_counts(0, or_none=True, seed=seed)
    check_amounts(temperature=temperature)


def check_style(style: str | Style, *, answers: bool = False) -> Style:
    """The style of a name.

    Args:
        style: its name in :data:`STYLES`, or the style itself.
        answers: whether its texts are to be answered.

    Raises:
        InvalidInputError: there is none of that name, or its texts are no questions and are to be answered.
    """
    if not isinstance(style, Style):
        if not isinstance(style, str) or style not in STYLES:
            raise InvalidInputError(f"there is no style {style!r}; choose from {', '.join(STYLES)}")
        style = STYLES[style]
    if answers and not style.asks:
        raise InvalidInputError(
            f"the style {style.name!r} asks nothing that could be answered; leave answers out"
        )
    return style

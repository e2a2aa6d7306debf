"""Prompts as data: every task of Kosmos-1 is a text around images, and its continuation.

    >>> PROMPTS["vqa"].context(photo, question="What is on the table?")
    [photo, 'Question: What is on the table? Answer:']

The wording is that of the paper (arXiv 2302.14045) where it gives one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.types import Context, Image, ImageState

Segment: TypeAlias = "str | Image | ImageState"

_IMAGE = "<image>"
_MARK = re.compile(r"<image>|\{\{|\}\}|\{([A-Za-z_][A-Za-z_0-9]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text with placeholders: ``<image>``, ``{name}`` for a text, and ``{{`` or ``}}`` for a brace.

    Raises:
        InvalidInputError: a brace is neither part of a placeholder nor doubled.
    """

    template: str
    images: int = field(init=False, repr=False, compare=False)  # number of images
    fields: tuple[str, ...] = field(init=False, repr=False, compare=False)  # names, in order of appearance

    def __post_init__(self) -> None:
        marks = list(_MARK.finditer(self.template))
        for mark in marks:
            if mark[0] in ("{", "}"):
                raise InvalidInputError(
                    f"the prompt {self.template!r} has a {mark[0]!r} at {mark.start()} that is not part of a "
                    "{name}; double it for a literal brace"
                )
        object.__setattr__(self, "images", sum(mark[0] == _IMAGE for mark in marks))
        object.__setattr__(self, "fields", tuple(dict.fromkeys(mark[1] for mark in marks if mark[1])))

    def context(self, *images: Image | ImageState, **fields: str) -> list[Segment]:
        """Replace the placeholders by images, in order, and texts, by name.

        Braces and ``<image>`` in a text are literal. The result has no empty or adjacent texts.

        Raises:
            InvalidInputError: a wrong number of images, something other than an image, a missing or unknown
                field, or a field that is not a string.
        """
        if len(images) != self.images:
            raise InvalidInputError(
                f"the prompt {self.template!r} takes {self.images} images, not {len(images)}"
            )
        for image in images:
            if not isinstance(image, Image | ImageState):  # a path would become part of the text
                raise InvalidInputError(
                    f"the prompt {self.template!r} takes Image records and image states, not {image!r:.80}; "
                    "zsqretrieval.data.images.as_image makes a record"
                )
        if fields.keys() != set(self.fields):
            missing, unknown = set(self.fields) - fields.keys(), fields.keys() - set(self.fields)
            wrong = [f"{what} {', '.join(sorted(names))}" for what, names in
                     (("needs the field", missing), ("has no field", unknown)) if names]  # fmt: skip
            raise InvalidInputError(f"the prompt {self.template!r} {' and '.join(wrong)}")
        for name, text in fields.items():
            if not isinstance(text, str):
                raise InvalidInputError(f"{name} must be a string, not {type(text).__name__}")
        segments: list[Segment] = []
        following = iter(images)
        end = 0
        for mark in _MARK.finditer(self.template):
            segments.append(self.template[end : mark.start()])
            if mark[0] == _IMAGE:
                segments.append(next(following))
            else:
                segments.append(fields[mark[1]] if mark[1] else mark[0][0])
            end = mark.end()
        segments.append(self.template[end:])
        return _joined(segments)


def check_prompt(prompt: object, *fields: str, what: str = "the prompt") -> None:
    """Check that a prompt takes one image and these texts; InvalidInputError if not."""
    if not isinstance(prompt, Prompt):
        raise InvalidInputError(
            f"{what} must be a Prompt, such as Prompt('<image>Question:'), not {prompt!r}"
        )
    if prompt.images != 1 or prompt.fields != fields:
        wanted = ", ".join(f"{{{name}}}" for name in fields) or "no texts"
        raise InvalidInputError(
            f"{what} must take one image and {wanted}; {prompt.template!r} takes {prompt.images} images "
            f"and {', '.join(prompt.fields) or 'no texts'}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A solved task for a few-shot prompt."""

    context: Context  # made by Prompt.context
    answer: str  # leading space included


def few_shot(examples: Iterable[Example], context: Context) -> list[Segment]:
    """One context of solved examples, each followed by a line break, and the task."""
    segments: list[Segment] = []
    for example in examples:
        segments += [*example.context, example.answer, "\n"]
    return _joined([*segments, *context])


def _joined(segments: Iterable[Segment]) -> list[Segment]:
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, str) and joined and isinstance(joined[-1], str):
            joined[-1] += segment
        elif segment != "":
            joined.append(segment)
    return joined


def _raven(count: str, images: int) -> Prompt:
    shown = _IMAGE * images
    return Prompt(f"Here are {count} images:{shown}The following image is:{_IMAGE}Is it correct?")


PROMPTS: Mapping[str, Prompt] = MappingProxyType(
    {
        # continued by a caption
        "captioning": Prompt("<image>An image of"),
        # continued by a question that the image answers: the prompt of UPR (arXiv 2204.07496) in Kosmos-1's
        # words. Re-ranking scores the user's question after it.
        "question": Prompt("<image>Question:"),
        # continued by a question about the image; the wording is ours
        "ask": Prompt("<image>A question about this picture:"),
        # continued by an answer
        "vqa": Prompt("<image>Question: {question} Answer:"),
        # continued by " yes" or " no"; the wording is ours
        "yes_no": Prompt('<image>Does this picture show "{question}"? Answer:'),
        # continued by the name of a class, as on ImageNet
        "classification": Prompt("<image>The photo of the"),
        # continued by the name of a class; category is their common name; the image's place is ours
        "recognition": Prompt(
            "{descriptions}\n<image>Question:what is the name of {category} in the picture? Answer:"
        ),
        # continued by a rationale, which precedes the question in the next prompt
        "chain_of_thought": Prompt("<image>Introduce this picture in detail:"),
        "chain_of_thought_answer": Prompt("<image>{rationale} Question: {question} Answer:"),
        # a matrix of images, then a candidate; continued by " Yes"
        "raven_3": _raven("three", 3),
        "raven_4": _raven("four", 4),
        "raven_8": _raven("eight", 8),
    }
)
"""The prompts by name."""

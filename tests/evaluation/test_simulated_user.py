"""Answers of simulated users."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from zsqretrieval.dialog.oracle import Interview
from zsqretrieval.evaluation.simulated_user import DONT_KNOW, CaptionUser, GeneratorUser
from zsqretrieval.tasks.english import is_unknown
from zsqretrieval.types import Hit, Image, LogLikelihood

CAPTIONS = (
    "A man in a red shirt is riding a bike on the beach .",
    "The man wearing a blue hat is riding his bicycle on the sandy beach while smiling .",
    "Two dogs run behind a cyclist .",
    "a brown dog and a black dog are running through the water",
)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("is there a dog?", "yes"),
        ("Are there dogs on the beach?", "yes"),
        ("are there people?", "yes"),  # a man is a person
        ("is there a cat?", "no"),
        ("is it?", DONT_KNOW),
        ("how many dogs are there?", "two"),
        ("how many men are there?", "one"),  # from the article
        ("how many cats are there?", DONT_KNOW),
        ("what color is the shirt?", "red"),
        ("what colour is the dog?", "brown"),
        ("what color is the bike?", DONT_KNOW),
        ("where is this?", "on the beach"),  # two of three; a shirt is not a place
        ("what is the man doing?", "riding a bike on the beach"),
        ("what are the dogs doing?", "running through the water"),
        ("what is the person doing?", "riding a bike on the beach"),
        ("what is the girl doing?", DONT_KNOW),
        ("what is the person wearing?", "a blue hat"),
        ("what time is it?", DONT_KNOW),
        ("why?", DONT_KNOW),
    ],
)
def test_answer_comes_from_the_captions(question: str, answer: str) -> None:
    assert CaptionUser(CAPTIONS).answer(question) == answer


@pytest.mark.parametrize(
    ("caption", "question", "answer"),
    [
        ("men with a shopping bag in a market next to a bus", "what are the men doing?", DONT_KNOW),
        ("men with a shopping bag in a market next to a bus", "where is this?", "in a market"),
        ("a dog jumping up to get hold of the ball", "what is the dog doing?", "jumping up to get hold"),
        ("a boy in the rain", "what is the boy wearing?", DONT_KNOW),
    ],
)  # fmt: skip
def test_answer_ends_with_its_phrase(caption: str, question: str, answer: str) -> None:
    assert CaptionUser([caption]).answer(question) == answer


def test_image_without_captions_gives_dont_know() -> None:
    user = CaptionUser(())
    for question in ("where is this?", "what is the man doing?", "how many dogs are there?"):
        assert user.answer(question) == DONT_KNOW
    assert is_unknown(DONT_KNOW)


class OneImage:
    """Shows one image to a generator that prefers yes and knows one place."""

    fingerprint = "seer"

    def showing(self, hits: Sequence[Hit]) -> Any:
        return nullcontext((self, [Image(b"", "x") for _ in hits]))

    def log_likelihood(self, contexts: Any, continuations: Sequence[str], **_: Any) -> list[LogLikelihood]:
        chances = {" yes": 0.3, " no": 0.2}
        return [
            LogLikelihood((text,), np.array([math.log(chances[text])], np.float32)) for text in continuations
        ]

    def generate(self, contexts: Any, **_: Any) -> list[list[str]]:
        return [["On a Boat." if "where" in context[1] else ""] for context in contexts]


def test_generator_answers_polar_questions_by_likelihood_and_others_by_text() -> None:
    user = GeneratorUser(Interview(OneImage()), Hit(1, "x", "x", 0.0, {}))  # type: ignore[arg-type]
    assert user.answer("is there a boat?") == "yes"
    assert user.answer("where is this?") == "on a boat"
    assert user.answer("what is it?") == DONT_KNOW

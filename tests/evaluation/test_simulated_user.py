"""What captions tell, by rule."""

from __future__ import annotations

import math

import pytest

from zsqretrieval.errors import ImageError
from zsqretrieval.evaluation.simulated_user import DONT_KNOW, CaptionUser, GeneratorUser
from zsqretrieval.tasks.english import is_unknown

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
        ("how many men are there?", "one"),  # by the article
        ("how many cats are there?", DONT_KNOW),
        ("what color is the shirt?", "red"),
        ("what colour is the dog?", "brown"),
        ("what color is the bike?", DONT_KNOW),
        ("where is this?", "on the beach"),  # two of three; and a shirt is no place
        ("what is the man doing?", "riding a bike on the beach"),
        ("what are the dogs doing?", "running through the water"),
        ("what is the person doing?", "riding a bike on the beach"),
        ("what is the girl doing?", DONT_KNOW),
        ("what is the person wearing?", "a blue hat"),
        ("what time is it?", DONT_KNOW),
        ("why?", DONT_KNOW),
    ],
)
def test_captions_tell(question: str, answer: str) -> None:
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
def test_phrases_end_where_they_end(caption: str, question: str, answer: str) -> None:
    assert CaptionUser([caption]).answer(question) == answer


def test_nothing_is_known_of_an_image_without_captions() -> None:
    user = CaptionUser(())
    for question in ("where is this?", "what is the man doing?", "how many dogs are there?"):
        assert user.answer(question) == DONT_KNOW
    assert is_unknown(DONT_KNOW)


def test_the_generator_says_what_it_sees() -> None:
    from zsqretrieval.dialog.oracle import Interview
    from zsqretrieval.types import Hit, Image, LogLikelihood

    class Seer:
        fingerprint = "seer"

        def log_likelihood(self, contexts, continuations, *, batch_size=16):  # type: ignore[no-untyped-def]
            likely = {" yes": 0.3, " no": 0.2}
            return [LogLikelihood(("x",), _log(likely[text])) for text in continuations]

        def generate(self, contexts, *, n=1, **settings):  # type: ignore[no-untyped-def]
            return [["On a Boat." if "where" in context[1] else ""] for context in contexts]

    def _log(p: float):  # type: ignore[no-untyped-def]
        import numpy as np

        return np.array([math.log(p)], np.float32)

    class OneImage:
        def showing(self, hits):  # type: ignore[no-untyped-def]
            import contextlib

            shown: list[Image | ImageError] = [Image(b"", "x") for _ in hits]
            return contextlib.nullcontext((Seer(), shown))

    user = GeneratorUser(Interview(OneImage()), Hit(1, "x", "x", 0.0, {}))  # type: ignore[arg-type]
    assert user.answer("is there a boat?") == "yes"
    assert user.answer("where is this?") == "on a boat"
    assert user.answer("what is it?") == DONT_KNOW

"""Generated questions: sampling, selection and answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.tasks.english import normalized
from zsqretrieval.tasks.questions import STYLES, Question, Style, generate_questions
from zsqretrieval.testing.toys import ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood

TOY = ToyGenerator()


def picture(colour: str) -> Image:
    return Image(PILImage.new("RGB", (4, 4), colour), f"{colour}.png")


IMAGES = [picture("red"), picture("green"), picture("blue")]


class Scripted:
    """Writes given texts in turn; shorter ones are likelier."""

    fingerprint = "scripted"

    def __init__(self, *texts: str, answer: str = "so") -> None:
        self.texts, self.answer = texts, answer
        self.calls: list[dict[str, Any]] = []

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: Any) -> list[list[str]]:
        self.calls.append({"contexts": contexts, "n": n, **settings})
        if any("Answer:" in str(context[-1]) for context in contexts):
            return [[self.answer] for _ in contexts]
        return [[self.texts[draw % len(self.texts)] for draw in range(n)] for _ in contexts]

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any
    ) -> list[LogLikelihood]:
        assert all(text.startswith(" ") and len(text) > 1 for text in continuations)
        return [LogLikelihood(tuple(t), np.full(len(t), -1.0, np.float32)) for t in continuations]


def texts(questions: Sequence[Question]) -> list[str]:
    return [one.text for one in questions]


def test_likeliest_of_different_texts_are_kept() -> None:
    model = Scripted("What is it?", "what  is it ?", "Who?", "", "a dog", "Where was this taken?", "\n\n")
    (found,) = generate_questions(model, IMAGES[:1], 4)
    assert texts(found) == ["Who?", "What is it?", "Where was this taken?"]
    assert found[1] == Question("What is it?", None, "questions", PROMPTS["ask"].template, -12.0, 12)
    assert texts(generate_questions(model, IMAGES[:1], 2)[0]) == ["Who?", "What is it?"]
    assert model.calls[0]["n"] == 8 and model.calls[-1]["n"] == 4


def test_question_ends_at_its_mark_and_must_have_one() -> None:
    model = Scripted("what is it? a dog. Who?", "and never an end to it", "?")
    assert texts(generate_questions(model, IMAGES[:1], 3)[0]) == ["what is it?"]


def test_other_styles_take_any_text() -> None:
    model = Scripted(" a dog \n and more", "A dog.", "two dogs run")
    for style in ("captions", "search"):
        (found,) = generate_questions(model, IMAGES[:1], 3, style=style)
        assert texts(found) == ["a dog", "two dogs run"]
        assert {one.style for one in found} == {style}
    assert model.calls[0]["contexts"] == [[IMAGES[0], "An image of"]]
    assert model.calls[1]["contexts"] == [[IMAGES[0], "Question:"]]


def test_prompts_of_a_style_share_the_draws() -> None:
    model = Scripted("red", "blue", "in a park")
    colour, place = Prompt("<image>Colour:"), Prompt("<image>Place:")
    (found,) = generate_questions(model, IMAGES[:1], 3, style=Style("mine", (colour, place), asks=False))
    assert model.calls[0]["n"] == 3 and len(model.calls[0]["contexts"]) == 2
    assert texts(found) == ["red", "blue", "in a park"] and {one.style for one in found} == {"mine"}


def test_answers_belong_to_their_questions() -> None:
    model = Scripted("Who?", "What is it?", answer=" a dog\nQuestion:")
    found = generate_questions(model, IMAGES[:2], 2, answers=True, max_new_tokens=7)
    assert [[(one.text, one.answer) for one in some] for some in found] == [
        [("Who?", "a dog"), ("What is it?", "a dog")]
    ] * 2
    asked = model.calls[-1]
    assert asked["contexts"][1] == [IMAGES[0], "Question: What is it? Answer:"]
    assert asked["contexts"][2][0] is IMAGES[1]
    assert asked["temperature"] == 0 and asked["max_new_tokens"] == 7
    ((silent,),) = generate_questions(Scripted("Who?", answer=" \n"), IMAGES[:1], 1, answers=True)
    assert silent.answer is None


@pytest.mark.parametrize("style", STYLES)
def test_same_seed_gives_the_same_texts(style: str) -> None:
    found = generate_questions(TOY, IMAGES, 3, style=style, seed=1, temperature=1.5)
    assert found == generate_questions(TOY, IMAGES, 3, style=style, seed=1, temperature=1.5)
    assert found != generate_questions(TOY, IMAGES, 3, style=style, seed=2, temperature=1.5)
    assert len(found) == 3 and any(found)
    for image, questions in zip(IMAGES, found, strict=True):
        assert len(questions) <= 3 and len({normalized(one.text) for one in questions}) == len(questions)
        assert [*questions] == sorted(questions, key=lambda one: -one.log_likelihood)
        for one in questions:
            (likelihood,) = TOY.log_likelihood([Prompt(one.prompt).context(image)], [f" {one.text}"])
            assert one.log_likelihood == likelihood.sum and one.tokens == len(likelihood)
            assert one.prompt in {prompt.template for prompt in STYLES[style].prompts}


def test_temperature_0_gives_one_text_for_each_prompt() -> None:
    found = generate_questions(TOY, IMAGES, 5, style="captions", temperature=0)
    assert [len(some) for some in found] == [1, 1, 1]


def test_cached_features_give_the_same_questions() -> None:
    seer = ToyStatesGenerator()
    states = [
        ImageState(values, seer.fingerprint, image.source)
        for values, image in zip(seer.image_states(IMAGES), IMAGES, strict=True)
    ]
    assert generate_questions(seer, states, 2) == generate_questions(seer, IMAGES, 2)


def test_no_images_give_no_questions() -> None:
    assert generate_questions(TOY, [], 3, answers=True) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"style": "haiku"}, "no style 'haiku'; choose from questions, captions"),
        ({"style": ["captions"]}, r"no style \['captions'\]"),
        ({"style": "captions", "answers": True}, "'captions' asks nothing that could be answered"),
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"seed": -1}, "seed must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"answers": True, "answer_prompt": PROMPTS["ask"]}, r"must take one image and \{question\}"),
        ({"images": "red.png"}, "images must be a list, not str"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        generate_questions(TOY, **{"images": IMAGES, **settings})


def test_error_inside_the_generator_is_passed_on() -> None:
    class Broken(Scripted):
        def generate(self, contexts: Any, **settings: Any) -> Any:
            raise AttributeError("no attribute 'cache'")

    with pytest.raises(AttributeError, match="cache"):
        generate_questions(Broken(), IMAGES)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("<image>Ask:", "the style 'mine' needs a tuple of prompts"),
        (PROMPTS["ask"], "the style 'mine' needs a tuple of prompts"),
        (3, "the style 'mine' needs a tuple of prompts"),
        (("<image>Ask:",), "a prompt of the style 'mine' must be a Prompt"),
        ((PROMPTS["vqa"],), "one image and no texts"),
        ((), "has no prompt"),
    ],
)
def test_style_without_fitting_prompts_is_refused(prompts: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Style("mine", prompts, asks=True)

"""Captioning, question answering and chain of thought: contexts, and the order of the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from tables import TableGenerator, picture
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.prompts import Prompt
from zsqretrieval.tasks import (
    Reasoned,
    answer,
    answer_step_by_step,
    answered,
    caption,
    choose_step_by_step,
    labelled,
)
from zsqretrieval.testing.toys import ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Context, Image, ImageState

CAT, DOG = picture("cat.png"), picture("dog.png")


def named(context: Context) -> str:
    """Writes the source of the last image and the length of the texts."""
    last = [one.source for one in context if not isinstance(one, str)][-1]
    return f" {last}, {sum(len(one) for one in context if isinstance(one, str))} "


def test_captions_continue_the_prompt() -> None:
    generator = TableGenerator(write=named)
    assert caption(generator, [CAT, DOG], max_new_tokens=7) == ["cat.png, 11", "dog.png, 11"]
    assert generator.contexts == [["<cat.png>", "An image of"], ["<dog.png>", "An image of"]]
    assert generator.limits == [(7, 0.0)]
    assert caption(generator, CAT, prompt=Prompt("Look: <image>")) == ["cat.png, 6"]
    shots = labelled(CAT, ["a cat."], prompt=Prompt("<image>An image of"))
    assert caption(generator, DOG, examples=shots) == ["dog.png, 30"]
    assert generator.contexts[-1] == ["<cat.png>", "An image of a cat.\n", "<dog.png>", "An image of"]


def test_every_kind_of_image_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    PILImage.new("RGB", (3, 3), "red").save(path)
    state = ImageState(np.array([1, 0, 0], np.float32), ToyStatesGenerator.fingerprint, "red")
    ways: list[Any] = [path, str(path), path.read_bytes(), PILImage.open(path)]
    texts = [caption(ToyGenerator(), way)[0] for way in ways]
    assert set(texts) == set(caption(ToyGenerator(), ways)) and len(set(texts)) == 1
    toy = ToyStatesGenerator()
    assert caption(toy, (state, path), max_new_tokens=4) == caption(toy, [path] * 2, max_new_tokens=4)


def test_one_question_for_all_images_or_one_per_image() -> None:
    generator = TableGenerator(write=named)
    assert answer(generator, [CAT, DOG], " Who? ") == ["cat.png, 22", "dog.png, 22"]
    assert generator.contexts[0] == ["<cat.png>", "Question: Who? Answer:"]
    assert answer(generator, [CAT, DOG], ["Who?", "Why not?"]) == ["cat.png, 22", "dog.png, 26"]
    shots = answered([CAT, CAT], ["Who?", "Is it?"], ["A cat", " yes"])
    assert answer(generator, DOG, "Why?", examples=shots) == ["dog.png, 80"]
    assert generator.contexts[-1] == [
        *("<cat.png>", "Question: Who? Answer: A cat\n"),
        *("<cat.png>", "Question: Is it? Answer: yes\n"),
        *("<dog.png>", "Question: Why? Answer:"),
    ]
    assert set(generator.limits) == {(16, 0.0)}


def test_caption_of_a_toy_is_its_greedy_decoding() -> None:
    generator, blue = ToyGenerator(), Image(PILImage.new("RGB", (2, 2), "blue"), "blue")
    for image, text in zip([CAT, blue], caption(generator, [CAT, blue], max_new_tokens=5), strict=True):
        before: list[Any] = [image, "An image of"]
        for word in text.split():
            likely = generator.probabilities(before)
            assert likely[word] == max(likely.values())
            before.append(word)


def test_answer_step_by_step_takes_two_passes() -> None:
    generator = TableGenerator(write=lambda context: " a cat " if len(context[-1]) == 34 else named(context))
    found = answer_step_by_step(
        generator, [CAT, DOG], ["Who?", "Is it?"], rationale_tokens=5, max_new_tokens=3
    )
    assert generator.contexts == [
        ["<cat.png>", "Introduce this picture in detail:"],
        ["<dog.png>", "Introduce this picture in detail:"],
        ["<cat.png>", "cat.png, 33 Question: Who? Answer:"],
        ["<dog.png>", "dog.png, 33 Question: Is it? Answer:"],
    ]
    assert found == [Reasoned("cat.png, 33", "a cat"), Reasoned("dog.png, 33", "dog.png, 36")]
    assert generator.limits == [(5, 0.0), (3, 0.0)]


def test_choose_step_by_step_scores_options_after_the_rationale() -> None:
    table = {("cat.png", " yes"): [0.3], ("cat.png", " no"): [0.1]}
    generator = TableGenerator(table, write=lambda _: "It purrs.")
    (found,) = choose_step_by_step(generator, CAT, "Is it a cat?", ["yes", "no"])
    assert found.best == "yes" and found.posterior == pytest.approx([0.75, 0.25])
    assert generator.contexts[1:] == [["<cat.png>", "It purrs. Question: Is it a cat? Answer:"]] * 2


@pytest.mark.parametrize(
    "task",
    [
        lambda images, question: answer(TableGenerator(write=named), images, question),
        lambda images, question: answer_step_by_step(TableGenerator(write=named), images, question),
        lambda images, question: choose_step_by_step(TableGenerator(), images, question, ["a", "b"]),
        lambda images, question: answered(images, question, ["x"]),
    ],
)
@pytest.mark.parametrize(
    ("images", "questions", "message"),
    [
        ([], "Who?", "there are no images"),
        (7, "Who?", "an image must be a path"),
        ([CAT, None], "Who?", "an image must be a path"),
        (CAT, "", "questions must be non-empty strings; number 0 is ''"),
        (CAT, None, "questions"),
        (CAT, [3], "questions must be non-empty strings; number 0 is 3"),
        (CAT, ["a", "b"], "2 questions for 1 images; give one, or one per image"),
    ],
)
def test_bad_input_is_named(task: Callable[..., Any], images: Any, questions: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        task(images, questions)


def test_prompt_with_other_fields_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="takes 2 images, not 1"):
        caption(TableGenerator(), CAT, prompt=Prompt("<image><image>"))
    with pytest.raises(InvalidInputError, match="has no field question"):
        answer(TableGenerator(), CAT, "Who?", prompt=Prompt("<image>"))
    with pytest.raises(InvalidInputError, match="max_new_tokens must be at least 1, not 0"):
        caption(ToyGenerator(), CAT, max_new_tokens=0)


def test_broken_image_is_named() -> None:
    with pytest.raises(ImageError, match="<bytes>"):
        caption(ToyGenerator(), [CAT, b"no image"])

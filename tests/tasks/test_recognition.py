"""Classification, few-shot examples and sentiment, with numbers by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from tables import TableGenerator, picture
from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import Prompt
from zsqretrieval.tasks import (
    classify,
    classify_sentiment,
    count_correct,
    k_shot,
    labelled,
    recognize,
    render_text,
)
from zsqretrieval.tasks.choice import SENTIMENTS
from zsqretrieval.testing.toys import ToyGenerator
from zsqretrieval.types import Image

COLOURS = ("red", "green", "blue")
PATCHES = [Image(PILImage.new("RGB", (4, 4), colour), colour) for colour in ("red", "lime", "blue")]
BIRD = picture("bird.png")


def test_toy_classifies_colours_by_its_formula() -> None:
    """After an image and "The photo of the" (4 tokens, t = 5) red has 1 + 4 / 2^4, other colours 1.

    The word t mod 15 = 5 is "thing", no colour; so the three weights are 1.25, 1, 1 and their sum cancels.
    """
    found = classify(ToyGenerator(), PATCHES, COLOURS)
    assert [one.best for one in found] == [*COLOURS]
    for position, one in enumerate(found):
        expected = np.full(3, 1 / 3.25)
        expected[position] = 1.25 / 3.25
        assert one.posterior == pytest.approx(expected, abs=1e-6)
        assert one.margin == pytest.approx(np.log(1.25), abs=1e-6)
    # The memory: 4/16 of the image, "the" 1/8 + 1, "photo" (<unk>) 1/4, "of" 1/2: 2.125 in all.
    assert found[0].scores[0] == pytest.approx(np.log(1.25 / (15 + 3 + 2.125)), abs=1e-6)
    accuracy = count_correct(found, ["red", "green", "red"])
    assert (accuracy.correct, accuracy.total, accuracy.chance) == (2, 3, 1 / 3)


def test_descriptions_stand_before_the_image() -> None:
    table = {("bird.png", " downy woodpecker"): [0.2, 0.5], ("bird.png", " three toed woodpecker"): [0.3]}
    generator = TableGenerator(table)
    words = {"three toed woodpecker": " It has a yellow crown. ", "downy woodpecker": "It has a red crown."}
    (found,) = recognize(generator, BIRD, words, category="woodpecker")
    context = [
        "three toed woodpecker: It has a yellow crown.\ndowny woodpecker: It has a red crown.\n",
        "<bird.png>",
        "Question:what is the name of woodpecker in the picture? Answer:",
    ]
    assert generator.contexts == [context, context]
    assert found.best == "three toed woodpecker" and found.posterior == pytest.approx([0.75, 0.25])
    (found,) = recognize(generator, BIRD, words, category="woodpecker", aggregate="mean")
    assert found.scores == pytest.approx([np.log(0.3), np.log(0.1) / 2], abs=1e-6)
    assert found.best == "downy woodpecker"  # sqrt(0.1) = 0.316 > 0.3


@pytest.mark.parametrize(
    ("descriptions", "category", "message"),
    [
        ({}, "bird", "0 classes given; give at least 2"),
        ({"a": "x"}, "bird", "1 classes given; give at least 2"),
        ({"a": "x", "b": ""}, "bird", "descriptions must be non-empty strings; number 1 is ''"),
        ({"a": "x", 2: "y"}, "bird", "classes must be non-empty strings; number 1 is 2"),
        ({"a": "x", " a": "y"}, "bird", "the option 'a' is given twice"),
        ({"a": "x", "b": "y"}, " ", "categories must be non-empty strings"),
        (["a", "b"], "bird", "descriptions must map class names to descriptions, not list"),
    ],
)
def test_bad_descriptions_are_named(descriptions: Any, category: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        recognize(TableGenerator(), BIRD, descriptions, category=category)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: classify(TableGenerator(), [], COLOURS), "there are no images"),
        (lambda: classify(TableGenerator(), BIRD, []), "0 options given"),
        (lambda: classify(TableGenerator(), BIRD, ["a", "a"]), "'a' is given twice"),
        (lambda: classify_sentiment(TableGenerator(), []), "there are no images"),
        (lambda: classify_sentiment(TableGenerator(), BIRD, prompt=Prompt("<image>")), "no field question"),
        (lambda: k_shot([BIRD], ["a", "b"], 1), "2 labels for 1 images"),
        (lambda: k_shot([BIRD], [""], 1), "labels must be non-empty strings"),
        (lambda: k_shot([BIRD], "a", 1), "labels must be a sequence of texts, not 'a'"),
        (lambda: k_shot([BIRD], ["a"], -1), "k must not be negative, but is -1"),
        (lambda: k_shot([], [], 1), "there are no images"),
    ],
)
def test_missing_images_and_bad_classes_or_labels_are_refused(use: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        use()


# --- few shots


def test_examples_stand_before_the_image_and_change_the_posterior() -> None:
    """Reading "the photo of the red" once more adds to red, and nothing to the others."""
    shots = labelled(PATCHES[0], ["red"])
    plain, shown = (classify(ToyGenerator(), PATCHES[2], COLOURS, examples=few)[0] for few in ((), shots))
    # Behind the red patch come ten more, behind its name five; t = 11 falls on "yes".
    weights = np.array([1 + 4 / 2**10 + 1 / 2**5, 1, 1.25])
    assert plain.posterior == pytest.approx(np.array([1, 1, 1.25]) / 3.25, abs=1e-6)
    assert shown.posterior == pytest.approx(weights / weights.sum(), abs=1e-6)


@given(st.lists(st.sampled_from("abc"), min_size=3, max_size=30), st.integers(0, 3), st.integers(0, 5))
def test_k_shot_draws_k_of_every_label(labels: list[str], k: int, seed: int) -> None:
    images = [picture(f"{n}") for n in range(len(labels))]
    if k > min(labels.count(label) for label in labels):
        with pytest.raises(InvalidInputError, match=f"k={k}, but the label '.' has [0-9]+ images"):
            k_shot(images, labels, k, seed=seed)
        return
    shots = k_shot(images, labels, k, seed=seed)
    names = [shot.answer for shot in shots]
    assert sorted(names) == sorted([f" {label}" for label in set(labels)] * k)
    sources = [shot.context[0].source for shot in shots]  # type: ignore[union-attr]
    assert len(set(sources)) == len(sources)
    assert all(f" {labels[int(source)]}" == name for source, name in zip(sources, names, strict=True))
    assert [shot.answer for shot in k_shot(images, labels, k, seed=seed)] == names


def test_k_shot_draws_the_order() -> None:
    labels = ["a", "b"] * 6
    images = [picture(f"{n}") for n in range(12)]
    orders = {tuple(shot.answer for shot in k_shot(images, labels, 3, seed=seed)) for seed in range(20)}
    assert len(orders) > 5


# --- sentiment


def test_sentiment_by_the_question_of_kosmos_1() -> None:
    good, bad = picture("good"), picture("bad")
    generator = TableGenerator(
        {("good", " positive"): [0.09], ("good", " negative"): [0.01],
         ("bad", " positive"): [0.02], ("bad", " negative"): [0.06]}
    )  # fmt: skip
    found = classify_sentiment(generator, [good, bad])
    assert generator.contexts[0] == ["<good>", "Question: what is the sentiment of the opinion? Answer:"]
    assert [one.posterior[0] for one in found] == pytest.approx([0.9, 0.25])
    assert count_correct(found, SENTIMENTS).correct == 2


ASCII = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@given(st.lists(ASCII, min_size=1, max_size=25), st.sampled_from([128, 448]))
def test_text_is_drawn_black_on_white_inside_the_margin(words: list[str], side: int) -> None:
    text = " ".join(words)
    pixels = np.asarray(decode(render_text(text, side=side)))
    assert pixels.shape == (side, side, 3)
    assert pixels.min() < 100 and np.all(pixels[:, :, 0] == pixels[:, :, 1])
    edge = side // 20
    frame = pixels.copy()
    frame[edge:-edge, edge:-edge] = 255
    assert np.all(frame == 255)
    assert np.array_equal(pixels, decode(render_text(text, side=side)))


def test_pictures_differ_and_short_texts_are_large() -> None:
    def inked(text: str) -> int:
        rows = np.flatnonzero(np.any(np.asarray(decode(render_text(text)))[:, :, 0] < 128, axis=1))
        return int(rows[-1] - rows[0])

    assert not np.array_equal(decode(render_text("good")), decode(render_text("bad")))
    assert 40 < inked("Hg") < 90 and inked("word " * 60) > 300
    assert render_text("word " * 60).source == f"text {('word ' * 60)[:37] + '...'!r}"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "texts must be non-empty strings; number 0 is ''"),
        (None, {}, "texts must be non-empty strings; number 0 is None"),
        ("a猫", {}, "the font has no '猫', which is in the text 'a猫'"),
        ("a\tb", {}, r"the font has no '\\t'"),
        ("word " * 900, {}, "a text of 4499 characters does not fit into 448 x 448"),
        ("x" * 900, {}, "does not fit"),
        ("a", {"side": 63}, "side must be at least 64 pixels, not 63"),
        ("a", {"font": "nowhere.ttf"}, "nowhere.ttf is not a readable font"),
    ],
)
def test_bad_texts_sides_and_fonts_are_refused(text: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        render_text(text, **options)

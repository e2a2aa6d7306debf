"""Dialogs over a world whose probabilities are all known."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from closed_world import ClosedGenerator, World
from hypothesis import given
from hypothesis import strategies as st

from zsqretrieval.dialog.dialog import Dialog
from zsqretrieval.dialog.oracle import Wording
from zsqretrieval.dialog.policies import (
    CaptionDialog,
    InformationGain,
    Policy,
    Proposal,
    RandomQuestion,
    Scene,
)
from zsqretrieval.errors import InvalidInputError, MismatchError, ZsqError
from zsqretrieval.generators.prompts import Prompt
from zsqretrieval.search.scoring import YesNo
from zsqretrieval.types import Hit

DOG = {"yes": [0.9, 0.1, 0.5, 0.2], "no": [0.1, 0.9, 0.5, 0.6]}  # need not add up to 1: a closed set
PLACE = {"beach": [0.7, 0.1, 0.1, 0.2], "forest": [0.1, 0.8, 0.1, 0.2], "city": [0.2, 0.1, 0.8, 0.6]}
COLOR = {"red": [0.5, 0.5, 0.5, 0.5], "blue": [0.5, 0.5, 0.5, 0.5]}
TABLE = {
    "is there a dog?": {**DOG, "yes, on a boat": [0.2, 0.01, 0.1, 0.01]},
    "where is this?": PLACE,
    "what color is the sky?": COLOR,
    "told": {"it rains": [0.1, 0.2, 0.3, 0.4]},
}
COSINES = {"somebody": [0.4, 0.3, 0.2, 0.1]}
QUESTIONS = ("is there a dog?", "where is this?", "what color is the sky?")


def world(**settings: object) -> World:
    asks = [QUESTIONS] * 4
    return World(4, ClosedGenerator(TABLE, asks=asks), COSINES, **settings)  # type: ignore[arg-type]


def begin(gallery: World | None = None, **settings: object) -> Dialog:
    """A dialog by Bayes' rule in which the generator alone understands answers, unless told otherwise."""
    given = {"scale": 5.0, "temper": 1.0, "sure": 1.0, "reread": 0.0, **settings}
    return Dialog(gallery or world(), "somebody", **given)  # type: ignore[arg-type]


class Asks:
    """A policy that asks what it is told, and believes as InformationGain does."""

    def __init__(self, *questions: str) -> None:
        self.questions = questions

    def propose(self, scene: Scene) -> Proposal | None:
        n = sum(turn.question is not None for turn in scene.turns)
        return Proposal(self.questions[n]) if n < len(self.questions) else None

    def evidence(self, scene: Scene, question: str | None, answer: str) -> np.ndarray:
        return InformationGain().evidence(scene, question, answer)


def believed(dialog: Dialog) -> np.ndarray:
    """P(image | dialog) by number."""
    return np.array([dialog.probabilities[f"image-{n}"] for n in range(len(dialog.ranking))])


def softmax(weights: list[float]) -> np.ndarray:
    p = np.exp(np.array(weights))
    return p / p.sum()


# --- the belief -------------------------------------------------------------------------------------------


def test_it_begins_with_the_first_stage() -> None:
    dialog = begin()
    assert believed(dialog) == pytest.approx(softmax([2.0, 1.5, 1.0, 0.5]))
    assert [hit.id for hit in dialog.ranking] == ["image-0", "image-1", "image-2", "image-3"]
    assert dialog.ranking[0].score == pytest.approx(math.log(dialog.probabilities["image-0"]))
    assert dialog.ranking[0].scores == {"first_stage": 0.4, "dialog": dialog.ranking[0].score}
    assert dialog.ranking.query == "somebody"
    p = believed(dialog)
    assert dialog.entropy == pytest.approx(float(-(p * np.log(p)).sum()))


def test_a_gallery_need_not_name_its_scores() -> None:
    class Bare(World):
        def first_stage(self, text: str, k: int) -> list[Hit]:
            return [replace(hit, scores={}) for hit in super().first_stage(text, k)]

    gallery = Bare(4, ClosedGenerator(TABLE), COSINES)
    assert believed(begin(gallery)) == pytest.approx(softmax([2.0, 1.5, 1.0, 0.5]))


@pytest.mark.parametrize("temper", [1.0, 0.5])
def test_answers_multiply_by_bayes(temper: float) -> None:
    dialog = begin(policy=Asks("is there a dog?", "where is this?"), temper=temper)
    dialog.answer("Yes!")
    dialog.answer("forest")
    prior = softmax([2.0, 1.5, 1.0, 0.5])
    yes = np.array(DOG["yes"]) / (np.array(DOG["yes"]) + np.array(DOG["no"]))
    expected = prior * (yes * np.array(PLACE["forest"])) ** temper
    assert believed(dialog) == pytest.approx(expected / expected.sum())


def test_a_yes_may_go_on() -> None:
    dialog = begin(policy=Asks("is there a dog?"))
    dialog.answer("yes, on a boat")
    # By the chain rule, with the yes normalised: P(yes) * P(", on a boat" | yes), where the model here
    # gives P("yes, on a boat") for the second factor.
    yes = np.array(DOG["yes"]) / (np.array(DOG["yes"]) + np.array(DOG["no"]))
    expected = softmax([2.0, 1.5, 1.0, 0.5]) * yes * np.array([0.2, 0.01, 0.1, 0.01])
    assert believed(dialog) == pytest.approx(expected / expected.sum())


def test_what_is_told_unasked_counts_and_is_no_question() -> None:
    dialog = begin(budget=1)
    dialog.tell("it rains")
    expected = softmax([2.0, 1.5, 1.0, 0.5]) * np.array([0.1, 0.2, 0.3, 0.4])
    assert believed(dialog) == pytest.approx(expected / expected.sum())
    assert dialog.history[0].question is None
    assert dialog.stopped is None


def test_verbalisers_add_up() -> None:
    table = {"is it?": {"yes": [0.1, 0.2], "yeah": [0.3, 0.1], "no": [0.4, 0.4]}}
    gallery = World(2, ClosedGenerator(table))
    wording = Wording(yes=(" yes", " yeah"))
    dialog = Dialog(gallery, "x", policy=Asks("is it?"), wording=wording, sure=1.0, temper=1.0)
    dialog.answer("yes")
    expected = np.array([0.4 / 0.8, 0.3 / 0.7])
    assert believed(dialog) == pytest.approx(expected / expected.sum())


steps = st.tuples(st.sampled_from(["is there a dog?", "where is this?"]), st.integers(0, 2))


def answer_of(question: str, n: int) -> str:
    return list(TABLE[question])[n % 2 if question.startswith("is") else n]


@given(st.lists(steps, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_answers_does_not_matter(said: list[tuple[str, int]], random: object) -> None:
    def ends(some: list[tuple[str, int]]) -> np.ndarray:
        dialog = begin(policy=Asks(*(question for question, _ in some)))
        for question, n in some:
            assert dialog.question == question
            dialog.answer(answer_of(question, n))
        return believed(dialog)

    shuffled = list(said)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ends(shuffled) == pytest.approx(ends(said))


@given(st.lists(steps | st.just(("", 0)), min_size=1, max_size=6), st.sampled_from([0.0, 1.0]))
def test_undo_restores_exactly(said: list[tuple[str, int]], reread: float) -> None:
    dialog = begin(policy=Asks(*(question or "where is this?" for question, _ in said)), reread=reread)
    before = []
    for question, n in said:
        before.append((dialog.ranking, dialog.entropy, dialog.history, dialog.proposal))
        dialog.answer(answer_of(question, n) if question else "don't know")
    for state in reversed(before):
        dialog.undo()
        assert (dialog.ranking, dialog.entropy, dialog.history, dialog.proposal) == state
    with pytest.raises(InvalidInputError, match="nothing to undo"):
        dialog.undo()


@pytest.mark.parametrize("policy", [InformationGain(), RandomQuestion(), CaptionDialog()])
def test_not_knowing_changes_nothing_and_is_not_asked_again(policy: Policy) -> None:
    dialog = begin(policy=policy)
    before, asked = dialog.ranking, []
    while (question := dialog.question) is not None:
        asked.append(question)
        dialog.answer("I don't know.")
        assert dialog.ranking == before
    assert len(asked) == len(set(asked)) > 1
    assert dialog.stopped == "nothing to ask"
    assert all(turn.entropy_before == turn.entropy_after == dialog.entropy for turn in dialog.history)


# --- the questions ----------------------------------------------------------------------------------------


def gain_by_definition(question: str, prior: np.ndarray) -> float:
    answers = DOG if question.startswith("is") else TABLE[question]
    likely = np.array(list(answers.values())).T  # [n, a]
    likely = likely / likely.sum(1, keepdims=True)
    gain = 0.0
    for i, a in product(range(len(prior)), range(likely.shape[1])):
        joint = prior[i] * likely[i, a]
        gain += joint * math.log(likely[i, a] / (prior @ likely[:, a])) if joint > 0 else 0.0
    return gain


def test_it_asks_what_tells_most() -> None:
    dialog = begin()
    prior = softmax([2.0, 1.5, 1.0, 0.5])
    gains = {question: gain_by_definition(question, prior) for question in QUESTIONS}
    assert dialog.question == max(gains, key=lambda one: gains[one]) == "where is this?"
    assert dialog.proposal is not None
    assert dialog.proposal.expected_gain == pytest.approx(gains["where is this?"])
    assert dialog.proposal.answers == ("beach", "forest", "city")  # by the mass of the images that say so
    dialog.answer("beach")
    turn = dialog.history[0]
    assert (turn.question, turn.answer) == ("where is this?", "beach")
    assert turn.expected_gain == pytest.approx(gains["where is this?"])
    assert turn.entropy_after == dialog.entropy < turn.entropy_before
    assert dialog.question == "is there a dog?"
    dialog.answer("no")
    assert dialog.question == "what color is the sky?"  # which tells nothing, so it is the last
    assert dialog.proposal is not None and dialog.proposal.expected_gain == pytest.approx(0, abs=1e-9)
    dialog.answer("red")
    assert dialog.question is None
    assert dialog.stopped == "nothing to ask"


def test_a_question_that_gains_too_little_is_not_asked() -> None:
    dialog = begin(policy=InformationGain(least=1e-4))
    for answer in ("beach", "no"):
        assert dialog.question is not None
        dialog.answer(answer)
    assert dialog.stopped == "nothing to ask"


def test_a_question_with_one_answer_is_asked_when_nothing_else_is_left() -> None:
    table = {
        "what is he doing?": {"running": [0.9, 0.8]},
        "where is this?": {"here": [0.9, 0.1], "there": [0.1, 0.9]},
    }
    dialog = Dialog(World(2, ClosedGenerator(table)), "somebody", sure=1.0)
    assert dialog.question == "where is this?"
    dialog.answer("don't know")
    assert dialog.question == "what is he doing?"
    assert dialog.proposal is not None and dialog.proposal.expected_gain == 0


@given(st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=3, max_size=3))
def test_the_expected_fall_of_entropy_is_what_comes_about_on_average(rows: list[list[float]]) -> None:
    likely = np.array(rows) / np.sum(rows, axis=1, keepdims=True)  # [n, a]
    answers = {name: list(likely[:, a]) for a, name in enumerate(("left", "right", "up"))}
    gallery = World(3, ClosedGenerator({"which way?": answers}), {"somebody": [0.3, 0.2, 0.0]})
    dialog = begin(gallery, policy=Asks("which way?"))
    prior, before = believed(dialog), dialog.entropy
    left = 0.0
    for a, name in enumerate(answers):
        dialog.answer(name)
        left += float(prior @ likely[:, a]) * dialog.entropy
        dialog.undo()
    assert dialog.entropy == before
    expected = sum(
        prior[i] * likely[i, a] * math.log(likely[i, a] / (prior @ likely[:, a]))
        for i, a in product(range(3), range(3))
    )
    assert before - left == pytest.approx(expected, abs=1e-6)


def test_what_the_text_says_is_not_asked() -> None:
    gallery = world()
    gallery.cosines = {}
    telling = InformationGain(least=1e-4)
    assert Dialog(gallery, "a dog at the beach", sure=1.0, policy=telling).stopped == "nothing to ask"
    assert Dialog(gallery, "a dog", sure=1.0).question == "where is this?"


def test_captions_that_differ_make_questions() -> None:
    table = {"is there a dog?": {"yes": [0.9, 0.1], "no": [0.1, 0.9]}}
    generator = ClosedGenerator(table, asks=[[""], [""]], captions=["a dog in a park.", "a park"])
    dialog = Dialog(World(2, generator), "somewhere", sure=1.0)
    assert dialog.question == "is there a dog?"


def test_stored_questions_are_asked_as_well() -> None:
    gallery = World(
        4, ClosedGenerator(TABLE, asks=[[]] * 4), COSINES, stored={1: ("Where is this?",), 2: ("Is it?",)}
    )
    dialog = begin(gallery)
    assert dialog.question == "where is this?"


def test_the_likeliest_images_are_asked_for_questions_and_no_others() -> None:
    gallery = world()
    begin(gallery, policy=InformationGain(images=1)).question  # noqa: B018
    asked = {
        number for number, prompt in gallery.generator.wrote if prompt == "A question about this picture:"
    }
    assert asked == {0}
    alone = world()
    alone.generator.asks = [["is there a dog?"], ["where is this?"], [], []]
    # Image 0 alone asks; it proposes the dog, though the place would tell more.
    assert begin(alone, policy=InformationGain(images=1)).question == "is there a dog?"


def test_a_question_counts_for_the_images_that_have_an_answer() -> None:
    table = {
        # What the cat does would tell all four apart, but three of them have no cat, as far as one sees.
        "what is the cat doing?": {"sleeping": [0.97, 0.01, 0.01, 0.01], "eating": [0.01, 0.97, 0.01, 0.01],
                                   "sitting": [0.01, 0.01, 0.97, 0.01], "running": [0.01, 0.01, 0.01, 0.97]},
        "where is this?": {"here": [0.9, 0.1, 0.9, 0.1], "there": [0.1, 0.9, 0.1, 0.9]},
    }  # fmt: skip
    asks = [["what is the cat doing?", "where is this?"], *[["where is this?"]] * 3]
    generator = ClosedGenerator(table, asks=asks, captions=["a cat", "a house", "a tree", "a tree"])
    dialog = Dialog(World(4, generator), "somewhere", sure=1.0, temper=1.0, policy=InformationGain(pool=1))
    everywhere = Dialog(
        World(4, ClosedGenerator(table, captions=["a cat"] * 4)), "somewhere", sure=1.0, temper=1.0,
        policy=InformationGain(),
    )  # fmt: skip
    assert everywhere.question == "what is the cat doing?"
    assert everywhere.proposal is not None and everywhere.proposal.expected_gain is not None
    assert everywhere.proposal.expected_gain > 1.2
    assert (
        Dialog(World(4, generator), "somewhere", sure=1.0, temper=1.0, policy=InformationGain()).question
        == "where is this?"
    )
    assert dialog.question == "where is this?"  # which more images are asked


def test_not_knowing_makes_questions_of_that_form_less_promising() -> None:
    sharp, blunt = [0.99, 0.01], [0.8, 0.2]
    table = {
        question: {"one": answers, "two": answers[::-1]}
        for question, answers in (
            ("what is the cat doing?", sharp), ("what is the dog doing?", sharp), ("where is this?", blunt)
        )
    }  # fmt: skip

    def asked(first: str) -> list[str]:
        dialog = Dialog(World(2, ClosedGenerator(table)), "somewhere", sure=1.0, temper=1.0)
        assert dialog.question == "what is the cat doing?"
        dialog.answer(first)
        return [dialog.question or ""]

    assert asked("don't know") == ["what is the dog doing?"]  # half as likely to be answered, still better
    weak = {**table, "what is the dog doing?": {"one": [0.9, 0.1], "two": [0.1, 0.9]}}
    dialog = Dialog(World(2, ClosedGenerator(weak)), "somewhere", sure=1.0, temper=1.0)
    before = dialog.proposal
    dialog.answer("don't know")
    assert dialog.question == "where is this?"
    dialog.undo()
    assert dialog.proposal == before


def test_random_questions_are_drawn_by_the_seed() -> None:
    firsts = {begin(policy=RandomQuestion(), seed=seed).question for seed in range(20)}
    assert firsts == {"is there a dog?", "where is this?", "what color is the sky?"}
    for seed in range(5):
        same = begin(policy=RandomQuestion(), seed=seed)
        assert same.question == begin(policy=RandomQuestion(), seed=seed).question
        assert same.proposal is not None and same.proposal.expected_gain is None


def test_the_same_is_not_computed_twice() -> None:
    gallery = world()
    memory: dict[tuple[str, ...], object] = {}
    first = begin(gallery, memory=memory)
    first.answer("beach")
    pairs, wrote = len(gallery.generator.pairs), len(gallery.generator.wrote)
    second = begin(gallery, memory=memory)
    second.answer("beach")
    assert (len(gallery.generator.pairs), len(gallery.generator.wrote)) == (pairs, wrote)
    assert second.ranking == first.ranking
    assert len(set(gallery.generator.pairs)) == pairs


# --- when it stops ----------------------------------------------------------------------------------------


def test_it_stops_when_it_is_sure() -> None:
    dialog = begin(sure=0.75, policy=Asks(*["where is this?"] * 9))
    dialog.answer("beach")
    assert dialog.stopped == "sure" and dialog.question is None
    assert max(dialog.probabilities.values()) >= 0.75
    with pytest.raises(InvalidInputError, match="stopped: sure; tell"):
        dialog.answer("beach")
    dialog.undo()
    assert dialog.stopped is None


def test_it_stops_when_the_budget_is_spent() -> None:
    dialog = begin(budget=1)
    dialog.answer("don't know")
    assert dialog.stopped == "budget"
    assert begin(budget=0).stopped == "budget"


# --- re-encoding the dialog -------------------------------------------------------------------------------


def test_the_encoder_reads_the_dialog_as_well() -> None:
    once = "somebody, is there a dog? yes"
    twice = f"{once}, where is this? beach"
    cosines = {**COSINES, once: [0.1, 0.5, 0.2, 0.3], twice: [0.0, 0.3, 0.0, 0.6]}
    policy = Asks("is there a dog?", "what color is the sky?", "where is this?")
    yes = np.array(DOG["yes"]) / (np.array(DOG["yes"]) + np.array(DOG["no"]))
    for reread in (1.0, 0.5):
        gallery = World(4, ClosedGenerator(TABLE, asks=[QUESTIONS] * 4), cosines)
        dialog = begin(gallery, policy=policy, reread=reread)
        dialog.answer("yes")
        dialog.answer("don't know")  # which is not read
        dialog.answer("beach")
        mixed = (1 - reread) * np.array(COSINES["somebody"]) + reread * np.array(cosines[twice])
        expected = softmax(list(5.0 * mixed)) * yes * np.array(PLACE["beach"])
        assert believed(dialog) == pytest.approx(expected / expected.sum())
        dialog.undo()
        mixed = (1 - reread) * np.array(COSINES["somebody"]) + reread * np.array(cosines[once])
        expected = softmax(list(5.0 * mixed)) * yes
        assert believed(dialog) == pytest.approx(expected / expected.sum())


@pytest.mark.parametrize("answer", ["no", "No, none at all"])
def test_a_no_is_not_read_by_the_encoder(answer: str) -> None:
    table = {**TABLE, "is there a dog?": {**DOG, "no, none at all": [0.1, 0.1, 0.1, 0.1]}}
    gallery = World(4, ClosedGenerator(table, asks=[QUESTIONS] * 4), COSINES)
    dialog = begin(gallery, policy=Asks("is there a dog?", "is there a dog?"), reread=1.0)
    dialog.answer(answer)
    assert not any("dog" in text for text in gallery.encoded)
    only = begin(world(), policy=Asks("is there a dog?"))
    only.answer("no")
    assert believed(dialog) == pytest.approx(believed(only))


def test_what_the_encoder_makes_of_an_answer_is_expected_as_well() -> None:
    """To the generator all colours are alike, to the encoder they are not."""
    asked = "somebody, what color is the sky?"
    cosines = {
        **COSINES,
        f"{asked} red": [2.0, 0.0, 2.0, 0.0],
        f"{asked} blue": [0.0, 2.0, 0.0, 2.0],
        **{f"somebody, where is this? {place}": COSINES["somebody"] for place in PLACE},
    }
    colours = {"red": [0.51, 0.49, 0.51, 0.49], "blue": [0.49, 0.51, 0.49, 0.51]}
    table = {"what color is the sky?": colours, "where is this?": PLACE}
    gallery = World(4, ClosedGenerator(table), cosines)
    assert begin(gallery).question == "where is this?"
    dialog = begin(gallery, reread=1.0)
    assert dialog.question == "what color is the sky?"
    assert dialog.proposal is not None
    likely = np.array(list(colours.values())).T * np.exp(
        5.0 * (np.array([cosines[f"{asked} {colour}"] for colour in colours]).T)
    )  # of each image and answer; what the text alone says is the same for both answers
    likely = likely / likely.sum(1, keepdims=True)
    prior = softmax([2.0, 1.5, 1.0, 0.5])
    gain = sum(
        prior[i] * likely[i, a] * math.log(likely[i, a] / (prior @ likely[:, a]))
        for i, a in product(range(4), range(2))
    )
    assert dialog.proposal.expected_gain == pytest.approx(gain)


def test_what_the_encoder_would_cut_is_left_out_oldest_first() -> None:
    last = "somebody, where is this? beach"
    gallery = world(reads=len(last) + 3)
    gallery.cosines = {**COSINES, "somebody, is there a dog? yes": [0.1] * 4, last: [0.0, 0.2, 0.0, 0.0]}
    dialog = begin(gallery, policy=Asks("is there a dog?", "where is this?"), reread=1.0)
    dialog.answer("yes")
    dialog.answer("beach")
    yes = np.array(DOG["yes"]) / (np.array(DOG["yes"]) + np.array(DOG["no"]))
    expected = softmax([0.0, 1.0, 0.0, 0.0]) * yes * np.array(PLACE["beach"])
    assert believed(dialog) == pytest.approx(expected / expected.sum())


def test_caption_dialog_encodes_all_that_was_said() -> None:
    once = "somebody, is there a dog? yes"
    cosines = {
        **COSINES,
        once: [0.1, 0.5, 0.2, 0.3],
        f"{once}, where is this? beach": [0.0, 0.0, 0.0, 0.6],
    }
    gallery = World(4, ClosedGenerator(TABLE, asks=[QUESTIONS] * 4), cosines)
    dialog = begin(gallery, policy=CaptionDialog())
    assert dialog.question == "is there a dog?"  # the first of the likeliest image, whatever it tells
    dialog.answer("yes")
    assert believed(dialog) == pytest.approx(softmax([0.5, 2.5, 1.0, 1.5]))
    dialog.answer("beach")
    assert believed(dialog) == pytest.approx(softmax([0.0, 0.0, 0.0, 3.0]))
    assert gallery.generator.pairs == []  # the generator has no say in it
    dialog.undo()
    dialog.answer("no idea")
    assert believed(dialog) == pytest.approx(softmax([0.5, 2.5, 1.0, 1.5]))


def test_caption_dialog_leaves_out_the_oldest_turn_when_the_encoder_would_cut() -> None:
    last = "somebody, where is this? beach"
    gallery = world(reads=len(last) + 3)
    gallery.cosines = {**COSINES, last: [0.0, 0.2, 0.0, 0.0]}
    dialog = begin(gallery, policy=CaptionDialog())
    dialog.answer("yes")
    with pytest.warns(RuntimeWarning, match="first 1 of 2 turns are left out"):
        dialog.answer("beach")
    assert believed(dialog) == pytest.approx(softmax([0.0, 1.0, 0.0, 0.0]))


# --- more candidates --------------------------------------------------------------------------------------

BEACH = "somebody, where is this? beach"
WIDER = {
    **COSINES,
    BEACH: [0.3, 0.1, 0.0, 0.5],
    f"{BEACH}, is there a dog? yes": [0.1, 0.2, 0.6, 0.5],
}
SAID = (("where is this?", "beach"), ("is there a dog?", "yes"))


def narrow(
    gallery: World | None = None,
    *,
    cosines: Mapping[str, Sequence[float]] = WIDER,
    candidates: int = 2,
    **settings: object,
) -> Dialog:
    """A dialog that begins with few of the images."""
    gallery = gallery or world()
    gallery.cosines = cosines
    policy = Asks(*(question for question, _ in SAID))
    return begin(gallery, **{"policy": policy, "candidates": candidates, "reread": 1.0, **settings})


def numbers(dialog: Dialog) -> set[int]:
    return {hit.key for hit in dialog.ranking}


def test_what_all_that_was_said_brings_joins() -> None:
    dialog = narrow()
    assert numbers(dialog) == {0, 1}
    for (_, answer), there in zip(SAID, ({0, 1, 3}, {0, 1, 2, 3}), strict=True):
        dialog.answer(answer)
        assert numbers(dialog) == there
        assert dialog.history[-1].entropy_after == dialog.entropy
    joined = next(hit for hit in dialog.ranking if hit.key == 3)
    assert joined.scores == {
        "first_stage": 0.1,
        "dialog": joined.score,
    }  # of the first text, as with the others


cosines = st.lists(st.floats(-1, 1), min_size=4, max_size=4)


@given(st.lists(cosines, min_size=3, max_size=3), st.integers(1, 4), st.sampled_from([1.0, 0.5]))
def test_who_joins_is_judged_as_if_it_had_been_there(
    rows: list[list[float]], candidates: int, reread: float
) -> None:
    near = dict(zip(WIDER, rows, strict=True))
    dialog, whole = (narrow(cosines=near, candidates=n, reread=reread) for n in (candidates, 4))
    for _, answer in SAID:
        dialog.answer(answer)
        whole.answer(answer)
        there = {hit.id for hit in dialog.ranking}
        total = sum(whole.probabilities[id] for id in there)
        assert dict(dialog.probabilities) == pytest.approx(
            {id: whole.probabilities[id] / total for id in there}
        )


def test_undo_sends_away_whom_the_answer_brought() -> None:
    dialog = narrow()
    before = []
    for _, answer in SAID:
        before.append((dialog.ranking, dialog.entropy, dialog.history))
        dialog.answer(answer)
    other = pickle.loads(pickle.dumps(dialog))
    for state in reversed(before):
        for one in (dialog, other):
            one.undo()
            assert (one.ranking, one.entropy, one.history) == state


@pytest.mark.parametrize(("answer", "reread"), [("beach", 0.0), ("don't know", 1.0), ("no", 1.0)])
def test_nobody_joins_by_what_the_encoder_does_not_read(answer: str, reread: float) -> None:
    dialog = narrow(reread=reread, policy=Asks("where is this?" if answer == "beach" else "is there a dog?"))
    dialog.answer(answer)
    assert numbers(dialog) == {0, 1}


def test_a_newcomer_that_cannot_be_shown_is_taken_for_average() -> None:
    dialog = narrow(world(blind={3}))
    with pytest.warns(RuntimeWarning, match="1 of the candidates cannot be shown"):
        dialog.answer("beach")
    prior = softmax([2.0, 1.5, 0.5])  # images 0, 1 and 3
    evidence = np.array(PLACE["beach"])[:2] * np.exp(5.0 * (np.array(WIDER[BEACH]) - COSINES["somebody"])[:2])
    average = (prior[:2] @ evidence) / prior[:2].sum()
    expected = prior * np.array([*evidence, average])
    assert [dialog.probabilities[f"image-{n}"] for n in (0, 1, 3)] == pytest.approx(expected / expected.sum())


def test_newcomers_that_are_impossible_or_gone_stay_away() -> None:
    class Strict(Asks):
        def evidence(self, scene: Scene, question: str | None, answer: str) -> np.ndarray:
            return np.array([0.0 if hit.key < 2 else -np.inf for hit in scene.hits])

    dialog = narrow(policy=Strict("where is this?"))
    dialog.answer("beach")
    assert numbers(dialog) == {0, 1}

    class Fleeting(World):
        def similarities(self, texts: Any, hits: Any) -> Any:
            found = super().similarities(texts, hits)
            return np.where([hit.key == 3 for hit in hits], np.nan, found)

    dialog = narrow(Fleeting(4, ClosedGenerator(TABLE)))
    dialog.answer("beach")
    assert numbers(dialog) == {0, 1}


def test_a_newcomer_that_breaks_the_generator_changes_nothing() -> None:
    class Breaks(ClosedGenerator):
        def _score(self, context: Any, text: str) -> Any:
            if context[0].source == "3":
                raise ZsqError("broken at 3")
            return super()._score(context, text)

    dialog = narrow(World(4, Breaks(TABLE)))
    state = (dialog.ranking, dialog.history, dialog.question)
    with pytest.raises(ZsqError, match="broken at 3"):
        dialog.answer("beach")
    assert (dialog.ranking, dialog.history, dialog.question) == state


# --- pickling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [InformationGain(), RandomQuestion(), CaptionDialog()])
def test_a_pickled_dialog_keeps_its_state_and_goes_on_once_attached(policy: Policy) -> None:
    gallery = world()
    dialog = begin(gallery, policy=policy)
    dialog.answer("don't know")
    dialog.answer(next(iter(TABLE[dialog.question or ""])))
    other = pickle.loads(pickle.dumps(dialog))
    assert (other.ranking, other.entropy, other.history) == (dialog.ranking, dialog.entropy, dialog.history)
    with pytest.raises(InvalidInputError, match=r"give it one: dialog\.attach"):
        other.question  # noqa: B018
    with pytest.raises(InvalidInputError, match=r"give it one: dialog\.attach"):
        other.tell("it rains")
    assert len(other.history) == 2
    other.attach(gallery)
    assert other.proposal == dialog.proposal
    assert other.undo() == dialog.undo()
    assert other.ranking == dialog.ranking
    assert dialog.question is not None  # pickling took nothing from the dialog itself


def test_another_album_cannot_be_attached() -> None:
    dialog = begin(world())
    copy = pickle.loads(pickle.dumps(dialog))
    strange = world(removed={0, 1, 2, 3})
    with pytest.raises(MismatchError, match="none of the 4 candidates"):
        copy.attach(strange)
    with pytest.raises(InvalidInputError, match=r"about a gallery, such as retriever\.gallery, not 'album'"):
        copy.attach("album")
    with pytest.raises(InvalidInputError, match="give it one"):
        copy.question  # noqa: B018


# --- images that go ---------------------------------------------------------------------------------------


def test_a_removed_image_drops_out_and_the_others_share_its_probability() -> None:
    gallery = world()
    dialog = begin(gallery, policy=Asks("where is this?", "is there a dog?"))
    dialog.answer("beach")
    before = believed(dialog)
    gallery.removed.add(0)
    assert "image-0" not in dialog.probabilities
    rest = before[1:] / before[1:].sum()
    assert [dialog.probabilities[f"image-{n}"] for n in (1, 2, 3)] == pytest.approx(list(rest))
    dialog.answer("yes")
    yes = (np.array(DOG["yes"]) / (np.array(DOG["yes"]) + np.array(DOG["no"])))[1:]
    expected = rest * yes / (rest @ yes)
    assert [dialog.probabilities[f"image-{n}"] for n in (1, 2, 3)] == pytest.approx(list(expected))
    assert len(dialog.history) == 2
    dialog.undo()
    dialog.undo()
    assert sum(dialog.probabilities.values()) == pytest.approx(1)
    gallery.removed.update({1, 2, 3})
    assert dialog.stopped == "no candidates" and dialog.question is None
    assert len(dialog.ranking) == 0 and dialog.entropy == 0
    for say in (dialog.tell, dialog.answer):
        with pytest.raises(InvalidInputError, match="begin another dialog"):
            say("it rains")


@pytest.mark.parametrize("meanwhile", ["nothing", "looked at", "asked why it stopped", "pickled"])
def test_an_answer_is_to_the_question_that_was_read(meanwhile: str) -> None:
    gallery = world()
    dialog = begin(gallery)
    assert dialog.question == "where is this?"
    gallery.removed.update({1, 2})
    assert begin(gallery).question == "is there a dog?"  # which nobody was asked
    if meanwhile == "looked at":
        assert len(dialog.ranking) == 2
    if meanwhile == "asked why it stopped":
        assert dialog.stopped is None
    if meanwhile == "pickled":
        dialog = pickle.loads(pickle.dumps(dialog))
        dialog.attach(gallery)
    dialog.answer("beach")
    assert dialog.history[-1].question == "where is this?"
    dialog.undo()
    dialog.tell("it rains")
    dialog.answer("yes")
    assert [turn.question for turn in dialog.history] == [None, "is there a dog?"]


def test_a_question_for_a_removed_image_is_thought_over() -> None:
    gallery = world()
    dialog = begin(gallery)
    assert dialog.question == "where is this?"
    gallery.removed.update({1, 2, 3})
    assert dialog.question is None


def test_removed_while_pickled() -> None:
    gallery = world()
    dialog = begin(gallery)
    gallery.removed.add(2)
    copy = pickle.loads(pickle.dumps(dialog))
    assert "image-2" not in copy.probabilities


@pytest.mark.parametrize("policy", [InformationGain(), Asks("where is this?")])
def test_an_image_that_cannot_be_shown_keeps_its_probability(policy: Policy) -> None:
    gallery = world(blind={1})
    dialog = begin(gallery, policy=policy)
    before = believed(dialog)
    with pytest.warns(RuntimeWarning, match="1 of the candidates cannot be shown"):
        dialog.answer("beach")
    after = believed(dialog)
    assert after[1] == pytest.approx(before[1])
    others = before[[0, 2, 3]] * np.array(PLACE["beach"])[[0, 2, 3]]
    assert after[[0, 2, 3]] == pytest.approx(others / others.sum() * (1 - before[1]))


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["", "  \n", "?!", None, 3, b"yes", ["yes"]])
def test_an_answer_must_say_something(said: object) -> None:
    dialog = begin()
    state = (dialog.ranking, dialog.history, dialog.question)
    with pytest.raises(InvalidInputError, match="an answer must be a text that says something"):
        dialog.answer(said)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="what is told must be a text"):
        dialog.tell(said)  # type: ignore[arg-type]
    assert (dialog.ranking, dialog.history, dialog.question) == state


def test_an_answer_that_is_too_long_changes_nothing() -> None:
    dialog = begin()
    state = (dialog.ranking, dialog.history, dialog.question)
    long = r"'beach beach .*\.\.\.' was not taken, and nothing has changed: .* reads 80"
    with pytest.raises(InvalidInputError, match=long):
        dialog.answer("beach " * 100)
    assert (dialog.ranking, dialog.history, dialog.question) == state


def test_an_empty_album_and_texts_that_say_nothing() -> None:
    with pytest.raises(InvalidInputError, match="the album is empty"):
        Dialog(World(0, ClosedGenerator({})), "somebody")
    with pytest.raises(InvalidInputError, match="the text to look for must"):
        Dialog(world(), " ")
    with pytest.raises(InvalidInputError, match="an answer is not Unicode text"):
        begin().answer("a caf\udce9")


@pytest.mark.parametrize(
    "setting",
    [{"candidates": 0}, {"budget": -1}, {"sure": 0.0}, {"sure": 1.1}, {"scale": math.nan}, {"scale": -1.0},
     {"reread": -1.0}, {"reread": math.nan}, {"temper": 0.0}, {"temper": math.inf}, {"seed": -1},
     {"batch_size": 0}, {"policy": InformationGain},
     {"candidates": 2.5}, {"candidates": "9"}, {"budget": True}, {"seed": None}, {"sure": "much"},
     {"scale": None}, {"policy": "random"}],
)  # fmt: skip
def test_settings_out_of_range(setting: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        begin(**setting)


@pytest.mark.parametrize(
    "make",
    [lambda: InformationGain(top=1), lambda: InformationGain(images=0), lambda: InformationGain(least=-1.0),
     lambda: RandomQuestion(pool=0), lambda: CaptionDialog(images=0), lambda: Wording(yes=()),
     lambda: Wording(answer=Prompt("<image>?")), lambda: Wording(ask=Prompt("{question}"))],
)  # fmt: skip
def test_policies_and_wordings_out_of_range(make: object) -> None:
    with pytest.raises(InvalidInputError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("verbalisers", "message"),
    [
        ({"yes": " yes"}, "yes must be a sequence of texts, not ' yes'"),
        ({"no": " no"}, "no must be a sequence of texts, not ' no'"),
        ({"yes": 3}, "yes must be a sequence of texts, not 3"),
        ({"yes": (" yes", 3)}, "verbalisers must be texts that say something"),
        ({"no": (" ",)}, "verbalisers must be texts that say something"),
        ({"yes": (" yes", " yes")}, "a verbaliser is given twice"),
        ({"no": (" yes",)}, "a verbaliser is given twice"),
    ],
)
@pytest.mark.parametrize("make", [Wording, YesNo])
def test_verbalisers_that_are_none(make: Callable[..., object], verbalisers: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make(**verbalisers)


def test_verbalisers_may_come_as_a_list() -> None:
    for made in (Wording(yes=[" yes", " yeah"]), YesNo(yes=[" yes", " yeah"])):  # type: ignore[arg-type]
        assert made.yes == (" yes", " yeah") and hash(made)


def test_a_generator_that_cannot_write() -> None:
    class Mute(ClosedGenerator):
        def generate(self, contexts: object, **settings: object) -> list[list[str]]:  # type: ignore[override]
            raise NotImplementedError

    dialog = begin(World(4, Mute(TABLE), COSINES))
    with pytest.raises(InvalidInputError, match="the generator Mute scores texts but writes none"):
        dialog.question  # noqa: B018
    dialog.tell("it rains")  # which takes likelihoods only
    assert len(dialog.history) == 1


class Silent(Asks):
    """A policy whose evidence is wrong."""

    def __init__(self, evidence: object) -> None:
        super().__init__("where is this?")
        self.given = evidence

    def evidence(self, scene: Scene, question: str | None, answer: str) -> np.ndarray:
        return np.array(self.given)


@pytest.mark.parametrize("evidence", [[0.0], [0.0, 0.0, 0.0, np.inf], [-np.inf] * 4])
def test_evidence_that_is_none(evidence: list[float]) -> None:
    dialog = begin(policy=Silent(evidence))
    state = dialog.ranking
    with pytest.raises(InvalidInputError, match="candidates"):
        dialog.answer("beach")
    assert dialog.ranking == state and not dialog.history


def test_evidence_may_rule_out() -> None:
    dialog = begin(policy=Silent([-np.inf, 0.0, 0.0, np.nan]))
    before = believed(dialog)
    dialog.answer("beach")
    after = believed(dialog)
    assert after[0] == 0 and after[3] == pytest.approx(before[3])
    assert after.sum() == pytest.approx(1)
    assert math.isfinite(dialog.entropy)


def test_many_answers_do_not_underflow() -> None:
    tiny = {"which one?": {"this": [1e-30, 1e-31, 1e-32, 1e-33]}}
    gallery = World(4, ClosedGenerator(tiny), COSINES)
    dialog = begin(gallery, policy=Asks(*["which one?"] * 50), budget=50)
    for _ in range(50):
        dialog.answer("this")
    scores = [hit.score for hit in dialog.ranking]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4
    assert all(math.isfinite(score) for score in scores)
    assert dialog.entropy == pytest.approx(0, abs=1e-9)


def test_it_says_what_it_is() -> None:
    assert repr(begin()).startswith("Dialog('somebody', InformationGain, 0 turns, 4 candidates, entropy 1.2")

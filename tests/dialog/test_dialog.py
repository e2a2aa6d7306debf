"""Dialogs over a closed world, whose probabilities are all known."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from closed_world import ClosedGenerator, World
from zsqretrieval.dialog.dialog import Dialog
from zsqretrieval.dialog.evidence import Scene
from zsqretrieval.dialog.oracle import Wording
from zsqretrieval.dialog.policies import (
    CaptionDialog,
    InformationGain,
    Policy,
    Proposal,
    RandomQuestion,
    information_gain,
)
from zsqretrieval.errors import InvalidInputError, MismatchError, ZsqError
from zsqretrieval.generators.prompts import Prompt
from zsqretrieval.presets import Calibration
from zsqretrieval.search.scoring import YesNo
from zsqretrieval.types import Hit

DOG = {"yes": [0.9, 0.1, 0.5, 0.2], "no": [0.1, 0.9, 0.5, 0.6]}  # need not add up to 1: a closed set
PLACE = {"beach": [0.7, 0.1, 0.1, 0.2], "forest": [0.1, 0.8, 0.1, 0.2], "city": [0.2, 0.1, 0.8, 0.6]}
COLOR = {"red": [0.5, 0.5, 0.5, 0.5], "blue": [0.5, 0.5, 0.5, 0.5]}
ON_A_BOAT, RAIN = [0.2, 0.01, 0.1, 0.01], [0.1, 0.2, 0.3, 0.4]
TABLE = {
    "is there a dog?": {**DOG, "yes, on a boat": ON_A_BOAT},
    "where is this?": PLACE,
    "what color is the sky?": COLOR,
    "told": {"it rains": RAIN},
}
QUESTIONS = ("is there a dog?", "where is this?", "what color is the sky?")
COSINES = {"somebody": [0.4, 0.3, 0.2, 0.1]}
PRIOR = np.exp([2.0, 1.5, 1.0, 0.5])  # at scale 5, not normalised
YES = np.array(DOG["yes"]) / (np.array(DOG["yes"]) + DOG["no"])
POLICIES = pytest.mark.parametrize("policy", [InformationGain(), RandomQuestion(), CaptionDialog()])


def world(cosines: Mapping[str, Sequence[float]] = COSINES, **settings: Any) -> World:
    return World(4, ClosedGenerator(TABLE, asks=[QUESTIONS] * 4), cosines, **settings)


def begin(gallery: World | None = None, text: str = "somebody", **settings: Any) -> Dialog:
    """A dialog that never ends by certainty, by default with answers scored by the generator alone."""
    given = {"scale": 5.0, "temper": 1.0, "sure": 1.0, "reread": 0.0, **settings}
    return Dialog(gallery or world(), text, **given)


def calibrated(gallery: World, text: str = "somewhere", **settings: Any) -> Dialog:
    """A dialog with the default calibration."""
    numbers = {name: getattr(Calibration(), f"dialog_{name}") for name in ("scale", "temper", "reread")}
    return begin(gallery, text, **{**numbers, **settings})


class Asks:
    """A policy with given questions and the evidence of InformationGain."""

    def __init__(self, *questions: str) -> None:
        self.questions = questions

    def propose(self, scene: Scene) -> Proposal | None:
        n = sum(turn.question is not None for turn in scene.turns)
        return Proposal(self.questions[n]) if n < len(self.questions) else None

    def evidence(self, scene: Scene, question: str | None, answer: str) -> np.ndarray:
        return InformationGain().evidence(scene, question, answer)


def posterior(dialog: Dialog, numbers: Sequence[int] | None = None) -> np.ndarray:
    """P(image | dialog) of all images, or of some."""
    return np.array([dialog.probabilities[f"image-{n}"] for n in numbers or range(len(dialog.ranking))])


def normalised(weights: Any) -> Any:
    """Weights as probabilities that add up to 1, for comparison."""
    return pytest.approx(np.asarray(weights) / np.sum(weights))


def state(dialog: Dialog) -> tuple[Any, ...]:
    return dialog.ranking, dialog.entropy, dialog.history, dialog.proposal


# --- the posterior ----------------------------------------------------------------------------------------


def test_posterior_without_answers_is_the_softmax_of_the_first_stage() -> None:
    dialog = begin()
    assert posterior(dialog) == normalised(PRIOR)
    assert [hit.id for hit in dialog.ranking] == ["image-0", "image-1", "image-2", "image-3"]
    assert dialog.ranking[0].score == pytest.approx(math.log(dialog.probabilities["image-0"]))
    assert dialog.ranking[0].scores == {"first_stage": 0.4, "dialog": dialog.ranking[0].score}
    assert dialog.ranking.query == "somebody"
    p = posterior(dialog)
    assert dialog.entropy == pytest.approx(float(-(p * np.log(p)).sum()))
    assert repr(dialog).startswith("Dialog('somebody', InformationGain, 0 turns, 4 candidates, entropy 1.2")


def test_gallery_without_named_scores_works() -> None:
    class Bare(World):
        def first_stage(self, text: str, k: int) -> list[Hit]:
            return [replace(hit, scores={}) for hit in super().first_stage(text, k)]

    assert posterior(begin(Bare(4, ClosedGenerator(TABLE), COSINES))) == normalised(PRIOR)


@pytest.mark.parametrize("temper", [1.0, 0.5])
def test_answers_update_the_posterior_by_bayes_rule(temper: float) -> None:
    dialog = begin(policy=Asks("is there a dog?", "where is this?"), temper=temper)
    dialog.answer("Yes!")
    dialog.answer("forest")
    assert posterior(dialog) == normalised(PRIOR * (YES * PLACE["forest"]) ** temper)


def test_rest_of_an_answer_after_yes_follows_the_chain_rule() -> None:
    """P(yes), normalised, times P(", on a boat" | yes), for which the table gives P("yes, on a boat")."""
    dialog = begin(policy=Asks("is there a dog?"))
    dialog.answer("yes, on a boat")
    assert posterior(dialog) == normalised(PRIOR * YES * ON_A_BOAT)


def test_statement_updates_the_posterior_and_uses_no_budget() -> None:
    dialog = begin(budget=1)
    dialog.tell("it rains")
    assert posterior(dialog) == normalised(PRIOR * RAIN)
    assert dialog.history[0].question is dialog.stopped is None


def test_probabilities_of_verbalisers_add_up() -> None:
    table = {"is it?": {"yes": [0.1, 0.2], "yeah": [0.3, 0.1], "no": [0.4, 0.4]}}
    wording = Wording(yes=(" yes", " yeah"))
    dialog = begin(World(2, ClosedGenerator(table)), policy=Asks("is it?"), wording=wording, reread=1.0)
    dialog.answer("yes")
    assert posterior(dialog) == normalised([0.4 / 0.8, 0.3 / 0.7])


steps = st.sampled_from([*((QUESTIONS[0], one) for one in DOG), *((QUESTIONS[1], one) for one in PLACE)])


@given(st.lists(steps, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_posterior_does_not_depend_on_the_order_of_answers(said: list[tuple[str, str]], random: Any) -> None:
    found = []
    for some in (said, random.sample(said, len(said))):
        dialog = begin(policy=Asks(*(question for question, _ in some)))
        for question, answer in some:
            assert dialog.question == question
            dialog.answer(answer)
        found.append(posterior(dialog))
    assert found[0] == pytest.approx(found[1])


@given(
    st.lists(steps | st.just(("where is this?", "don't know")), min_size=1, max_size=6),
    st.sampled_from([0.0, 1.0]),
)
def test_undo_restores_every_earlier_state(said: list[tuple[str, str]], reread: float) -> None:
    dialog = begin(policy=Asks(*(question for question, _ in said)), reread=reread)
    before = []
    for _, answer in said:
        before.append(state(dialog))
        dialog.answer(answer)
    for one in reversed(before):
        dialog.undo()
        assert state(dialog) == one


@POLICIES
def test_dont_know_keeps_the_posterior_and_the_question_is_not_repeated(policy: Policy) -> None:
    dialog = begin(policy=policy)
    before, asked = dialog.ranking, []
    while (question := dialog.question) is not None:
        asked.append(question)
        dialog.answer("I don't know.")
        assert dialog.ranking == before
    assert len(asked) == len(set(asked)) > 1
    assert dialog.stopped == "nothing to ask"
    assert all(turn.entropy_before == turn.entropy_after == dialog.entropy for turn in dialog.history)


def test_many_answers_do_not_underflow() -> None:
    gallery = World(4, ClosedGenerator({"which one?": {"this": [1e-30, 1e-31, 1e-32, 1e-33]}}), COSINES)
    dialog = begin(gallery, policy=Asks(*["which one?"] * 50), budget=50)
    for _ in range(50):
        dialog.answer("this")
    scores = [hit.score for hit in dialog.ranking]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4
    assert all(math.isfinite(score) for score in scores)
    assert dialog.entropy == pytest.approx(0, abs=1e-9)


# --- questions --------------------------------------------------------------------------------------------


def gain_of(weights: Any, likely: Any) -> float:
    """The gain by weights [n] and likelihoods [n, a]; test_information_gain.py has its definition."""
    return information_gain(log_softmax(np.log(weights)), log_softmax(np.log(likely), axis=1))


def test_question_with_the_highest_gain_comes_first() -> None:
    dialog = begin()
    answers = dict(zip(QUESTIONS, (DOG, PLACE, COLOR), strict=True))
    gains = {name: gain_of(PRIOR, np.array(list(some.values())).T) for name, some in answers.items()}
    assert dialog.question == max(gains, key=lambda one: gains[one]) == "where is this?"
    assert dialog.proposal is not None
    assert dialog.proposal.expected_gain == pytest.approx(gains["where is this?"])
    assert dialog.proposal.answers == ("beach", "forest", "city")  # by the probability of their images
    dialog.answer("beach")
    turn = dialog.history[0]
    assert (turn.question, turn.answer) == ("where is this?", "beach")
    assert turn.expected_gain == pytest.approx(gains["where is this?"])
    assert turn.entropy_after == dialog.entropy < turn.entropy_before
    assert dialog.question == "is there a dog?"
    dialog.answer("no")
    assert dialog.question == "what color is the sky?"  # without any gain, so it is the last
    assert dialog.proposal is not None and dialog.proposal.expected_gain == pytest.approx(0, abs=1e-9)
    dialog.answer("red")
    assert dialog.question is None
    assert dialog.stopped == "nothing to ask"


def test_all_questions_of_the_pool_are_scored_in_one_call() -> None:
    gallery = world()
    seen: list[tuple[str, int, int | None]] = []
    dialog = begin(gallery, progress=lambda *one: seen.append(one))
    assert dialog.question is not None
    assert gallery.generator.calls == 1
    scored = [one for one in seen if one[0] == "scoring"]
    assert scored == [("scoring", 4 * (2 + 3 + 1), 4 * (2 + 3 + 1))]  # yes, no; three places; one colour
    assert {step for step, *_ in seen} == {"scoring", "writing questions", "writing answers"}


def test_question_below_the_minimum_gain_is_not_asked() -> None:
    dialog = begin(policy=InformationGain(least=1e-4))
    for answer in ("beach", "no"):
        dialog.answer(answer)
    assert dialog.stopped == "nothing to ask"


def test_question_with_one_expected_answer_comes_last() -> None:
    table = {
        "what is he doing?": {"running": [0.9, 0.8]},
        "where is this?": {"here": [0.9, 0.1], "there": [0.1, 0.9]},
    }
    dialog = calibrated(World(2, ClosedGenerator(table)), "somebody")
    assert dialog.question == "where is this?"
    dialog.answer("don't know")
    assert dialog.question == "what is he doing?"
    assert dialog.proposal is not None and dialog.proposal.expected_gain == 0


@given(arrays(np.float64, (3, 3), elements=st.floats(0.01, 1)))
def test_expected_gain_is_the_mean_fall_of_the_entropy(rows: np.ndarray) -> None:
    likely = rows / rows.sum(axis=1, keepdims=True)  # [n, a]
    answers = {name: list(likely[:, a]) for a, name in enumerate(("left", "right", "up"))}
    gallery = World(3, ClosedGenerator({"which way?": answers}), {"somebody": [0.3, 0.2, 0.0]})
    dialog = begin(gallery, policy=Asks("which way?"))
    prior, before = posterior(dialog), dialog.entropy
    left = 0.0
    for a, name in enumerate(answers):
        dialog.answer(name)
        left += float(prior @ likely[:, a]) * dialog.entropy
        dialog.undo()
    assert dialog.entropy == before
    assert before - left == pytest.approx(gain_of(prior, likely), abs=1e-6)


def test_question_settled_by_the_query_is_not_asked() -> None:
    settled = calibrated(world({}), "a dog at the beach", policy=InformationGain(least=1e-4))
    assert settled.stopped == "nothing to ask"
    assert calibrated(world({}), "a dog").question == "where is this?"


def test_different_captions_give_yes_no_questions() -> None:
    table = {"is there a dog?": {"yes": [0.9, 0.1], "no": [0.1, 0.9]}}
    generator = ClosedGenerator(table, asks=[[""], [""]], captions=["a dog in a park.", "a park"])
    assert calibrated(World(2, generator)).question == "is there a dog?"


def test_retained_questions_are_asked() -> None:
    generator = ClosedGenerator(TABLE, asks=[[]] * 4)
    gallery = World(4, generator, COSINES, stored={1: ("Where is this?",), 2: ("Is it?",)})
    assert begin(gallery).question == "where is this?"


def test_only_the_most_probable_images_supply_questions() -> None:
    gallery = world()
    assert begin(gallery, policy=InformationGain(images=1)).question is not None
    asked = {n for n, prompt in gallery.generator.wrote if prompt == "A question about this picture:"}
    assert asked == {0}
    alone = world()
    alone.generator.asks = [["is there a dog?"], ["where is this?"], [], []]  # the place has more gain
    assert begin(alone, policy=InformationGain(images=1)).question == "is there a dog?"


def test_gain_counts_images_that_have_an_answer() -> None:
    table = {
        # The question about the cat would tell all four apart, but only one caption has a cat.
        "what is the cat doing?": {"sleeping": [0.97, 0.01, 0.01, 0.01], "eating": [0.01, 0.97, 0.01, 0.01],
                                   "sitting": [0.01, 0.01, 0.97, 0.01], "running": [0.01, 0.01, 0.01, 0.97]},
        "where is this?": {"here": [0.9, 0.1, 0.9, 0.1], "there": [0.1, 0.9, 0.1, 0.9]},
    }  # fmt: skip
    asks = [["what is the cat doing?", "where is this?"], *[["where is this?"]] * 3]
    one_cat = ClosedGenerator(table, asks=asks, captions=["a cat", "a house", "a tree", "a tree"])
    four_cats = ClosedGenerator(table, captions=["a cat"] * 4)
    everywhere = calibrated(World(4, four_cats), temper=1.0)
    assert everywhere.question == "what is the cat doing?"
    assert everywhere.proposal is not None and everywhere.proposal.expected_gain is not None
    assert everywhere.proposal.expected_gain > 1.2
    for policy in (InformationGain(), InformationGain(pool=1)):  # the pool has the most asked question
        assert calibrated(World(4, one_cat), temper=1.0, policy=policy).question == "where is this?"


def test_dont_know_lowers_the_gain_of_questions_of_the_same_form() -> None:
    sharp, weak, blunt = [0.99, 0.01], [0.9, 0.1], [0.8, 0.2]

    # At half the gain, a sharp question is still the best and a weak one is not.
    for dog, following in ((sharp, "what is the dog doing?"), (weak, "where is this?")):
        likely = {"what is the cat doing?": sharp, "what is the dog doing?": dog, "where is this?": blunt}
        table = {question: {"one": some, "two": some[::-1]} for question, some in likely.items()}
        dialog = calibrated(World(2, ClosedGenerator(table)), temper=1.0)
        before = dialog.proposal
        assert before is not None and before.question == "what is the cat doing?"
        dialog.answer("don't know")
        assert dialog.question == following
        dialog.undo()
        assert dialog.proposal == before


def test_seed_determines_random_questions() -> None:
    first, again = ([begin(policy=RandomQuestion(), seed=n).proposal for n in range(20)] for _ in range(2))
    assert first == again and {one and one.question for one in first} == set(QUESTIONS)
    assert all(one is not None and one.expected_gain is None for one in first)


def test_dialogs_with_shared_memory_compute_nothing_twice() -> None:
    gallery = world()
    memory: dict[tuple[str, ...], object] = {}
    rankings, computed = [], []
    for _ in range(2):
        dialog = begin(gallery, memory=memory)
        dialog.answer("beach")
        rankings.append(dialog.ranking)
        computed.append((len(gallery.generator.pairs), len(gallery.generator.wrote)))
    assert rankings[0] == rankings[1] and computed[0] == computed[1]
    assert len(set(gallery.generator.pairs)) == computed[0][0]


# --- the end of a dialog ----------------------------------------------------------------------------------


def test_dialog_ends_when_one_image_is_probable_enough() -> None:
    dialog = begin(sure=0.75, policy=Asks(*["where is this?"] * 9))
    dialog.answer("beach")
    assert dialog.stopped == "sure" and dialog.question is None
    assert max(dialog.probabilities.values()) >= 0.75
    with pytest.raises(InvalidInputError, match=r"ended \(sure\) and has no question to answer; tell"):
        dialog.answer("beach")
    dialog.undo()
    assert dialog.stopped is None


def test_dialog_ends_when_the_budget_is_spent() -> None:
    dialog = begin(budget=1)
    dialog.answer("don't know")
    assert dialog.stopped == begin(budget=0).stopped == "budget"


# --- the encoder's score of the dialog --------------------------------------------------------------------

ONCE = "somebody, is there a dog? yes"
TWICE = f"{ONCE}, where is this? beach"
BEACH = "somebody, where is this? beach"


@pytest.mark.parametrize("reread", [1.0, 0.5])
def test_encoder_scores_the_whole_dialog_with_weight_reread(reread: float) -> None:
    cosines = {**COSINES, ONCE: [0.1, 0.5, 0.2, 0.3], TWICE: [0.0, 0.3, 0.0, 0.6]}

    def by_encoder(text: str) -> np.ndarray:
        mixed = (1 - reread) * np.array(COSINES["somebody"]) + reread * np.array(cosines[text])
        return np.exp(5.0 * mixed)

    policy = Asks("is there a dog?", "what color is the sky?", "where is this?")
    dialog = begin(world(cosines), policy=policy, reread=reread)
    for answer in ("yes", "don't know", "beach"):  # "don't know" is left out of the text
        dialog.answer(answer)
    assert posterior(dialog) == normalised(by_encoder(TWICE) * YES * PLACE["beach"])
    dialog.undo()
    assert posterior(dialog) == normalised(by_encoder(ONCE) * YES)


@pytest.mark.parametrize("answer", ["no", "No, none at all"])
def test_no_is_left_out_of_the_encoders_text(answer: str) -> None:
    table = {**TABLE, "is there a dog?": {**DOG, "no, none at all": [0.1, 0.1, 0.1, 0.1]}}
    gallery = World(4, ClosedGenerator(table, asks=[QUESTIONS] * 4), COSINES)
    dialog = begin(gallery, policy=Asks("is there a dog?", "is there a dog?"), reread=1.0)
    dialog.answer(answer)
    assert not any("dog" in text for text in gallery.encoded)
    only = begin(world(), policy=Asks("is there a dog?"))
    only.answer("no")
    assert posterior(dialog) == pytest.approx(posterior(only))


def test_expected_gain_includes_the_encoders_score() -> None:
    """The generator hardly tells the colours apart, the encoder does."""
    asked = "somebody, what color is the sky?"
    cosines = {
        **COSINES,
        f"{asked} red": [2.0, 0.0, 2.0, 0.0],
        f"{asked} blue": [0.0, 2.0, 0.0, 2.0],
        **{f"somebody, where is this? {place}": COSINES["somebody"] for place in PLACE},
    }
    colours = {"red": [0.51, 0.49, 0.51, 0.49], "blue": [0.49, 0.51, 0.49, 0.51]}
    gallery = World(4, ClosedGenerator({"what color is the sky?": colours, "where is this?": PLACE}), cosines)
    assert begin(gallery).question == "where is this?"
    dialog = begin(gallery, reread=1.0)
    assert dialog.question == "what color is the sky?"
    assert dialog.proposal is not None
    by_encoder = np.exp(5.0 * np.array([cosines[f"{asked} {colour}"] for colour in colours]))
    # The cosine of the query alone is the same for both answers, so it cancels.
    likely = (np.array(list(colours.values())) * by_encoder).T
    assert dialog.proposal.expected_gain == pytest.approx(gain_of(PRIOR, likely))


def test_oldest_turns_are_left_out_of_a_text_too_long_for_the_encoder() -> None:
    cosines = {**COSINES, ONCE: [0.1] * 4, BEACH: [0.0, 0.2, 0.0, 0.0]}
    gallery = world(cosines, reads=len(BEACH) + 3)
    dialog = begin(gallery, policy=Asks("is there a dog?", "where is this?"), reread=1.0)
    dialog.answer("yes")
    dialog.answer("beach")
    assert posterior(dialog) == normalised(np.exp([0.0, 1.0, 0.0, 0.0]) * YES * PLACE["beach"])


def test_caption_dialog_ranks_by_the_dialog_as_one_text() -> None:
    gallery = world({**COSINES, ONCE: [0.1, 0.5, 0.2, 0.3], TWICE: [0.0, 0.0, 0.0, 0.6]})
    dialog = begin(gallery, policy=CaptionDialog())
    assert dialog.question == "is there a dog?"  # the first question of the most probable image
    dialog.answer("yes")
    assert posterior(dialog) == normalised(np.exp([0.5, 2.5, 1.0, 1.5]))
    dialog.answer("beach")
    assert posterior(dialog) == normalised(np.exp([0.0, 0.0, 0.0, 3.0]))
    assert gallery.generator.pairs == []  # the generator scores nothing
    dialog.undo()
    dialog.answer("no idea")
    assert posterior(dialog) == normalised(np.exp([0.5, 2.5, 1.0, 1.5]))


def test_caption_dialog_leaves_out_the_oldest_turn_of_a_long_text() -> None:
    gallery = world({**COSINES, BEACH: [0.0, 0.2, 0.0, 0.0]}, reads=len(BEACH) + 3)
    dialog = begin(gallery, policy=CaptionDialog())
    dialog.answer("yes")
    with pytest.warns(RuntimeWarning, match="first 1 of 2 turns are left out"):
        dialog.answer("beach")
    assert posterior(dialog) == normalised(np.exp([0.0, 1.0, 0.0, 0.0]))


# --- late candidates --------------------------------------------------------------------------------------

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
    **settings: Any,
) -> Dialog:
    """A dialog with few candidates."""
    gallery = gallery or world()
    gallery.cosines = cosines
    policy = Asks(*(question for question, _ in SAID))
    return begin(gallery, **{"policy": policy, "candidates": candidates, "reread": 1.0, **settings})


def numbers(dialog: Dialog) -> set[int]:
    return {hit.key for hit in dialog.ranking}


def test_images_found_by_the_whole_dialog_become_candidates() -> None:
    dialog = narrow()
    assert numbers(dialog) == {0, 1}
    for (_, answer), there in zip(SAID, ({0, 1, 3}, {0, 1, 2, 3}), strict=True):
        dialog.answer(answer)
        assert numbers(dialog) == there
        assert dialog.history[-1].entropy_after == dialog.entropy
    late = next(hit for hit in dialog.ranking if hit.key == 3)
    assert late.scores == {"first_stage": 0.1, "dialog": late.score}  # the cosine of the query


cosines = st.lists(st.floats(-1, 1), min_size=4, max_size=4)


@given(st.lists(cosines, min_size=3, max_size=3), st.integers(1, 4), st.sampled_from([1.0, 0.5]))
def test_late_candidate_gets_all_previous_answers(
    rows: list[list[float]], candidates: int, reread: float
) -> None:
    near = dict(zip(WIDER, rows, strict=True))
    dialog, whole = (narrow(cosines=near, candidates=n, reread=reread) for n in (candidates, 4))
    for _, answer in SAID:
        dialog.answer(answer)
        whole.answer(answer)
        there = {hit.id for hit in dialog.ranking}
        total = sum(whole.probabilities[id] for id in there)
        expected = {id: whole.probabilities[id] / total for id in there}
        assert dict(dialog.probabilities) == pytest.approx(expected)


def test_undo_removes_late_candidates() -> None:
    dialog = narrow()
    before = []
    for _, answer in SAID:
        before.append(state(dialog)[:3])
        dialog.answer(answer)
    other = pickle.loads(pickle.dumps(dialog))
    for earlier in reversed(before):
        for one in (dialog, other):
            one.undo()
            assert (one.ranking, one.entropy, one.history) == earlier


@pytest.mark.parametrize(("answer", "reread"), [("beach", 0.0), ("don't know", 1.0), ("no", 1.0)])
def test_answer_outside_the_encoders_text_brings_no_candidates(answer: str, reread: float) -> None:
    dialog = narrow(reread=reread, policy=Asks("where is this?" if answer == "beach" else "is there a dog?"))
    dialog.answer(answer)
    assert numbers(dialog) == {0, 1}


def test_late_candidate_that_cannot_be_shown_gets_the_average_evidence() -> None:
    dialog = narrow(world(blind={3}))
    with pytest.warns(RuntimeWarning, match="1 of the candidates cannot be shown"):
        dialog.answer("beach")
    prior = PRIOR[[0, 1, 3]]
    evidence = np.array(PLACE["beach"])[:2] * np.exp(5.0 * (np.array(WIDER[BEACH]) - COSINES["somebody"])[:2])
    average = (prior[:2] @ evidence) / prior[:2].sum()
    assert posterior(dialog, (0, 1, 3)) == normalised(prior * np.array([*evidence, average]))


def test_impossible_and_removed_images_become_no_candidates() -> None:
    class Strict(Asks):
        def evidence(self, scene: Scene, *_: Any) -> np.ndarray:
            return np.array([0.0 if hit.key < 2 else -np.inf for hit in scene.hits])

    class Fleeting(World):
        def similarities(self, texts: Any, hits: Any) -> Any:
            found = super().similarities(texts, hits)
            return np.where([hit.key == 3 for hit in hits], np.nan, found)

    for dialog in (narrow(policy=Strict("where is this?")), narrow(Fleeting(4, ClosedGenerator(TABLE)))):
        dialog.answer("beach")
        assert numbers(dialog) == {0, 1}


def test_error_for_a_late_candidate_changes_nothing() -> None:
    class Breaks(ClosedGenerator):
        def _score(self, context: Any, text: str) -> Any:
            if context[0].source == "3":
                raise ZsqError("broken at 3")
            return super()._score(context, text)

    dialog = narrow(World(4, Breaks(TABLE)))
    before = state(dialog)
    with pytest.raises(ZsqError, match="broken at 3"):
        dialog.answer("beach")
    assert state(dialog) == before


# --- pickling ---------------------------------------------------------------------------------------------


@POLICIES
def test_unpickled_dialog_keeps_its_state_and_asks_again_once_attached(policy: Policy) -> None:
    gallery = world()
    dialog = begin(gallery, policy=policy)
    dialog.answer("don't know")
    dialog.answer(next(iter(TABLE[dialog.question or ""])))
    other = pickle.loads(pickle.dumps(dialog))
    assert (other.ranking, other.entropy, other.history) == (dialog.ranking, dialog.entropy, dialog.history)
    for use in (lambda: other.question, lambda: other.tell("it rains")):
        with pytest.raises(InvalidInputError, match=r"has no album; call dialog\.attach"):
            use()
    assert len(other.history) == 2
    other.attach(gallery)
    assert other.proposal == dialog.proposal
    assert other.undo() == dialog.undo()
    assert other.ranking == dialog.ranking
    assert dialog.question is not None  # pickling does not change the dialog itself


def test_gallery_without_the_candidates_cannot_be_attached() -> None:
    copy = pickle.loads(pickle.dumps(begin(world())))
    with pytest.raises(MismatchError, match="none of the 4 candidates"):
        copy.attach(world(removed={0, 1, 2, 3}))
    with pytest.raises(
        InvalidInputError, match=r"a dialog needs a gallery, such as retriever\.gallery\(\), not 'album'"
    ):
        copy.attach("album")
    with pytest.raises(InvalidInputError, match="has no album"):
        copy.question  # noqa: B018


# --- removed images ---------------------------------------------------------------------------------------


def test_removed_image_leaves_its_probability_to_the_others() -> None:
    gallery = world()
    dialog = begin(gallery, policy=Asks("where is this?", "is there a dog?"))
    dialog.answer("beach")
    before = posterior(dialog)
    gallery.removed.add(0)
    assert "image-0" not in dialog.probabilities
    assert posterior(dialog, (1, 2, 3)) == normalised(before[1:])
    dialog.answer("yes")
    assert posterior(dialog, (1, 2, 3)) == normalised(before[1:] * YES[1:])
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


@pytest.mark.parametrize("meanwhile", ["nothing", "ranking", "stopped", "pickled"])
def test_answer_belongs_to_the_question_last_shown(meanwhile: str) -> None:
    gallery = world()
    dialog = begin(gallery)
    assert dialog.question == "where is this?"
    gallery.removed.update({1, 2})
    assert begin(gallery).question == "is there a dog?"  # the next proposal, which was not shown
    if meanwhile == "ranking":
        assert len(dialog.ranking) == 2
    if meanwhile == "stopped":
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


def test_removed_image_is_no_candidate_after_pickling_and_the_policy_proposes_again() -> None:
    gallery = world()
    dialog = begin(gallery)
    assert dialog.question == "where is this?"
    gallery.removed.update({1, 2, 3})
    assert pickle.loads(pickle.dumps(dialog)).probabilities.keys() == {"image-0"}
    assert dialog.question is None


@pytest.mark.parametrize("policy", [InformationGain(), Asks("where is this?")])
def test_image_that_cannot_be_shown_keeps_its_probability(policy: Policy) -> None:
    dialog = begin(world(blind={1}), policy=policy)
    before = posterior(dialog)
    with pytest.warns(RuntimeWarning, match="1 of the candidates cannot be shown"):
        dialog.answer("beach")
    after = posterior(dialog)
    assert after[1] == pytest.approx(before[1])
    others = before[[0, 2, 3]] * np.array(PLACE["beach"])[[0, 2, 3]]
    assert after[[0, 2, 3]] == pytest.approx(others / others.sum() * (1 - before[1]))


# --- refusals ---------------------------------------------------------------------------------------------

TEXT = "must (be a non-empty string|have letters or digits), not"


@pytest.mark.parametrize("said", ["", "  \n", "?!", None, 3, b"yes", ["yes"]])
def test_empty_answer_is_refused(said: Any) -> None:
    dialog = begin()
    before = state(dialog)
    for say, what in ((dialog.answer, "an answer"), (dialog.tell, "a statement")):
        with pytest.raises(InvalidInputError, match=f"{what} {TEXT}"):
            say(said)
    assert state(dialog) == before


def test_answer_that_is_too_long_changes_nothing() -> None:
    dialog = begin()
    before = state(dialog)
    long = r"'beach beach .*\.\.\.' was not taken; nothing has changed: .* reads 80"
    with pytest.raises(InvalidInputError, match=long):
        dialog.answer("beach " * 100)
    assert state(dialog) == before


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: begin(World(0, ClosedGenerator({}))), "the album is empty"),
        (lambda: begin(text=" "), f"the query {TEXT}"),
        (lambda: begin().answer("a caf\udce9"), "an answer is not Unicode text"),
        (lambda: begin().undo(), "nothing to undo"),
    ],
)
def test_empty_album_and_bad_texts_are_refused(use: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        use()


@pytest.mark.parametrize(
    "setting",
    [{"candidates": 0}, {"budget": -1}, {"sure": 0.0}, {"sure": 1.1}, {"scale": math.nan}, {"scale": -1.0},
     {"reread": -1.0}, {"reread": math.nan}, {"temper": 0.0}, {"temper": math.inf}, {"seed": -1},
     {"batch_size": 0}, {"policy": InformationGain},
     {"candidates": 2.5}, {"candidates": "9"}, {"budget": True}, {"seed": None}, {"sure": "much"},
     {"scale": None}, {"policy": "random"}],
)  # fmt: skip
def test_settings_out_of_range_are_named(setting: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        begin(**setting)


@pytest.mark.parametrize(
    "make",
    [lambda: InformationGain(top=1), lambda: InformationGain(images=0), lambda: InformationGain(least=-1.0),
     lambda: RandomQuestion(pool=0), lambda: CaptionDialog(images=0), lambda: Wording(yes=()),
     lambda: Wording(answer=Prompt("<image>?")), lambda: Wording(ask=Prompt("{question}"))],
)  # fmt: skip
def test_settings_of_policies_and_wordings_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidInputError):
        make()


@pytest.mark.parametrize(
    ("verbalisers", "message"),
    [
        ({"yes": " yes"}, "yes must be a sequence of texts, not ' yes'"),
        ({"no": " no"}, "no must be a sequence of texts, not ' no'"),
        ({"yes": 3}, "yes must be a sequence of texts, not 3"),
        ({"yes": (" yes", 3)}, "verbalisers must be non-empty strings"),
        ({"no": (" ",)}, "verbalisers must be non-empty strings"),
        ({"yes": (" yes", " yes")}, "a verbaliser is given twice"),
        ({"no": (" yes",)}, "a verbaliser is given twice"),
    ],
)
@pytest.mark.parametrize("make", [Wording, YesNo])
def test_bad_verbalisers_are_refused(make: Callable[..., object], verbalisers: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make(**verbalisers)


def test_verbalisers_may_be_lists() -> None:
    for made in (Wording(yes=[" yes", " yeah"]), YesNo(yes=[" yes", " yeah"])):  # type: ignore[arg-type]
        assert made.yes == (" yes", " yeah") and hash(made)


def test_generator_that_cannot_write_scores_statements_only() -> None:
    class Mute(ClosedGenerator):
        def generate(self, contexts: object, **settings: object) -> list[list[str]]:  # type: ignore[override]
            raise NotImplementedError

    dialog = begin(World(4, Mute(TABLE), COSINES))
    with pytest.raises(InvalidInputError, match="the generator Mute scores texts but"):
        dialog.question  # noqa: B018
    dialog.tell("it rains")
    assert len(dialog.history) == 1


class Given(Asks):
    """A policy with given evidence."""

    def __init__(self, evidence: object) -> None:
        super().__init__("where is this?")
        self.evidence = lambda *_: np.array(evidence)


@pytest.mark.parametrize("evidence", [[0.0], [0.0, 0.0, 0.0, np.inf], [-np.inf] * 4])
def test_bad_evidence_is_refused(evidence: list[float]) -> None:
    dialog = begin(policy=Given(evidence))
    before = dialog.ranking
    with pytest.raises(InvalidInputError, match="candidates"):
        dialog.answer("beach")
    assert dialog.ranking == before and not dialog.history


def test_evidence_may_make_a_candidate_impossible() -> None:
    dialog = begin(policy=Given([-np.inf, 0.0, 0.0, np.nan]))
    before = posterior(dialog)
    dialog.answer("beach")
    after = posterior(dialog)
    assert after[0] == 0 and after[3] == pytest.approx(before[3])
    assert after.sum() == pytest.approx(1)
    assert math.isfinite(dialog.entropy)

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image as PILImage

from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.search.fusion import Fusion, Maximum, ReciprocalRank, RerankOnly, WeightedSum, best_first
from zsqretrieval.search.priors import Prior, log_prior, null_images
from zsqretrieval.search.scoring import Likelihood, Pair, Scoring, YesNo, score_pairs
from zsqretrieval.testing.toys import ToyGenerator
from zsqretrieval.types import Image, LogLikelihood

GENERATOR = ToyGenerator()
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
IMAGES = [Image(PILImage.new("RGB", (4, 4), colour), colour) for colour in COLOURS]
QUESTION = "what is the colour of the red thing ?"


def said(*log_probs: float) -> LogLikelihood:
    return LogLikelihood(tuple("x" * len(log_probs)), np.array(log_probs, np.float32))


def score_images(generator: Any, rule: Any, question: str, images: Any, **settings: Any) -> np.ndarray:
    return score_pairs(generator, rule, [question] * len(images), images, **settings)


def score_texts(generator: Any, rule: Any, image: Image, texts: Any, **settings: Any) -> np.ndarray:
    return score_pairs(generator, rule, texts, [image] * len(texts), **settings)


class Counting(ToyGenerator):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def log_likelihood(self, contexts: Any, continuations: Any, **settings: Any) -> Any:
        self.calls.append(len(contexts))
        return super().log_likelihood(contexts, continuations, **settings)


# --- scoring rules


def test_likelihood_scores_the_question_after_the_prompt() -> None:
    scores = score_images(GENERATOR, Likelihood(), QUESTION, IMAGES)
    direct = GENERATOR.log_likelihood([[image, "Question:"] for image in IMAGES], [" " + QUESTION] * 6)
    assert scores.tolist() == [one.sum for one in direct]
    assert COLOURS[int(score_images(GENERATOR, Likelihood(), "red", IMAGES).argmax())] == "red"
    mean = score_images(GENERATOR, Likelihood(aggregate="mean"), f" {QUESTION}\n", IMAGES)
    assert mean == pytest.approx(scores / len(direct[0]))
    (other,) = Likelihood(Prompt("what is<image>")).pairs("red ?", IMAGES[0])
    assert other.context == ["what is", IMAGES[0]]


def test_continuation_begins_with_one_space() -> None:
    (pair,) = Likelihood().pairs("  a red bus? ", IMAGES[0])
    assert (pair.context, pair.continuation) == ([IMAGES[0], "Question:"], " a red bus?")
    yes, also, no = YesNo(yes=(" yes", " yeah"), no=(" no",)).pairs("a {bus}", IMAGES[0])
    assert yes.context == [IMAGES[0], 'Does this picture show "a {bus}"? Answer:']
    assert yes.context is also.context is no.context
    assert [one.continuation for one in (yes, also, no)] == [" yes", " yeah", " no"]


LOG_PROBS = st.floats(-700, -1e-6)


@given(st.lists(LOG_PROBS, min_size=1, max_size=4), st.lists(LOG_PROBS, min_size=1, max_size=4))
def test_yes_no_equals_log_ratio_of_summed_probabilities(yes: list[float], no: list[float]) -> None:
    rule = YesNo(yes=tuple(f"y{n}" for n in range(len(yes))), no=tuple(f"n{n}" for n in range(len(no))))
    words = zip((*rule.yes, *rule.no), (*yes, *no), strict=True)
    score = rule.score([LogLikelihood((word,), np.array([p], np.float32)) for word, p in words])
    exact = [[math.fsum(math.exp(p - max(side)) for p in side), max(side)] for side in (yes, no)]
    expected = math.log(exact[0][0] / exact[1][0]) + exact[0][1] - exact[1][1]
    assert score == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert 0 <= rule.probability(score) <= 1
    assert rule.probability(score) + rule.probability(-score) == pytest.approx(1)


def test_yes_no_probability_equals_that_of_the_toy_generator() -> None:
    (score,) = score_images(GENERATOR, YesNo(), "red", IMAGES[:1])
    context = [IMAGES[0], 'Does this picture show "red"? Answer:']
    found = GENERATOR.probabilities(context)
    assert YesNo.probability(score) == pytest.approx(found["yes"] / (found["yes"] + found["no"]))
    both = YesNo(yes=(" yes", " red"), no=(" no", " green"))
    (score,) = score_images(GENERATOR, both, "red", IMAGES[:1])
    yes, no = found["yes"] + found["red"], found["no"] + found["green"]
    assert both.probability(score) == pytest.approx(yes / (yes + no))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Likelihood(Prompt("Question:")), "one image and no texts; .* takes 0 images and no texts"),
        (lambda: Likelihood(PROMPTS["vqa"]), "takes 1 images and question"),
        (lambda: Likelihood(aggregate="max"), "'sum' or 'mean', not 'max'"),  # type: ignore[arg-type]
        (lambda: YesNo(PROMPTS["question"]), r"one image and \{question\}"),
        (lambda: Likelihood("Question:"), r"the prompt must be a Prompt, such as .*, not 'Question:'"),
        (lambda: YesNo("is it?"), "the prompt must be a Prompt"),
        (lambda: YesNo(yes=()), "verbalisers must be non-empty strings"),
        (lambda: YesNo(yes=(" a",), no=(" b", " a")), "given twice"),
        (lambda: WeightedSum(-1), "weight must be a finite number of at least 0"),
        (lambda: WeightedSum(math.nan), "weight must be"),
        (lambda: WeightedSum("1"), "weight must be a finite number of at least 0, not '1'"),
        (lambda: WeightedSum(None), "weight must be"),
        (lambda: WeightedSum(scale="log"), "'standardized' or 'raw', not 'log'"),  # type: ignore[arg-type]
        (lambda: WeightedSum(first_stage_scale=100), "has no effect with scale"),
        (lambda: ReciprocalRank(-1), "constant must be"),
        (lambda: ReciprocalRank(None), "constant must be"),
        (lambda: Maximum(math.inf), "shift must be a finite number"),
        (lambda: Maximum("1"), "shift must be a finite number, not '1'"),
        (lambda: Maximum(scale="log"), "'standardized' or 'raw', not 'log'"),  # type: ignore[arg-type]
        (lambda: Prior(1.2), "alpha must be at least 0 and at most 1, not 1.2"),
        (lambda: Prior(math.nan), "alpha must be a finite number"),
        (lambda: Prior(alpha="0.8"), "alpha must be a finite number"),
        (lambda: Prior(null_images=()), "at least one null image"),
        (lambda: Prior(null_images=("grey.png",)), "null_images must be records of .*'grey.png'"),
        (lambda: null_images(0), "count must be at least 1"),
        (lambda: score_pairs(GENERATOR, Likelihood(), ["red"], "red.png"), "images must be a list, not str"),
        (lambda: score_pairs(GENERATOR, Likelihood(), "red", IMAGES[:1]), "texts must be a list, not str"),
    ],
)
def test_invalid_setting_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


# --- scoring many


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_all_pairs_go_to_the_generator_in_one_call(batch_size: int) -> None:
    generator, seen = Counting(), list[tuple[int, int | None]]()
    rule = YesNo()
    scores = score_images(
        generator, rule, "red", IMAGES, batch_size=batch_size, progress=lambda _, *news: seen.append(news)
    )
    assert scores == pytest.approx(score_images(GENERATOR, rule, "red", IMAGES))
    assert generator.calls == [12] and seen[-1] == (12, 12) and seen == sorted(seen)


def test_exception_from_progress_stops_scoring() -> None:
    generator = Counting()

    def stop(step: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_images(generator, Likelihood(), QUESTION, IMAGES, batch_size=2, progress=stop)
    assert generator.calls == [6]


def test_empty_input_gives_no_scores_and_calls_no_generator() -> None:
    generator = Counting()
    assert score_images(generator, Likelihood(), QUESTION, []).shape == (0,)
    assert score_texts(generator, Likelihood(), IMAGES[0], []).shape == (0,)
    assert log_prior(generator, Likelihood(), null_images(), []).shape == (0,)
    assert generator.calls == []


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_score_that_is_not_finite_names_rule_and_image(broken: float) -> None:
    class Broken(Likelihood):
        def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
            return broken

    named = rf"^'{re.escape(QUESTION)}' given red: the scoring rule 'likelihood' gave {broken} for"
    with pytest.raises(InvalidInputError, match=named):
        score_images(GENERATOR, Broken(), QUESTION, IMAGES)
    with pytest.raises(InvalidInputError, match=r"^'red bus' given red: the scoring rule"):
        score_texts(GENERATOR, Broken(), IMAGES[0], ["red bus"])


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
    """A rule of somebody else's: P('A') of "A. match  B. mismatch", with a question before each image."""

    name: str = "choice"

    def pairs(self, question: str, image: Any) -> Sequence[Pair]:
        return [Pair([question, image, "A or B?"], " red"), Pair([image], " what")]

    def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
        return likelihoods[0].sum - likelihoods[1].sum


def test_custom_rule_scores_its_own_pairs() -> None:
    rule = MultipleChoice()
    assert isinstance(rule, Scoring) and isinstance(Likelihood(), Scoring) and isinstance(YesNo(), Scoring)
    assert all(isinstance(one, Fusion) for one in (RerankOnly(), WeightedSum(), ReciprocalRank()))
    assert not isinstance(Prior(), Scoring) and not isinstance(rule, Fusion)
    scores = score_images(GENERATOR, rule, "red ?", IMAGES[:2], batch_size=1)
    for score, image in zip(scores, IMAGES, strict=False):
        first, second = GENERATOR.log_likelihood([["red ?", image, "A or B?"], [image]], [" red", " what"])
        assert score == pytest.approx(first.sum - second.sum)


# --- fusions

FUSIONS: list[Any] = [
    RerankOnly(),
    WeightedSum(),
    WeightedSum(0.0),
    WeightedSum(3.5),
    WeightedSum(0.02, scale="raw"),
    WeightedSum(1, scale="raw", first_stage_scale=100),
    ReciprocalRank(),
    ReciprocalRank(0),
    Maximum(),
    Maximum(-0.5),
    Maximum(0.2, scale="raw"),
]


@st.composite
def stages(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two stages' scores of the same candidates, the first stage's falling; with ties."""
    count = draw(st.integers(1, 12))
    cosines = st.floats(-1, 1, width=32) | st.sampled_from([0.25, 0.5])
    scores = st.floats(-100, 0, width=32) | st.sampled_from([-3.0, -4.0])
    first = np.sort(draw(npst.arrays(np.float64, count, elements=cosines)))[::-1]
    return first, draw(npst.arrays(np.float64, count, elements=scores))


@given(stages(), st.sampled_from(FUSIONS))
def test_fused_scores_are_finite_and_keep_the_order_of_agreeing_stages(
    both: tuple[np.ndarray, np.ndarray], fusion: Any
) -> None:
    first, scores = both
    kept = first.copy(), scores.copy()
    fused = fusion.fuse(first, scores)
    assert fused.shape == first.shape and fused.dtype == np.float64 and np.isfinite(fused).all()
    assert np.array_equal(first, kept[0]) and np.array_equal(scores, kept[1])
    order = best_first(fused)
    assert sorted(order.tolist()) == list(range(len(first)))
    assert np.all(np.diff(fused[order]) <= 0)
    better = (first[:, None] > first[None]) & (scores[:, None] > scores[None])
    assert np.all((fused[:, None] - fused[None])[better] >= 0), "what both stages prefer is never put behind"


@given(stages())
def test_weight_zero_or_equal_first_stage_leaves_one_stage(both: tuple[np.ndarray, np.ndarray]) -> None:
    first, scores = both[0], np.round(both[1], 3)
    assert best_first(WeightedSum(0.0).fuse(first, scores)).tolist() == list(range(len(first)))
    assert best_first(WeightedSum(0.0, scale="raw").fuse(first, scores)).tolist() == list(range(len(first)))
    flat = np.full(len(first), 0.3)
    for fusion in (RerankOnly(), WeightedSum(2.0), WeightedSum(2.0, scale="raw")):
        assert best_first(fusion.fuse(flat, scores)).tolist() == best_first(scores).tolist()


@given(stages(), st.sampled_from(FUSIONS))
def test_equal_scores_keep_the_order_of_the_first_stage(
    both: tuple[np.ndarray, np.ndarray], fusion: Any
) -> None:
    first, _ = both
    order = best_first(fusion.fuse(first, np.full(len(first), -7.25)))
    assert order.tolist() == list(range(len(first))), "ties keep the order of the first stage"


@given(stages(), st.floats(0.01, 100), st.floats(-50, 50))
def test_standardized_fusion_ignores_scale_and_shift(
    both: tuple[np.ndarray, np.ndarray], scale: float, shift: float
) -> None:
    first, scores = np.round(both[0], 3), both[1]  # what is added and taken away again rounds the rest off
    fused = WeightedSum(0.7).fuse(first, np.round(scores, 3))
    other = WeightedSum(0.7).fuse(0.5 + first / 7, scale * np.round(scores, 3) + shift)
    assert fused == pytest.approx(other, abs=1e-4)


def test_fusions_equal_values_computed_by_hand() -> None:
    first, scores = np.array([0.4, 0.3, 0.2]), np.array([-9.0, -6.0, -9.0])
    raw = WeightedSum(0.1, scale="raw", first_stage_scale=10).fuse(first, scores)
    assert raw == pytest.approx([3.1, 2.4, 1.1])
    z = math.sqrt(1.5)
    standardized = WeightedSum(2).fuse(first, scores)
    assert standardized == pytest.approx([z - math.sqrt(2), 2 * math.sqrt(2), -z - math.sqrt(2)])
    ranks = ReciprocalRank(60).fuse(first, scores)
    assert ranks == pytest.approx([1 / 61 + 1 / 62, 1 / 62 + 1 / 61, 1 / 63 + 1 / 63])
    assert best_first(ranks).tolist() == [0, 1, 2], "a tie keeps the order of the first stage"
    assert RerankOnly().fuse(first, scores).tolist() == [-9, -6, -9]
    assert Maximum(6.25, scale="raw").fuse(first, scores).tolist() == [0.4, 0.3, 0.2]
    assert Maximum(6.5, scale="raw").fuse(first, scores).tolist() == [0.4, 0.5, 0.2]
    assert Maximum().fuse(first, scores) == pytest.approx([z, math.sqrt(2), -math.sqrt(0.5)])
    assert best_first(scores).tolist() == [1, 0, 2]
    assert best_first([]).tolist() == []


# --- what can and what cannot change an order


@given(stages(), st.integers(1, 40))
def test_sum_and_mean_give_one_order_alone_and_standardized(
    both: tuple[np.ndarray, np.ndarray], tokens: int
) -> None:
    first, sums = both
    means = sums / tokens
    tied = np.unique(means).size < np.unique(sums).size  # by rounding
    if not tied:
        assert best_first(RerankOnly().fuse(first, sums)).tolist() == best_first(means).tolist()
    assert WeightedSum(0.5).fuse(first, sums) == pytest.approx(WeightedSum(0.5).fuse(first, means), abs=1e-6)


def test_sum_and_mean_give_two_orders_in_a_raw_fusion() -> None:
    first, sums = np.array([0.3, 0.2]), np.array([-21.0, -20.0])
    fusion = WeightedSum(0.2, scale="raw")
    assert best_first(fusion.fuse(first, sums)).tolist() == [1, 0]
    assert best_first(fusion.fuse(first, sums / 10)).tolist() == [0, 1]


@given(stages(), st.floats(0, 2), st.floats(-80, 0, width=16))
def test_prior_of_the_question_keeps_the_order_of_images(
    both: tuple[np.ndarray, np.ndarray], alpha: float, log_prior_of_question: float
) -> None:
    """P(question | image) / P(question)^alpha: for one question the divisor is one number."""
    first, scores = both
    scores = np.round(scores, 2)  # or the subtraction makes ties of its own
    corrected = scores - alpha * log_prior_of_question
    for fusion in (RerankOnly(), WeightedSum(1.0), ReciprocalRank()):
        before, after = fusion.fuse(first, scores), fusion.fuse(first, corrected)
        order = best_first(after)
        assert np.all(np.diff(before[order]) <= 1e-9)
    raw = WeightedSum(0.3, scale="raw", first_stage_scale=2.0)
    moved = raw.fuse(first, corrected) - raw.fuse(first, scores)
    assert moved == pytest.approx(np.full(len(first), moved[0]), abs=1e-9)


# --- the other direction


def test_null_images_are_reproducible() -> None:
    grey, *noise = null_images(3)
    assert np.asarray(decode(grey)).tolist() == np.full((224, 224, 3), 127).tolist()
    for one, again in zip(noise, null_images(3)[1:], strict=True):
        pixels = np.asarray(decode(one), np.float64)
        assert np.array_equal(pixels, np.asarray(decode(again)))
        assert pixels.shape == (224, 224, 3)
        assert pixels.mean() == pytest.approx(127, abs=1.5) and 55 < pixels.std() < 64
    assert not np.array_equal(np.asarray(decode(noise[0])), np.asarray(decode(noise[1])))
    assert np.array_equal(np.asarray(decode(null_images(2)[1])), np.asarray(decode(noise[0])))
    assert not np.array_equal(np.asarray(decode(null_images(2, seed=1)[1])), np.asarray(decode(noise[0])))
    assert len({one.source for one in (grey, *noise)}) == 3


TEXTS = ["a red thing", "what is the colour ?", "the blue picture of the blue thing", "green"]


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_prior_is_log_of_mean_probability_over_null_images(aggregate: Any) -> None:
    rule, nulls = Likelihood(aggregate=aggregate), IMAGES[3:]
    prior = log_prior(GENERATOR, rule, nulls, TEXTS, batch_size=5)
    for text, found in zip(TEXTS, prior, strict=True):
        given_null = GENERATOR.log_likelihood([[image, "Question:"] for image in nulls], [f" {text}"] * 3)
        expected = math.log(sum(math.exp(one.sum) for one in given_null) / 3)
        assert found == pytest.approx(expected / (len(given_null[0]) if aggregate == "mean" else 1))


def test_prior_of_very_unlikely_text_does_not_underflow() -> None:
    class Sceptic(ToyGenerator):
        def log_likelihood(self, contexts: Any, continuations: Any, **_: Any) -> Any:
            return [said(-900.0, -900.0 - 2 * (context[0] is IMAGES[1])) for context in contexts]

    prior = log_prior(Sceptic(), Likelihood(), IMAGES[:2], ["x"])
    assert prior[0] == pytest.approx(-1800 + math.log((1 + math.exp(-2)) / 2), abs=1e-3)


def test_prior_lowers_text_that_fits_any_image() -> None:
    texts = ["yes", "red"]
    scores = score_texts(GENERATOR, Likelihood(), IMAGES[0], texts)
    corrected = scores - log_prior(GENERATOR, Likelihood(), [IMAGES[4]], texts)
    assert corrected[1] > 0 > corrected[0], "red is likelier, yes less likely, than of a picture of nothing"


def test_texts_are_scored_in_order_with_progress() -> None:
    seen: list[tuple[int, int | None]] = []
    scores = score_texts(
        GENERATOR, Likelihood(), IMAGES[2], TEXTS, batch_size=3, progress=lambda _, *news: seen.append(news)
    )
    direct = GENERATOR.log_likelihood([[IMAGES[2], "Question:"]] * 4, [f" {text}" for text in TEXTS])
    assert scores.tolist() == [one.sum for one in direct] and seen[-1] == (4, 4)
    log_prior(
        GENERATOR, Likelihood(), null_images(2), TEXTS, batch_size=5, progress=lambda _, *n: seen.append(n)
    )
    assert seen[-1] == (8, 8)

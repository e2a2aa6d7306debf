"""Models of how hard queries are: they find what they were drawn from, and predict what they did not see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import betabinom, binom, genpareto

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.extrapolation import (
    candidates_needed,
    extrapolated_share,
    fit_counts,
    fit_spreads,
    fit_tail,
    found_at_random,
    image_draws,
    interval_of,
    recall_of,
)
from zsqretrieval.evaluation.gallery_size import Contest
from zsqretrieval.evaluation.intervals import ClusterBootstrap
from zsqretrieval.evaluation.roofline import H100_TFLOPS, LAION_5B, kosmos2_cost, laion_cost

POOL = 999
LARGE = (1000, 10**5, LAION_5B)


def counts_of(chances, seed=0):
    return np.random.default_rng(seed).binomial(POOL, chances)


def alone(count):
    return np.ones((2, count))


@settings(deadline=None)
@given(p=st.floats(1e-4, 0.9), gallery=st.integers(1, 400), k=st.integers(1, 400))
def test_the_chance_to_be_found_is_binomial(p, gallery, k):
    (found,) = found_at_random(np.array([p]), gallery, k)
    assert found == pytest.approx(binom.cdf(k - 1, gallery - 1, p), abs=1e-9)


def test_the_beta_model_is_the_beta_binomial():
    """Its recall by bins of p is the closed form, at sizes where nothing but the model speaks."""
    chances = np.random.default_rng(1).beta(0.4, 12, 4000)
    spread = fit_counts("beta", counts_of(chances), POOL, alone(4000))
    a, b = spread.parameters["a"][0], spread.parameters["b"][0]
    assert a == pytest.approx(0.4, rel=0.1) and b == pytest.approx(12, rel=0.15)
    for gallery in (100, *LARGE):
        for k in (1, 10):
            exact = betabinom.cdf(k - 1, gallery - 1, a, b)
            assert recall_of(spread, gallery, k)[0] == pytest.approx(exact, rel=0.02)


def test_the_normal_model_finds_its_parameters():
    probits = np.random.default_rng(2).normal(-2.2, 0.9, 4000)
    spread = fit_counts("normal", counts_of(ndtr(probits)), POOL, alone(4000))
    assert spread.parameters["mean"][0] == pytest.approx(-2.2, abs=0.06)
    assert spread.parameters["deviation"][0] == pytest.approx(0.9, abs=0.05)
    exact = np.mean((1 - ndtr(np.random.default_rng(3).normal(-2.2, 0.9, 10**6))) ** (10**5 - 1))
    assert recall_of(spread, 10**5, 1)[0] == pytest.approx(exact, rel=0.3)


def scored(shape, queries=600, pool=4000, kept=81, seed=0):
    """Distractors' scores with a tail of a known shape, answers somewhere in and beyond it."""
    random = np.random.default_rng(seed)
    scale = random.uniform(0.5, 2, (queries, 1))  # queries differ in scale
    scores = genpareto.rvs(shape, size=(queries, pool), random_state=random) * scale
    own = genpareto.isf(10 ** random.uniform(-7, -1, queries), shape) * scale[:, 0]
    true = genpareto.sf(own / scale[:, 0], shape)
    best = -np.sort(-scores, axis=1)[:, :kept]
    beaten_by = (scores >= own[:, None]).sum(1)
    return Contest(pool, own.astype(np.float32), beaten_by, best.astype(np.float32)), true


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.2])
def test_the_tail_model_knows_recall_beyond_what_it_saw(shape):
    found, true = scored(shape)
    spread = fit_tail(found, alone(600))
    assert spread.parameters["shape"][0] == pytest.approx(shape, abs=0.06)
    for gallery in (4001, 40_000):  # ten times the pool
        exact = np.mean((1 - true) ** (gallery - 1))
        assert recall_of(spread, gallery, 1)[0] == pytest.approx(exact, rel=0.25)


def test_a_tail_of_equal_scores_is_no_trouble():
    flat = Contest(50, np.array([1.0, 2.0], np.float32), np.array([50, 0]), np.ones((2, 5), np.float32))
    assert recall_of(fit_tail(flat, alone(2)), LAION_5B, 1)[0] == pytest.approx(0.5)
    with pytest.raises(InvalidInputError, match="keep 3"):
        fit_tail(Contest(50, flat.own, flat.beaten_by, flat.best[:, :2]), alone(2))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000))
def test_every_model_falls_with_the_gallery_and_rises_with_k(seed):
    contested, _ = scored(-0.2, queries=60, pool=400, kept=21, seed=seed)
    for spread in fit_spreads(contested, alone(60)):
        np.testing.assert_allclose(spread.mass.sum(1), 1)
        recalls = np.array([[recall_of(spread, n, k)[0] for k in (1, 10, 100)] for n in (1, 10, 400, *LARGE)])
        assert (np.diff(recalls, axis=0) <= 1e-9).all() and (np.diff(recalls, axis=1) >= -1e-9).all()
        assert recalls[0] == pytest.approx([1, 1, 1]) and recalls.min() >= 0


def test_answers_that_always_win_and_always_lose():
    """The ends of the range, where a likelihood has no maximum inside."""
    for model in ("beta", "normal"):
        won = fit_counts(model, np.zeros(50, np.int64), POOL, alone(50))
        lost = fit_counts(model, np.full(50, POOL), POOL, alone(50))
        assert recall_of(won, POOL + 1, 1)[0] > 0.95
        assert recall_of(lost, POOL + 1, 10)[0] < 0.01
        assert np.isfinite([*won.mass.ravel(), *lost.mass.ravel()]).all()


def test_unknown_models_and_impossible_counts_are_refused():
    with pytest.raises(InvalidInputError, match="beta, normal"):
        fit_counts("gamma", np.array([1]), POOL, alone(1))
    for counts in ([-1], [POOL + 1], []):
        with pytest.raises(InvalidInputError, match="are not of"):
            fit_counts("beta", np.array(counts, np.int64), POOL, alone(len(counts)))


def test_draws_are_of_whole_images_and_those_of_the_other_intervals():
    clusters = np.array([7, 7, 3, 3, 3, 9])
    times = image_draws(clusters, resamples=50, seed=4)
    assert (times[0] == 1).all() and times.shape == (51, 6)
    assert (times[:, 0] == times[:, 1]).all() and (times[:, 2] == times[:, 4]).all()
    assert (times[1:, [0, 2, 5]].sum(1) == 3).all()
    values = np.arange(6.0)
    ours = (times @ values) / times.sum(1)
    theirs = ClusterBootstrap(clusters, resamples=50, seed=4)
    assert interval_of(ours) == pytest.approx(theirs.interval(lambda mean: mean, values))
    with pytest.raises(InvalidInputError, match="no queries"):
        image_draws(np.array([], np.int64))


def test_the_interval_of_a_fit_holds_the_truth():
    """Ten studies of one population: 95 % intervals of recall at ten times the pool."""
    held = 0
    for seed in range(10):
        chances = np.random.default_rng(100 + seed).beta(0.5, 8, 60)
        times = image_draws(np.arange(60), resamples=40, seed=seed)
        low, high = interval_of(
            recall_of(fit_counts("beta", counts_of(chances, seed), POOL, times), 10_000, 1)
        )
        held += low <= betabinom.cdf(0, 9999, 0.5, 8) <= high
    assert held >= 8


def test_candidates_grow_in_proportion_with_the_gallery():
    spread = fit_counts("beta", counts_of(np.random.default_rng(5).beta(0.4, 12, 500)), POOL, alone(500))
    for gallery in (1000, 10**5):
        (needed, _) = candidates_needed(spread, gallery, 0.8)
        assert recall_of(spread, gallery, int(needed))[0] >= 0.8
        assert recall_of(spread, gallery, max(int(0.92 * needed) - 1, 1))[0] < 0.8
    small, large = (candidates_needed(spread, gallery, 0.8)[0] for gallery in (10**5, LAION_5B))
    assert large / small == pytest.approx(LAION_5B / 10**5, rel=0.12)
    assert candidates_needed(spread, 50, 1e-6)[0] == 1 and candidates_needed(spread, 50, 1.0)[0] <= 50
    with pytest.raises(InvalidInputError, match="cannot be kept"):
        candidates_needed(spread, 50, 0.0)


def test_a_share_is_continued_as_it_was_going():
    sizes = np.array([100, 1000, 10_000])
    logit = 2 - 0.3 * np.log(sizes)
    share = 1 / (1 + np.exp(-np.stack([logit, logit - 1])))
    expected = 1 / (1 + np.exp(-(2 - 0.3 * np.log(1e6) - np.array([0, 1]))))
    np.testing.assert_allclose(extrapolated_share(sizes, share, 10**6), expected)
    assert 0 < extrapolated_share(sizes, np.ones((1, 3)), LAION_5B)[0] <= 1
    with pytest.raises(InvalidInputError, match="two of them"):
        extrapolated_share(sizes[:1], share[:, :1], 10**6)


def test_the_cost_of_reading_is_that_of_the_published_architecture():
    """Counted apart, module by module, of the published configuration: 162.2 + 7.7 + 244.4 GFLOP and less."""
    cost = kosmos2_cost()
    gflop = {kept: flops / 1e9 for kept, flops in cost.flops.items()}
    assert gflop == pytest.approx({"pixels": 414, "states": 244, "prefixes": 81}, rel=0.005)
    assert cost.vision_flops / 1e9 == pytest.approx(162.2, rel=0.005)
    assert cost.bytes_kept == {"pixels": 0, "states": 262_144, "prefixes": 13_172_736}
    assert cost.seconds(1000, "states") == pytest.approx(244.2e12 / (0.4 * H100_TFLOPS * 1e12), rel=0.005)
    assert kosmos2_cost(utilisation=0.8).seconds(7, "pixels") == pytest.approx(cost.seconds(7, "pixels") / 2)
    facts = laion_cost([10], {"beta": 10})
    assert facts["per_query"][0]["seconds"] == facts["per_query"][1]["seconds"]
    assert facts["per_query"][1]["keeps_the_ceiling_by"] == "beta"
    assert facts["laion_5b"]["states_tb"] == pytest.approx(LAION_5B * 262_144 / 1e12, abs=0.1)
    for wrong in ({"utilisation": 0}, {"utilisation": 1.5}, {"question_tokens": 0}):
        with pytest.raises(InvalidInputError, match="give at least one"):
            kosmos2_cost(**wrong)

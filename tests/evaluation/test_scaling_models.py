"""Recall in other galleries: the closed form, the models against their own distributions, and the cost."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import betabinom, binom, genpareto

from zsqretrieval.evaluation.scaling_models import (
    LAION_5B,
    Competition,
    extrapolated_share,
    fit_counts,
    fit_spreads,
    fit_tail,
    found_at_random,
    interval_of,
    list_suffices,
    recall_in_sample,
    reranking_cost,
)
from zsqretrieval.evaluation.stats import ClusterBootstrap

POOL = 999
LARGE = (1000, 10**5, LAION_5B)


def counts_of(chances, seed=0):
    return np.random.default_rng(seed).binomial(POOL, chances)


def alone(count):
    return np.ones((2, count))


@settings(deadline=None)
@given(p=st.floats(1e-4, 0.9), gallery=st.integers(1, 400), k=st.integers(1, 400))
def test_chance_to_be_found_is_binomial(p, gallery, k):
    (found,) = found_at_random(np.array([p]), gallery, k)
    assert found == pytest.approx(binom.cdf(k - 1, gallery - 1, p), abs=1e-9)


def test_beta_model_equals_the_beta_binomial():
    """Recall by bins of p against the closed form, far beyond the fitted gallery."""
    chances = np.random.default_rng(1).beta(0.4, 12, 4000)
    spread = fit_counts("beta", counts_of(chances), POOL, alone(4000))
    a, b = spread.parameters["a"][0], spread.parameters["b"][0]
    assert a == pytest.approx(0.4, rel=0.1) and b == pytest.approx(12, rel=0.15)
    for gallery in (100, *LARGE):
        for k in (1, 10):
            exact = betabinom.cdf(k - 1, gallery - 1, a, b)
            assert spread.recall(gallery, k)[0] == pytest.approx(exact, rel=0.02)


def test_normal_model_finds_its_parameters():
    probits = np.random.default_rng(2).normal(-2.2, 0.9, 4000)
    spread = fit_counts("normal", counts_of(ndtr(probits)), POOL, alone(4000))
    assert spread.parameters["mean"][0] == pytest.approx(-2.2, abs=0.06)
    assert spread.parameters["deviation"][0] == pytest.approx(0.9, abs=0.05)
    exact = np.mean((1 - ndtr(np.random.default_rng(3).normal(-2.2, 0.9, 10**6))) ** (10**5 - 1))
    assert spread.recall(10**5, 1)[0] == pytest.approx(exact, rel=0.3)


def scored(shape, queries=600, pool=4000, kept=81, seed=0):
    """Distractors' scores with a tail of a known shape, relevant images in and beyond it."""
    random = np.random.default_rng(seed)
    scale = random.uniform(0.5, 2, (queries, 1))  # queries differ in scale
    scores = genpareto.rvs(shape, size=(queries, pool), random_state=random) * scale
    own = genpareto.isf(10 ** random.uniform(-7, -1, queries), shape) * scale[:, 0]
    true = genpareto.sf(own / scale[:, 0], shape)
    best = -np.sort(-scores, axis=1)[:, :kept]
    beaten_by = (scores >= own[:, None]).sum(1)
    return Competition(pool, own.astype(np.float32), beaten_by, best.astype(np.float32)), true


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.2])
def test_tail_model_predicts_recall_in_larger_galleries(shape):
    found, true = scored(shape)
    spread = fit_tail(found, alone(600))
    assert spread.parameters["shape"][0] == pytest.approx(shape, abs=0.06)
    for gallery in (4001, 40_000):  # ten times the pool
        exact = np.mean((1 - true) ** (gallery - 1))
        assert spread.recall(gallery, 1)[0] == pytest.approx(exact, rel=0.25)


def test_equal_scores_give_a_finite_tail():
    flat = Competition(50, np.array([1.0, 2.0], np.float32), np.array([50, 0]), np.ones((2, 5), np.float32))
    assert fit_tail(flat, alone(2)).recall(LAION_5B, 1)[0] == pytest.approx(0.5)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000))
def test_recall_of_models_falls_with_the_gallery_and_rises_with_k(seed):
    contested, _ = scored(-0.2, queries=60, pool=400, kept=21, seed=seed)
    for spread in fit_spreads(contested, alone(60)):
        np.testing.assert_allclose(spread.mass.sum(1), 1)
        recalls = np.array([[spread.recall(n, k)[0] for k in (1, 10, 100)] for n in (1, 10, 400, *LARGE)])
        assert (np.diff(recalls, axis=0) <= 1e-9).all() and (np.diff(recalls, axis=1) >= -1e-9).all()
        assert recalls[0] == pytest.approx([1, 1, 1]) and recalls.min() >= 0


def test_queries_at_the_ends_of_the_range_have_finite_fits():
    """Always first or always last: the likelihood has no maximum inside the range."""
    for model in ("beta", "normal"):
        won = fit_counts(model, np.zeros(50, np.int64), POOL, alone(50))
        lost = fit_counts(model, np.full(50, POOL), POOL, alone(50))
        assert won.recall(POOL + 1, 1)[0] > 0.95
        assert lost.recall(POOL + 1, 10)[0] < 0.01
        assert np.isfinite([*won.mass.ravel(), *lost.mass.ravel()]).all()


def test_interval_of_weighted_means_is_the_interval_of_the_bootstrap():
    clusters = np.array([7, 7, 3, 3, 3, 9])
    bootstrap = ClusterBootstrap(clusters, resamples=50, seed=4)
    weights = bootstrap.query_weights()
    assert (weights[0] == 1).all() and weights.shape == (51, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 4]).all()
    assert (weights[1:, [0, 2, 5]].sum(1) == 3).all()
    values = np.arange(6.0)
    means = (weights @ values) / weights.sum(1)
    assert interval_of(means) == pytest.approx(bootstrap.mean_interval(values))


def test_interval_of_a_fit_contains_the_truth():
    """Ten studies of one population: 95 % intervals of recall at ten times the pool."""
    held = 0
    for seed in range(10):
        chances = np.random.default_rng(100 + seed).beta(0.5, 8, 60)
        weights = ClusterBootstrap(np.arange(60), resamples=40, seed=seed).query_weights()
        low, high = interval_of(fit_counts("beta", counts_of(chances, seed), POOL, weights).recall(10_000, 1))
        held += low <= betabinom.cdf(0, 9999, 0.5, 8) <= high
    assert held >= 8


def test_candidates_grow_in_proportion_with_the_gallery():
    spread = fit_counts("beta", counts_of(np.random.default_rng(5).beta(0.4, 12, 500)), POOL, alone(500))
    for gallery in (1000, 10**5):
        (needed, _) = spread.candidates_needed(gallery, 0.8)
        assert spread.recall(gallery, int(needed))[0] >= 0.8
        assert spread.recall(gallery, max(int(0.92 * needed) - 1, 1))[0] < 0.8
    small, large = (spread.candidates_needed(gallery, 0.8)[0] for gallery in (10**5, LAION_5B))
    assert large / small == pytest.approx(LAION_5B / 10**5, rel=0.12)
    assert spread.candidates_needed(50, 1e-6)[0] == 1 and spread.candidates_needed(50, 1.0)[0] <= 50


def test_share_is_continued_linearly_in_its_logit():
    sizes = np.array([100, 1000, 10_000])
    logit = 2 - 0.3 * np.log(sizes)
    share = 1 / (1 + np.exp(-np.stack([logit, logit - 1])))
    expected = 1 / (1 + np.exp(-(2 - 0.3 * np.log(1e6) - np.array([0, 1]))))
    np.testing.assert_allclose(extrapolated_share(sizes, share, 10**6), expected)
    assert 0 < extrapolated_share(sizes, np.ones((1, 3)), LAION_5B)[0] <= 1


def test_cost_is_that_of_the_published_architecture():
    """Counted separately, module by module, from the published configuration: 162.2 + 7.7 + 244.4 GFLOP."""
    ten, thousand, kept = reranking_cost([10, 1000], {"beta": 10})["per_query"]
    assert ten["seconds"] == kept["seconds"] and kept["keeps_the_ceiling_by"] == "beta"
    gflop = {"pixels": 414.2, "states": 244.2, "prefixes": 81}
    seconds = {kept: 1000 * 1e9 * one / (0.4 * 989e12) for kept, one in gflop.items()}
    assert thousand["seconds"] == pytest.approx(seconds, rel=0.005)


# --- parts of the gallery ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(data=st.data())
def test_closed_form_is_the_average_over_all_galleries(data):
    pool = data.draw(st.integers(1, 8))
    beaten_by = data.draw(st.integers(0, pool))
    distractors = data.draw(st.integers(0, pool))
    ahead = data.draw(st.integers(0, 2))
    ks = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    galleries = list(combinations(range(pool), distractors))  # the first `beaten_by` score higher
    recalls = recall_in_sample(np.array([beaten_by]), pool, distractors, ks, ahead=np.array([ahead]))
    for k, found in zip(ks, recalls, strict=True):
        by_hand = np.mean([ahead + sum(i < beaten_by for i in some) < k for some in galleries])
        assert found[0] == pytest.approx(by_hand, abs=1e-9)


def test_recall_falls_with_the_gallery_down_to_the_counted_recall():
    beaten_by = np.array([0, 1, 3, 40, 100])
    curve = [recall_in_sample(beaten_by, 100, n, [1, 10]) for n in range(101)]
    assert (np.diff(curve, axis=0) <= 1e-12).all()
    assert curve[0].tolist() == [[1.0] * 5] * 2, "alone in the gallery"
    np.testing.assert_allclose(curve[-1], [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]], atol=1e-9)


def test_list_suffices_for_large_parts_and_few_candidates():
    assert list_suffices(30, 29, 5, 6) is False, "a gallery of six images has no six distractors"
    assert list_suffices(30, 29, 29, 10) and not list_suffices(10, 29, 15, 10)
    assert list_suffices(20, 1000, 500, 3) and not list_suffices(20, 1000, 500, 10)

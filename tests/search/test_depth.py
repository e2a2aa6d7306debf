"""Adaptive depth: the stopping rule on synthetic scores, and searches that stop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from scipy import stats

from refusing import refused
from seeing import Seeing
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.presets import Calibration
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.depth import ROUND, Depth, fit
from zsqretrieval.search.fusion import RerankOnly, WeightedSum, best_first
from zsqretrieval.search.query import Query
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.search.scoring import Likelihood, YesNo
from zsqretrieval.testing.toys import ToyEncoder

DEPTH = Depth(slope=12.0, deviation=3.0, freedom=8.0)
FUSION = WeightedSum(1.5, scale="raw", first_stage_scale=100.0)


def drawn(questions: int, candidates: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """First-stage scores, best first, and likelihoods as :data:`DEPTH` describes them."""
    random = np.random.default_rng(seed)
    first = -np.sort(-random.normal(0.2, 0.04, (questions, candidates)))
    sizes = DEPTH.deviation * np.sqrt(DEPTH.freedom / random.chisquare(DEPTH.freedom, (questions, 1)))
    levels = random.normal(-30, 20, (questions, 1))
    return first, levels + DEPTH.slope * first + sizes * random.normal(size=first.shape)


def stopped(first: np.ndarray, scores: np.ndarray, k: int, risk: float) -> int:
    """Candidates read until the rule stops, in rounds of two."""
    read = k
    while DEPTH.missing(FUSION, first, scores[:read], k) > risk:
        read = min(read + 2, len(first))
    return read


# --- the rule


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(2, 20), st.sets(st.integers(0, 19), max_size=5))
def test_missing_candidates_are_the_sum_of_their_chances(seed: int, k: int, read: int, nan: set[int]) -> None:
    (first,), (scores,) = drawn(1, 20, seed)
    scores = np.array([math.nan if n in nan else one for n, one in enumerate(scores[:read])])
    found = DEPTH.missing(FUSION, first, scores, k)
    able = [n for n in range(read) if n not in nan]
    if read == 20:
        assert found == 0
    elif len(able) < max(k, 2):
        assert found == math.inf
    else:
        least = sorted((100 * first[n] + 1.5 * scores[n] for n in able), reverse=True)[k - 1]
        rest = [scores[n] - 12 * first[n] for n in able]
        degrees = 8 + len(rest) - 1
        variance = (8 * 9 + sum((one - np.mean(rest)) ** 2 for one in rest)) / degrees
        noise = stats.t(degrees, np.mean(rest), math.sqrt(variance * (1 + 1 / len(rest))))
        chances = [noise.sf((least - 100 * one) / 1.5 - 12 * one) for one in first[read:]]
        assert found == pytest.approx(sum(chances), rel=1e-6)


@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from([0.0, 1e-9]))
def test_bound_of_zero_finds_what_all_candidates_give(seed: int, k: int, risk: float) -> None:
    (first,), (scores,) = drawn(1, 60, seed)
    read = stopped(first, scores, k, risk)
    assert read == 60 if risk == 0 else k <= read <= 60
    best = best_first(FUSION.fuse(first, scores))[:k]
    assert best.tolist() == best_first(FUSION.fuse(first[:read], scores[:read]))[:k].tolist()


@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("risk", [0.02, 0.1, 0.5])
def test_misses_stay_at_the_bound_where_the_model_holds(k: int, risk: float) -> None:
    firsts, likelihoods = drawn(300)
    reads = [stopped(first, scores, k, risk) for first, scores in zip(firsts, likelihoods, strict=True)]
    missed = [
        int((best_first(FUSION.fuse(first, scores))[:k] >= read).sum())
        for first, scores, read in zip(firsts, likelihoods, reads, strict=True)
    ]
    assert np.mean(missed) < risk + 3 * np.std(missed) / math.sqrt(300)
    assert np.mean(missed) > risk / 4  # and are not far below it: no more is read than the bound asks for
    assert np.mean(reads) < 95


def test_fit_finds_the_constants_of_the_scores() -> None:
    found = fit(*drawn(2000))
    assert found.slope == pytest.approx(DEPTH.slope, rel=0.05)
    assert found.deviation == pytest.approx(DEPTH.deviation, rel=0.05)
    assert found.freedom == pytest.approx(DEPTH.freedom, rel=0.2)
    refused("both must be finite", fit, np.ones((2, 3)), np.ones((2, 4)))
    refused("both must be finite", fit, np.ones((2, 3)), np.full((2, 3), math.nan))
    refused("all equal", fit, np.ones((2, 3)), np.ones((2, 3)))


# --- searches

CALIBRATION = Calibration(
    fusion=WeightedSum(0.01, scale="raw", first_stage_scale=100.0),
    depth_slope=1.0,
    depth_deviation=1.0,
    depth_freedom=10.0,
)


@pytest.fixture
def seen(tmp_path: Path) -> Any:
    """A retriever of 60 images, and its generator, which counts the images that it is shown."""
    colours = np.random.default_rng(3).integers(0, 256, (60, 3), np.uint8)
    for n, colour in enumerate(colours):
        PILImage.new("RGB", (4, 4), tuple(colour.tolist())).save(tmp_path / f"{n:02}.png")
    encoder, generator = ToyEncoder(), Seeing()
    index = ExactIndex(encoder.dim, fingerprint=encoder.fingerprint)
    with Retriever(encoder, index, generator, states=None, calibration=CALIBRATION) as retriever:
        retriever.add(tmp_path)
        yield retriever, generator


def test_search_stops_early_and_finds_what_all_candidates_give(seen: Any) -> None:
    retriever, generator = seen
    full = retriever.search("red", 5, rerank=Rerank(candidates=60))
    first = retriever.search("red", 60, rerank=None)
    generator.looked_at.clear()
    reports: list[tuple[int, int | None]] = []
    found = retriever.search(
        "red", 5, rerank=Rerank(candidates=60, risk=0.1), progress=lambda _, *news: reports.append(news)
    )
    assert found.ids == full.ids and len(generator.looked_at) == ROUND and found.unscored == 0
    assert reports == [(n, 60) for n in range(1, ROUND + 1)]
    page = retriever.search("red", 10, offset=15, rerank=Rerank(candidates=60, risk=100.0))
    assert all(hit.score is not None for hit in page)  # a page is always scored
    assert sorted(retriever.search("red", 25, rerank=Rerank(candidates=60, risk=100.0)).ids) == sorted(
        first.ids[:25]
    )


def test_questions_of_a_batch_stop_by_themselves(seen: Any) -> None:
    retriever, generator = seen
    how = Rerank(candidates=60, risk=1e-6)
    texts = ["red", "a blue thing", "green or black ?"]
    alone = [retriever.search(text, 5, rerank=how) for text in texts]
    assert [one.ids for one in retriever.search(texts, 5, rerank=how)] == [one.ids for one in alone]
    generator.looked_at.clear()
    retriever.search(Query("red") + 0.5 * Query("blue"), 5, rerank=how)  # a sum of texts is not calibrated
    assert len(set(generator.looked_at)) == 60


@pytest.mark.parametrize(
    ("how", "calibration", "message"),
    [
        ({}, Calibration(fusion=FUSION), "its depth_deviation is 0"),
        ({"fusion": RerankOnly()}, CALIBRATION, "by itself, WeightedSum"),
        ({"fusion": WeightedSum()}, CALIBRATION, "not WeightedSum"),
        ({"fusion": WeightedSum(0, scale="raw")}, CALIBRATION, "weight above 0"),
    ],
)
def test_risk_that_cannot_be_computed_is_refused(how: Any, calibration: Any, message: str) -> None:
    encoder = ToyEncoder()
    index = ExactIndex(encoder.dim, fingerprint=encoder.fingerprint)
    with Retriever(encoder, index, Seeing(), calibration=calibration) as retriever:
        refused(message, retriever.search, "red", rerank=Rerank(risk=0.1, **how))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rerank(risk=-0.1),
        lambda: Rerank(risk=math.nan),
        lambda: Rerank(YesNo(), risk=0.1),
        lambda: Rerank(Likelihood(aggregate="mean"), risk=0.1),
        lambda: Depth(1.0, 0.0, 1.0),
        lambda: Calibration(depth_deviation=1.0),
    ],
)
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"risk (must|is)|above 0"):
        make()

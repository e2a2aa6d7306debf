"""Probabilities of relevance, and questions that nothing answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from zsqretrieval import Query, Retriever
from zsqretrieval.encoders.checked import encode_texts
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.presets import PRESETS, Calibration
from zsqretrieval.search.relevance import Relevance, fit
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator

ENCODER = ToyEncoder()
CALIBRATION = Calibration(relevance_scale=10.0, relevance_margin=0.4)


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    for name in ("red", "green", "blue", "yellow"):
        PILImage.new("RGB", (6, 4), name).save(tmp_path / f"{name}.png")
    made = Retriever(ENCODER, ExactIndex(ENCODER.dim), ToyGenerator(), calibration=CALIBRATION)
    made.add(tmp_path)
    return made


def test_probability_is_logistic_in_the_margin_over_the_bank(retriever: Retriever) -> None:
    found = retriever.search("a red one", 4, min_probability=0.0, rerank=None)
    keys = [hit.key for hit in found]
    images = retriever._catalog.log.get(keys)
    relevance = Relevance(ENCODER, 10.0, 0.4)
    bank = relevance._bank.vectors
    cosines = found.scores
    hubness = np.log(np.exp(20 * (images @ bank.T).astype(np.float64)).mean(1)) / 20
    expected = 1 / (1 + np.exp(-10 * (cosines - hubness - 0.4)))
    np.testing.assert_allclose([hit.probability for hit in found], expected, atol=1e-5)
    np.testing.assert_allclose(relevance.margins(cosines, images), cosines - hubness, atol=1e-5)
    assert retriever.search("a red one", 4)[0].probability is None


@pytest.mark.parametrize("rerank", ["auto", None])
def test_hits_below_the_probability_are_left_out(retriever: Retriever, rerank: Any) -> None:
    whole = retriever.search("red", 4, min_probability=0.0, rerank=rerank)
    some = retriever.search("red", 4, min_probability=0.5, rerank=rerank)
    assert 0 < len(some) < len(whole) == 4
    assert set(some.ids) == {hit.id for hit in whole if (hit.probability or 0) >= 0.5}
    assert not some.nothing_found and not whole.nothing_found


def test_pages_of_probable_hits_join_to_all_of_them(tmp_path: Path) -> None:
    made = Retriever(ENCODER, ExactIndex(ENCODER.dim), calibration=Calibration(relevance_scale=8.0))
    vectors = np.random.default_rng(0).normal(size=(150, ENCODER.dim))
    made.add_embeddings(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    whole = made.search("red green", 100, min_probability=0.5).ids
    for collapse in (None, 0.999):
        pages = [
            made.search("red green", 3, offset=offset, min_probability=0.5, collapse=collapse).ids
            for offset in range(0, len(whole) + 3, 3)
        ]
        assert [id for page in pages for id in page] == whole and 3 < len(whole) < 100
    with pytest.raises(InvalidInputError, match=r"min_probability.*Rerank\(candidates=101\)"):
        made.search("red green", 1, offset=100, min_probability=0.5)


def test_question_without_an_answer_finds_nothing(retriever: Retriever) -> None:
    nothing = retriever.search("an unrelated thing", 4, min_probability=0.5)
    assert len(nothing) == 0 and nothing.nothing_found
    shown = retriever.search("an unrelated thing", 4, min_probability=0.0)
    assert len(shown) == 4 and shown.nothing_found, "all are improbable"
    several = retriever.search(["red", "an unrelated thing"], 4, min_probability=0.5)
    assert [one.nothing_found for one in several] == [False, True]


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan"), "high"])
def test_probability_out_of_range_is_refused(retriever: Retriever, probability: Any) -> None:
    with pytest.raises(InvalidInputError, match="min_probability must be"):
        retriever.search("red", min_probability=probability)


def test_query_that_is_no_question_or_encoder_without_constants_is_refused(retriever: Retriever) -> None:
    for query in (Query("red") - "blue", retriever.search("red", 1)[0]):
        with pytest.raises(InvalidInputError, match="question"):
            retriever.search(query, min_probability=0.5)
    with (
        Retriever(ENCODER, ExactIndex(ENCODER.dim)) as plain,
        pytest.raises(InvalidInputError, match="relevance_scale is 0: estimate it"),
    ):
        plain.search("red", min_probability=0.5)


def test_constants_are_kept_with_the_album(retriever: Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "album")
    parts: dict[str, Any] = {
        "encoder": ENCODER,
        "index": ExactIndex(ENCODER.dim),
        "generator": ToyGenerator(),
    }
    with Retriever.open(tmp_path / "album", **parts) as again:
        assert again.calibration == CALIBRATION
        assert len(again.search("an unrelated thing", min_probability=0.5)) == 0


def test_mini_preset_has_constants_and_others_have_none() -> None:
    assert PRESETS["mini"].calibration.relevance_scale > 0
    assert PRESETS["clip"].calibration.relevance_scale == 0


@given(st.floats(0.5, 50), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_fit_finds_the_constants_that_made_the_data(scale: float, margin: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    margins = margin + generator.logistic(size=20_000) * 2 / scale
    relevant = generator.random(len(margins)) < 1 / (1 + np.exp(-scale * (margins - margin)))
    found_scale, found_margin = fit(margins[relevant], margins[~relevant])
    assert found_scale == pytest.approx(scale, rel=0.15)
    assert found_margin == pytest.approx(margin, abs=0.4 / scale + 1e-3)


@pytest.mark.parametrize(
    ("relevant", "irrelevant", "message"),
    [
        ([], [0.1], "one finite number or more"),
        ([0.1], [[0.1]], "one finite number or more"),
        ([float("nan")], [0.1], "one finite number or more"),
        ([0.1, 0.2], [0.3, 0.4, 0.2], "not larger than the others"),
    ],
)
def test_margins_that_cannot_be_fitted_are_refused(relevant: Any, irrelevant: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        fit(relevant, irrelevant)


def test_bank_is_encoded_once(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    from zsqretrieval.search import query_bank

    monkeypatch.setattr(
        query_bank, "encode_texts", lambda *given: (calls.append(len(given[1])), encode_texts(*given))[1]
    )
    for _ in range(3):
        retriever.search("red", min_probability=0.5)
    assert len(calls) == 1 and calls[0] >= 200

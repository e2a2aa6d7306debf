"""Images that fit any question: their hubness, by hand, by the exact formula, and in a search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.fusion import RerankOnly, WeightedSum
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator

ENCODER = ToyEncoder()
NAMES = ("red", "green", "blue", "yellow", "black", "white")


def vectors(count: int, dim: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    return one @ other.T / lengths


# --- the formula


def test_hubness_equals_value_computed_by_hand() -> None:
    bank = QueryBank(np.array([[1, 0], [0, 2]], np.float32), "e", scale=2.0, strength=0.5)
    assert len(bank) == 2
    expected = math.log((math.e**2 + 1) / 2) / 2
    np.testing.assert_allclose(bank.hubness(np.array([[3, 0], [0, 0.1]], np.float32)), expected, rtol=1e-6)
    np.testing.assert_allclose(bank.normalized([0.9], np.array([[3, 0]], np.float32)), 0.9 - expected / 2)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 1000), st.integers(0, 99))
def test_hubness_lies_between_mean_and_largest_similarity(b: int, n: int, scale: float, seed: int) -> None:
    asked, images = vectors(b, seed=seed), vectors(n, seed=seed + 100)
    found = QueryBank(asked, "e", scale=scale).hubness(images)
    exact = cosines(images, asked)
    assert found.shape == (n,) and found.dtype == np.float64
    assert (found <= exact.max(1) + 1e-5).all()
    assert (found >= exact.mean(1) - 1e-5).all()


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 99))
def test_strength_one_equals_the_inverted_softmax(b: int, n: int, seed: int) -> None:
    asked, images, (query,) = vectors(b, seed=seed), vectors(n, seed=seed + 100), vectors(1, seed=seed + 200)
    similar = cosines(query[None], images)[0]
    softmax = np.exp(7 * similar) / np.exp(7 * cosines(asked, images)).sum(0)
    found = QueryBank(asked, "e", scale=7.0, strength=1.0).normalized(similar, images)
    np.testing.assert_allclose(np.exp(7 * found) / b, softmax, rtol=1e-4)


def test_hubness_depends_on_neither_vector_length_nor_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, images = vectors(7), vectors(50, seed=1)
    whole = QueryBank(asked, "e").hubness(images)
    np.testing.assert_allclose(QueryBank(3 * asked, "e").hubness(images * 0.01), whole, atol=1e-6)
    monkeypatch.setattr("zsqretrieval.search.query_bank._TOGETHER", 20)
    np.testing.assert_allclose(QueryBank(asked, "e").hubness(images), whole, atol=1e-6)
    assert QueryBank(asked, "e").hubness(images[:0]).shape == (0,)


def test_strength_zero_changes_nothing_and_batch_is_normalized() -> None:
    bank = QueryBank(vectors(3), "e", strength=0.0)
    similar = np.random.default_rng(0).normal(size=(4, 6))
    np.testing.assert_array_equal(bank.normalized(similar, vectors(6)), similar)
    strong = QueryBank(vectors(3), "e", strength=1.0)
    np.testing.assert_allclose(
        strong.normalized(similar, vectors(6)), similar - strong.hubness(vectors(6)), atol=1e-12
    )


def bank_of(**changed: Any) -> QueryBank:
    return QueryBank(**{"vectors": vectors(2), "fingerprint": "e", **changed})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bank_of(vectors=np.empty((0, 5), np.float32)), "one question or more"),
        (lambda: bank_of(vectors=np.ones(5, np.float32)), "one question or more"),
        (lambda: bank_of(vectors=np.ones((2, 5), np.int64)), "one question or more"),
        (lambda: bank_of(vectors=np.zeros((2, 5))), "question of the bank 0 has a vector that is zero"),
        (lambda: bank_of(vectors=np.array([[1.0], [np.nan]])), "question of the bank 1 .* not finite"),
        (lambda: bank_of(scale=0), "scale must be above 0"),
        (lambda: bank_of(scale=math.inf), "scale must be a finite number"),
        (lambda: bank_of(strength=-1), "strength must be a finite number of at least 0"),
        (lambda: bank_of(strength="much"), "strength must be a finite number"),
        (lambda: bank_of().hubness(vectors(2, dim=4)), r"float32 \[n, 5\]"),
        (lambda: bank_of().hubness(np.array([[1.0] * 5, [0.0] * 5])), "image 1 has a vector that is zero"),
        (lambda: QueryBank.from_texts(ENCODER, []), "one text or more"),
        (lambda: QueryBank.from_texts(ENCODER, "red"), "texts must be a list"),
        (lambda: QueryBank.from_texts(ENCODER, ["red", " "]), "text 1 of the bank"),
        (lambda: QueryBank.from_texts(ENCODER, [3]), "0"),  # type: ignore[list-item]
    ],
)
def test_invalid_bank_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


# --- in a search


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    for name in NAMES:
        PILImage.new("RGB", (6, 4), name).save(tmp_path / f"{name}.png")
    index = ExactIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint)
    found = Retriever(ENCODER, index, ToyGenerator())
    found.add(tmp_path)
    return found


def test_search_subtracts_hubness(retriever: Retriever) -> None:
    bank = QueryBank.from_texts(ENCODER, ["a red thing", "red", "something red"], strength=1.0)
    assert bank.fingerprint == ENCODER.fingerprint
    plain = retriever.search("red or blue", 6, rerank=None)
    found = retriever.search("red or blue", 6, bank=bank, rerank=None)
    assert {hit.id for hit in found} == {hit.id for hit in plain}
    before = {hit.id: hit.score for hit in plain}
    keys = [hit.key for hit in found]
    expected = [before[hit.id] for hit in found] - bank.hubness(retriever._catalog.log.get(keys))
    np.testing.assert_allclose([hit.score for hit in found], expected, atol=1e-6)
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    for hit in found:
        assert hit.scores == {"first_stage": pytest.approx(before[hit.id]), "normalized": hit.score}
    assert list(found.timings) == ["encode", "first_stage", "normalized"]
    place = [hit.id for hit in plain].index("red.png"), [hit.id for hit in found].index("red.png")
    assert place[1] > place[0], "what every question of the bank fits moves down"


def test_all_candidates_are_normalized_when_k_is_small(retriever: Retriever) -> None:
    bank = QueryBank.from_texts(ENCODER, ["a red thing", "red"], strength=1.0)
    whole = retriever.search("red or blue", 6, bank=bank, rerank=None)
    assert retriever.search("red or blue", 2, bank=bank, rerank=None)[0].id == whole[0].id != "red.png"
    first = {hit.id for hit in retriever.search("red or blue", 2, rerank=None)}
    of_two = retriever.search("red or blue", 2, bank=bank, rerank=Rerank(None, candidates=2))
    assert {hit.id for hit in of_two} == first and set(of_two[0].scores) == {"first_stage", "normalized"}
    few = retriever.search("red", 1, bank=bank, rerank=None)
    assert few[0].id == "red.png", "the only candidate"


def test_normalized_score_replaces_first_stage_in_fusion(retriever: Retriever) -> None:
    bank = QueryBank.from_texts(ENCODER, ["a red thing", "red"], strength=1.0)
    alone = retriever.search("red or blue", 6, bank=bank, rerank=None)
    joined = retriever.search(
        "red or blue", 6, bank=bank, rerank=Rerank(fusion=WeightedSum(0.0, scale="raw"))
    )
    assert [(hit.id, hit.score) for hit in joined] == [(hit.id, pytest.approx(hit.score)) for hit in alone]
    assert set(joined[0].scores) == {"first_stage", "normalized", "likelihood", "fused"}
    read = retriever.search("red or blue", 6, bank=bank, rerank=Rerank(Likelihood(), fusion=RerankOnly()))
    plain = retriever.search("red or blue", 6, rerank=Rerank(Likelihood(), fusion=RerankOnly()))
    assert {hit.id: hit.score for hit in read} == {hit.id: hit.score for hit in plain}


class Writer(ToyGenerator):
    """Says the same of all images."""

    def generate(self, contexts: Any, *, n: int = 1, **settings: Any) -> list[list[str]]:
        return [[f"red {draw}?" for draw in range(n)] for _ in contexts]


def test_query_bank_holds_kept_questions_of_the_style(retriever: Retriever) -> None:
    with pytest.raises(InvalidInputError, match=r"no kept questions of the style 'search'.*--style search"):
        retriever.query_bank()
    writing = Retriever(ENCODER, generator=Writer())
    writing.add(record.source for record in retriever.records())
    writing.questions.generate(2, style="search", top_k=None)
    writing.questions.generate(1, style="captions", top_k=1)
    bank = writing.query_bank()
    assert len(bank) == 12 and bank.fingerprint == ENCODER.fingerprint
    kept = {one.text for one in writing.questions.list() if one.recipe.style == "search"}
    expected = ENCODER.encode_text(sorted(kept))
    np.testing.assert_allclose(np.unique(bank.vectors, axis=0), np.unique(expected, axis=0), atol=1e-6)
    assert len(writing.query_bank(size=5)) == 5
    np.testing.assert_array_equal(writing.query_bank(size=5).vectors, writing.query_bank(size=5).vectors)
    expanded = writing.search("red", 3, expand=True, bank=bank, rerank=None)
    assert {"image_similarity", "question_similarity", "first_stage", "normalized"} == set(expanded[0].scores)
    with pytest.raises(InvalidInputError, match="style 'mine'"):
        writing.query_bank(style="mine")
    with pytest.raises(InvalidInputError, match="size must be at least 1"):
        writing.query_bank(size=0)


def test_bank_of_another_encoder_is_refused(retriever: Retriever) -> None:
    with pytest.raises(MismatchError, match=r"'another'.*query_bank"):
        retriever.search("red", bank=QueryBank(vectors(2, dim=ENCODER.dim), "another"))


@pytest.mark.parametrize(("k", "left"), [(6, 5), (3, 3)])
def test_image_removed_during_search_is_left_out_and_the_page_is_filled(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch, k: int, left: int
) -> None:
    bank = retriever.query_bank(["red"])
    inside = retriever._first_stage._nearest

    def found(*asked: Any) -> Any:
        answer = inside(*asked)
        if "red.png" in retriever:
            retriever.remove("red.png")
        return answer

    monkeypatch.setattr(retriever._first_stage, "_nearest", found)
    hits = retriever.search("red", k, bank=bank, rerank=Rerank(None, candidates=k))
    assert len(hits) == left and "red.png" not in {hit.id for hit in hits}


def test_empty_album_with_bank_gives_no_hits(retriever: Retriever) -> None:
    empty = Retriever(ENCODER, generator=ToyGenerator())
    assert len(empty.search("red", bank=retriever.query_bank(["red"]))) == 0

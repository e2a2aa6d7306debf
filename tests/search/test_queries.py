"""Queries of several terms, batches, pages, near-duplicates, diversity, and coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PILImage

from zsqretrieval import Field, Image, Likelihood, Query, Ranking, Rerank, Retriever
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.search.diversity import collapsed, diversified
from zsqretrieval.search.fusion import RerankOnly
from zsqretrieval.search.scoring import score_pairs
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator

ENCODER = ToyEncoder()
COLOURS = {  # none as far as another from a third
    "red": (250, 12, 3),
    "green": (9, 201, 31),
    "blue": (21, 5, 230),
    "yellow": (243, 238, 17),
    "black": (13, 7, 2),
    "white": (251, 247, 255),
}
ALONE = Rerank(Likelihood(), RerankOnly())


class Counting(ToyEncoder):
    """Counts calls and texts."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> Any:
        self.calls.append(len(texts))
        return super().encode_text(texts)


class Asked(ToyGenerator):
    """Counts the calls that score pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def log_likelihood(self, contexts: Any, continuations: Any, **options: Any) -> Any:
        self.calls.append(len(contexts))
        return super().log_likelihood(contexts, continuations, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in COLOURS:
        image(name).save(tmp_path / f"{name}.png")
    return tmp_path


def retriever_of(folder: Path, encoder: Any = ENCODER, generator: Any = None) -> Retriever:
    made = Retriever(encoder, ExactIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint), generator)
    made.add(folder)
    return made


@pytest.fixture
def retriever(folder: Path) -> Retriever:
    return retriever_of(folder)


def image(name: str) -> PILImage.Image:
    return PILImage.new("RGB", (6, 4), COLOURS[name])


# --- terms


def test_weighted_sum_of_terms_ranks_by_the_sum_of_their_vectors(retriever: Retriever) -> None:
    texts, (blue,) = ENCODER.encode_text(["red", "green"]), ENCODER.encode_image([Image(image("blue"), "b")])
    whole = texts[0] - 0.5 * texts[1] + 2 * blue
    found = retriever.search(Query("red") - 0.5 * Query("green") + 2 * Query(image("blue")), 6)
    expected = {id: retriever_vector(retriever, id) @ whole / np.linalg.norm(whole) for id in found.ids}
    np.testing.assert_allclose(found.scores, [expected[id] for id in found.ids], atol=1e-6)
    assert found.ids == sorted(found.ids, key=lambda id: -expected[id])
    assert found.query == "red - 0.5 * green + 2 * <PIL image>"


def retriever_vector(retriever: Retriever, id: str) -> Any:
    record = retriever.find(id)
    assert record is not None
    vector = retriever._catalog.log.get([record.key])[0]
    return vector / np.linalg.norm(vector)


def test_negative_term_moves_its_images_down(retriever: Retriever) -> None:
    assert retriever.search("yellow", 1).ids == ["yellow.png"]
    without = retriever.search(Query("yellow") - Query("red"), 6).ids
    assert without.index("red.png") > retriever.search("yellow", 6).ids.index("red.png")


def test_single_term_is_the_plain_search_whatever_its_positive_weight(retriever: Retriever) -> None:
    for one in ("red", Path(retriever.search("red", 1)[0].source)):
        plain = retriever.search(one, 6)
        for same in (Query(one), 3 * Query(one), np.float32(0.2) * Query(one), Query(Query(one))):
            found = retriever.search(same, 6)
            assert (found.ids, found.scores.tolist()) == (plain.ids, plain.scores.tolist())


def test_texts_of_a_query_are_scored_one_by_one_and_summed(folder: Path) -> None:
    generator = ToyGenerator()
    retriever = retriever_of(folder, generator=generator)
    query = "red" + Query("bright") * 2 - 0.25 * Query("blue") + Query(image("green"))
    found = retriever.search(query, 6, rerank=ALONE)
    for hit in found:
        shown = Image(Path(hit.source), hit.source)
        red, bright, blue = score_pairs(generator, Likelihood(), ["red", "bright", "blue"], [shown] * 3)
        assert hit.scores["likelihood"] == pytest.approx(red + 2 * bright - 0.25 * blue)
    assert found.ids == sorted(found.ids, key=lambda id: -dict(zip(found.ids, found.scores, strict=True))[id])


def test_hit_finds_images_like_its_own_without_itself(retriever: Retriever) -> None:
    hit = retriever.search("red", 1)[0]
    by_image = [id for id in retriever.search(Path(hit.source), 6).ids if id != hit.id]
    assert retriever.search(hit, 6).ids == by_image
    assert retriever.search(hit, 2).ids == by_image[:2]
    assert retriever.search(Query(hit) + Query("blue"), 6).ids.count(hit.id) == 0


def test_vector_searches_like_its_text(retriever: Retriever) -> None:
    vectors = ENCODER.encode_text(["red", "blue"])
    assert retriever.search(7 * vectors[0].astype(np.float64), 3).ids == retriever.search("red", 3).ids
    both = retriever.search(list(vectors), 3)
    assert [one.ids for one in both] == [one.ids for one in retriever.search(["red", "blue"], 3)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Query("  "), "the question must be a non-empty string"),
        (lambda: Query("red") * 0, "must not be 0"),
        (lambda: 1e-5 * (1e-5 * Query("red")), "below 1e-06"),
        (lambda: 1e200 * (1e200 * Query("red")), r"above 1e\+06"),
        (lambda: Query("red") * float("nan"), "weight must be a finite number"),
        (lambda: Query("red") * "blue", "weight must be a finite number"),
        (lambda: Query("red") + 1, "an image must be"),
        (lambda: Query(np.zeros(16, np.float32)), "finite and not zero"),
        (lambda: Query(np.zeros((2, 16))), "PIL.Image.fromarray"),
        (lambda: Query(np.zeros((4, 4, 3), np.uint8)), "PIL.Image.fromarray"),
        (lambda: Query(None), "an image must be"),
    ],
)
def test_term_that_cannot_be_searched_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_query_that_fits_no_album_is_refused(retriever: Retriever) -> None:
    hit = retriever.search("red", 1)[0]
    retriever.remove(hit.id)
    for query, message in [
        (hit, "is not of this album, or was removed"),
        (np.ones(3), "has 3 numbers; the encoder of this album makes 16"),
        (Query("red") - Query("red"), "terms of the query 'red - red' cancel"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            retriever.search(query)  # type: ignore[call-overload]


def test_question_is_shown_as_it_is(retriever: Retriever) -> None:
    for question in (" red ", "red\n", "- red"):
        assert retriever.search(question, 1).query == question
    assert str(-Query("red") + " blue") == "- red +  blue"


# --- batches


def test_batch_equals_single_searches_and_encodes_and_scores_once(folder: Path) -> None:
    encoder, generator = Counting(), Asked()
    retriever = retriever_of(folder, encoder, generator)
    queries = ["red", "a blue one", Query("green") - 0.5 * Query("red"), image("black"), "red"]
    alone = [retriever.search(query, 4) for query in queries]
    encoder.calls.clear()
    generator.calls.clear()
    together = retriever.search(queries, 4)
    assert encoder.calls == [3]
    assert len(generator.calls) == 1
    for one, other in zip(together, alone, strict=True):
        assert (one.query, one.ids) == (other.query, other.ids)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
    assert retriever.search([], 4) == []


def test_progress_of_a_batch_counts_all_pairs(folder: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    retriever_of(folder, generator=ToyGenerator()).search(
        ["red", "blue"], 3, progress=lambda *one: seen.append(one)
    )
    assert seen[-1][1:] == (12, 12)


def test_image_that_a_reranker_cannot_take_ranks_last(folder: Path) -> None:
    asked: list[int] = []

    class Picky:
        def score(self, question: str, images: Sequence[Image]) -> list[float]:
            asked.append(len(images))
            for image in images:
                if question == "red" and Path(image.source).stem in ("red", "blue"):
                    raise ImageError(image.source, "too large")
            return [float(n) for n in range(len(images))]

    with pytest.warns(RuntimeWarning, match="2 of 6 candidates cannot be opened or scored.*too large"):
        red, other = retriever_of(folder).search(["red", "a thing"], 6, rerank=Picky())
    assert {hit.id for hit in red if hit.score is None} == {"red.png", "blue.png"} and red.unscored == 2
    assert None not in [hit.score for hit in other] and asked == [6, 5, 4, 6]


# --- pages


def test_pages_join_to_the_whole_ranking(folder: Path) -> None:
    for generator, how in [(None, None), (ToyGenerator(), Rerank(candidates=3)), (ToyGenerator(), "auto")]:
        retriever = retriever_of(folder, generator=generator)
        pages = [retriever.search("red", 2, offset=offset, rerank=how) for offset in (0, 2, 4, 6)]
        assert [len(page) for page in pages] == [2, 2, 2, 0]
        assert len({id for page in pages for id in page.ids}) == 6


def test_hits_beyond_the_candidates_follow_in_the_order_of_the_first_stage(folder: Path) -> None:
    retriever = retriever_of(folder, generator=ToyGenerator())
    first = retriever.search("red", 6, rerank=None)
    found = retriever.search("red", 3, offset=3, rerank=Rerank(candidates=3))
    assert found.ids == first.ids[3:]
    assert [hit.score for hit in found] == [None] * 3
    assert found.unscored == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": -1}, "offset must be at least 0"),
        ({"collapse": 0.0}, "collapse must be above 0 and at most 1, not 0.0"),
        ({"collapse": 1.1}, "collapse must be above 0 and at most 1, not 1.1"),
        ({"diversity": -0.1}, "diversity must be at least 0 and at most 1, not -0.1"),
        ({"diversity": float("nan")}, "diversity must be a finite number"),
        ({"where": "year > 2000"}, "where must be a filter such as"),
        ({"where": Field("year")}, "where must be a filter such as"),
        ({"explain": True, "query": Query("red") - "blue"}, "one question per query"),
    ],
)
def test_option_out_of_range_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    retriever = retriever_of(folder, generator=ToyGenerator())
    with pytest.raises(InvalidInputError, match=message):
        retriever.search(options.pop("query", "red"), **options)


def test_page_beyond_the_candidates_of_a_query_bank_is_refused(retriever: Retriever) -> None:
    bank = retriever.query_bank(["a thing"])
    assert len(retriever.search("red", 3, offset=3, bank=bank)) == 3
    with pytest.raises(InvalidInputError, match=r"Rerank\(candidates=110\)"):
        retriever.search("red", 10, offset=100, bank=bank)


# --- near-duplicates and diversity


def test_near_duplicates_are_shown_once_and_counted(folder: Path) -> None:
    for n in range(1, 40):
        PILImage.new("RGB", (6 + n, 4), (255, n // 8, 0)).save(folder / f"red{n}.png")
    retriever = retriever_of(folder)
    assert all(id.startswith("red") for id in retriever.search("red", 5).ids)
    found = retriever.search("red", 5, collapse=0.99)
    assert len(found) == 5 and sum(id.startswith("red") for id in found.ids) == 1
    assert found[0].duplicates == 39
    assert [retriever.search("red", k, collapse=0.99)[0].duplicates for k in (1, 3)] == [39, 39]
    assert [hit.duplicates for hit in found[1:]] == [0] * 4


def test_fewer_hits_than_k_if_all_others_are_near_duplicates(retriever: Retriever) -> None:
    found = retriever.search("red", 6, collapse=1e-6)
    assert 0 < len(found) < 6
    vectors = np.stack([retriever_vector(retriever, id) for id in found.ids])
    assert (vectors @ vectors.T - np.eye(len(found)) < 1e-6).all()


VECTORS = arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(-1, 1, width=32))


@given(VECTORS.filter(lambda rows: (np.abs(rows).max(1) > 0.01).all()), st.floats(0.1, 1))
@settings(max_examples=60, deadline=None)
def test_collapsed_images_are_like_their_representative_and_representatives_unlike(
    rows: Any, threshold: float
) -> None:
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    owner = collapsed(vectors, threshold)
    kept = np.flatnonzero(owner == np.arange(len(owner)))
    assert (owner <= np.arange(len(owner))).all() and np.isin(owner, kept).all()
    for n, first in enumerate(owner):
        assert n == first or vectors[n] @ vectors[first] >= threshold - 1e-6
    cosines = vectors[kept] @ vectors[kept].T
    assert (cosines[~np.eye(len(kept), dtype=bool)] < threshold + 1e-6).all()


@given(VECTORS.filter(lambda rows: (np.abs(rows).max(1) > 0.01).all()), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_diversified_order_is_greedy(rows: Any, diversity: float, seed: int) -> None:
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    scores = np.random.default_rng(seed).normal(size=len(rows))
    order = diversified(scores, vectors, diversity).tolist()
    assert sorted(order) == list(range(len(rows)))
    spread = np.ptp(scores) or 1.0
    relevance = (scores - scores.min()) / spread

    def gain(n: int, before: list[int]) -> float:
        alike = max((float(vectors[n] @ vectors[m]) for m in before), default=0.0)
        return float((1 - diversity) * relevance[n] - diversity * alike)

    for place, n in enumerate(order):
        rest = order[place:]
        assert gain(n, order[:place]) >= max(gain(m, order[:place]) for m in rest) - 1e-5
    if diversity == 0:
        assert order == np.argsort(-scores, kind="stable").tolist()


def test_diversity_brings_unlike_images_forward(folder: Path) -> None:
    for n in range(1, 6):
        PILImage.new("RGB", (6 + n, 4), (255, 10 * n, 0)).save(folder / f"red{n}.png")
    retriever = retriever_of(folder)
    assert all(id.startswith("red") for id in retriever.search("red", 5).ids)
    diverse = retriever.search("red", 5, diversity=0.7)
    assert diverse.ids[0] == retriever.search("red", 1).ids[0]
    assert not diverse.ids[1].startswith("red")
    assert retriever.search("red", 3, offset=2, diversity=0.7).ids == diverse.ids[2:5]


# --- a second stage that fails


class Flaky:
    """Fails for the question "blue"; scores by the file's name otherwise."""

    def score(self, question: str, images: Sequence[Image]) -> Any:
        if question == "blue":
            raise ConnectionError("the server is away")
        return [len(one.source) for one in images]


def test_first_stage_ranks_what_a_failing_reranker_cannot(retriever: Retriever) -> None:
    plain = retriever.search("blue", 6)
    with pytest.warns(RuntimeWarning, match="the re-ranker Flaky failed for 'blue'.*the server is away"):
        blue, red = retriever.search(["blue", "red"], 6, rerank=Rerank(Flaky(), on_error="first_stage"))
    assert (blue.ids, blue.unscored) == (plain.ids, 6)
    np.testing.assert_allclose(blue.scores, plain.scores, atol=1e-6)
    assert red.unscored == 0 and "Flaky" in red[0].scores
    with pytest.raises(ConnectionError, match="the server is away"):
        retriever.search("blue", rerank=Flaky())
    with pytest.raises(InvalidInputError, match="on_error must be"):
        Rerank(Flaky(), on_error="ignore")  # type: ignore[arg-type]


def test_question_that_failed_is_not_asked_about_further_parts(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsqretrieval.album.candidates.BYTES_AT_ONCE", 1)
    with pytest.warns(RuntimeWarning) as caught:
        blue, red = retriever.search(["blue", "red"], 6, rerank=Rerank(Flaky(), on_error="first_stage"))
    assert len(caught) == 1 and (blue.unscored, red.unscored) == (6, 0)


# --- coroutines


def test_coroutine_searches_like_a_call(retriever: Retriever) -> None:
    async def both() -> list[Ranking]:
        return list(await asyncio.gather(retriever.asearch("red", 3), retriever.asearch("blue", 2)))

    red, blue = asyncio.run(both())
    assert red.ids == retriever.search("red", 3).ids and blue.ids == retriever.search("blue", 2).ids
    many = asyncio.run(retriever.asearch(["red", "blue"], 2, rerank=None))
    assert [one.ids for one in many] == [red.ids[:2], blue.ids]


def test_cancelled_coroutine_ends_its_search(folder: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    class Slow(ToyGenerator):
        def log_likelihood(self, contexts: Any, continuations: Any, *, progress: Any, **rest: Any) -> Any:
            begun.set()
            try:
                while True:
                    progress("scoring", 0, 1)
                    threading.Event().wait(0.01)
            finally:
                ended.set()

    retriever = retriever_of(folder, generator=Slow())

    async def cancel() -> None:
        search = asyncio.ensure_future(retriever.asearch("red"))
        await asyncio.to_thread(begun.wait, 30)
        search.cancel()
        await search

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert ended.wait(30)

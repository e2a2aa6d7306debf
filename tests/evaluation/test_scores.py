"""Benches and systems, with an encoder and a generator whose every number is known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_data import unit
from plane import Asker, Plane, bench_of, number, pictured
from small_sets import write_colours
from zsqretrieval._util.cache import Cache
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation import scores as scores_module
from zsqretrieval.evaluation.datasets import DIRECTIONS, Dataset, Direction, Query, read_shards
from zsqretrieval.evaluation.metrics import measure
from zsqretrieval.evaluation.run import fused_run, rerank_depth, shallow
from zsqretrieval.evaluation.scores import Questions, encoder_name, sample_rows
from zsqretrieval.evaluation.systems import SYSTEMS, WORDINGS, Choice, choose_systems, options
from zsqretrieval.search.expansion import join
from zsqretrieval.search.fusion import RerankOnly, WeightedSum
from zsqretrieval.search.priors import log_prior, null_images
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Image

CHOICE = Choice(WeightedSum(0.5), WeightedSum(0.05), 0.3, "given")


# --- the first stage --------------------------------------------------------------------------------------


def test_first_stage_has_the_name_of_its_encoder() -> None:
    class Named(ToyEncoder):
        config = {"name": "ViT-B-32", "pretrained": "x"}  # noqa: RUF012

    assert encoder_name(ToyEncoder()) == "ToyEncoder" and encoder_name(Named()) == "Named ViT-B-32"
    assert bench_of(pictured(), Plane(), None).part("text to image", "caption", None).first.name == "Plane"


def test_first_stage_finds_the_nearest_in_both_directions() -> None:
    bench = bench_of(pictured(), Plane(), None)
    there, back = (bench.part(way, "caption", None) for way in DIRECTIONS)
    assert there.first.candidates[:, 0].tolist() == [0, 0, 1, 2, 3, 3]
    assert there.first.scores[0, :2] == pytest.approx(np.cos(np.deg2rad([2, 8])))
    assert back.task.queries == ("i0", "i1", "i2", "i3") and back.first.candidates.shape == (4, 6)
    assert set(back.first.candidates[0, :2]) == {0, 1} and set(back.first.candidates[3, :2]) == {4, 5}
    for part in (there, back):
        assert measure(part.first, ["R@1"])["R@1"].all()


def test_equal_similarities_rank_against_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(Plane):
        def _at(self, degrees: list[float]) -> np.ndarray:
            return super()._at([0.0] * len(degrees))

    monkeypatch.setattr(scores_module, "_DEEP", 3)
    for way in DIRECTIONS:
        part = bench_of(pictured(), Blind(), None, candidates=1).part(way, "caption", None)
        found = measure(part.first, ["R@1", "R@100"])
        assert not found["R@1"].any() and not found["R@100"].any()


def test_own_captions_that_tie_do_not_hurt_one_another() -> None:
    part = bench_of(pictured(), Plane(0.0), None).part("image to text", "caption", None)
    assert measure(part.first, ["R@1"])["R@1"].all()


def test_images_without_texts_are_no_queries() -> None:
    data = pictured()
    few = replace(data, queries=data.queries[4:], qrels={q: data.qrels[q] for q in ("q4", "q5")})
    run = bench_of(few, Plane(), None).part("image to text", "caption", None).first
    assert run.task.queries == ("i3",) and run.task.items == ("q4", "q5")
    assert run.scores[0] == pytest.approx(np.cos(np.deg2rad([2, 2])))


def test_samples_are_even_and_do_not_depend_on_other_forms(tmp_path: Path) -> None:
    data = read_shards(write_colours(tmp_path / "colours", shades=2))
    both = replace(
        data,
        queries=(*data.queries, *(replace(one, id=f"{one.id}?", form="other") for one in data.queries)),
        qrels={**data.qrels, **{f"{id}?": answers for id, answers in data.qrels.items()}},
    )
    there = bench_of(both, ToyEncoder(), None).part("text to image", "caption", 7)
    alone = bench_of(data, ToyEncoder(), None).part("text to image", "caption", 7)
    assert there.task.queries == alone.task.queries and len(np.unique(there.task.clusters)) == 7
    back = bench_of(both, ToyEncoder(), None).part("image to text", "caption", 7)
    assert len(back.task.queries) == 7 and len(back.task.items) == 24, "all texts are searched"
    assert sample_rows(5, 9, 0).tolist() == [0, 1, 2, 3, 4] and len(sample_rows(9, 4, 1)) == 4


# --- scores of pairs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", DIRECTIONS)
def test_candidates_are_scored_once_and_cached(way: Direction, tmp_path: Path) -> None:
    steps: list[tuple[str, float, int]] = []
    generators = Asker(), Asker()
    for generator in generators:
        with Cache(tmp_path / "cache.sqlite") as cache:
            step = lambda *one: steps.append(one)  # noqa: E731
            part = bench_of(pictured(), Plane(), generator, cache, step, candidates=3).part(
                way, "caption", None
            )
            run = part.scored(Likelihood(), 2)
        assert run.name == "likelihood" and np.array_equal(run.candidates, part.first.candidates[:, :2])
        names = {query.id: number(query.text) for query in pictured().queries} | {
            f"i{n}": n for n in range(4)
        }
        for row, query in enumerate(run.task.queries):
            expected = [-abs(names[query] - names[run.task.items[item]]) for item in run.candidates[row]]
            assert run.scores[row].tolist() == expected
    texts = len({query.text for query in pictured().queries})
    asked = texts * 3 if way == "text to image" else len({(q, t // 1) for q, t in _pairs(part)})
    assert (generators[0].pairs, generators[1].pairs) == (asked, 0)
    assert steps[-1][1] == steps[-1][2] and steps[-1][0] == f"{way}, caption: scoring by likelihood"


def _pairs(part: Any) -> set[tuple[str, int]]:
    """Distinct pairs of image and text among the scored candidates, image to text."""
    run = shallow(part.first, 3)
    texts = [query.text for query in part.data.queries]
    return {
        (query, number(texts[item]))
        for query, row in zip(run.task.queries, run.candidates, strict=True)
        for item in row
    }


def test_an_interrupted_scoring_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "_BLOCK", 4)

    class Stopping(Asker):
        def log_likelihood(self, *arguments: Any, **settings: Any) -> Any:
            if self.pairs == 8:
                raise KeyboardInterrupt
            return super().log_likelihood(*arguments, **settings)

    def scores(generator: Any) -> np.ndarray:
        with Cache(tmp_path / "cache.sqlite") as cache:
            part = bench_of(pictured(), Plane(), generator, cache).part("text to image", "caption", None)
            return part.scored(Likelihood(), 4).scores

    with pytest.raises(KeyboardInterrupt):
        scores(Stopping())
    second, third = Asker(), Asker()
    whole = scores(second)
    assert second.pairs == 16 - 8 and np.array_equal(scores(third), whole) and third.pairs == 0
    other = Asker()
    other.fingerprint = "another"
    scores(other)
    assert other.pairs == 16, "scores of another generator are never taken"


def test_texts_of_one_image_are_scored_together() -> None:
    shown: list[Any] = []

    class Noting(Asker):
        def log_likelihood(self, contexts: Sequence[Any], *arguments: Any, **settings: Any) -> Any:
            shown.extend(context[0].id for context in contexts)
            return super().log_likelihood(contexts, *arguments, **settings)

    bench_of(pictured(), Plane(), Noting()).part("text to image", "caption", None).scored(Likelihood(), 4)
    assert len([one for one, _ in itertools.groupby(shown)]) == len(set(shown)) == 4


def test_image_features_are_computed_once_and_only_when_needed(tmp_path: Path) -> None:
    class Counting(ToyStatesGenerator):
        seen = 0

        def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> Any:
            self.seen += len(images)
            return super().image_states(images)

    data, generator = read_shards(write_colours(tmp_path / "colours")), Counting()
    with Cache(tmp_path / "cache.sqlite") as cache:
        part = bench_of(data, ToyEncoder(), generator, cache).part("text to image", "caption", None)
        assert generator.seen == 0
        scores = part.scored(Likelihood(), 2).scores
        assert generator.seen == 6
        again = bench_of(data, ToyEncoder(), generator, cache).part("text to image", "caption", None)
        assert np.array_equal(again.scored(Likelihood(), 2).scores, scores) and generator.seen == 6
    pixels = bench_of(data, ToyEncoder(), ToyGenerator()).shown([1, 0])
    assert pixels == [data.gallery[1], data.gallery[0]], "it makes no features"


@pytest.mark.parametrize("generator", [ToyGenerator(), ToyStatesGenerator()])
def test_priors_are_those_of_the_library(generator: ToyGenerator) -> None:
    texts = ["what is red?", "the colour of the picture", "no"]
    found = bench_of(pictured(), Plane(), generator).log_priors(texts)
    assert found == pytest.approx(log_prior(generator, Likelihood(), null_images(), texts))


def test_token_counts_are_the_ratio_of_sum_and_mean() -> None:
    texts = ["what is red?", "no", "the colour of the picture ?"]
    generator, (grey,) = ToyGenerator(), null_images(1)
    counts = bench_of(pictured(), Plane(), generator).token_counts(texts)
    for text, count in zip(texts, counts, strict=True):
        (pair,) = Likelihood().pairs(text, grey)
        (one,) = generator.log_likelihood([pair.context], [pair.continuation])
        assert one.sum / count == pytest.approx(one.mean)


# --- questions --------------------------------------------------------------------------------------------


def test_questions_that_find_another_image_are_dropped(tmp_path: Path) -> None:
    asker = Asker()
    with Cache(tmp_path / "cache.sqlite") as cache:
        found = bench_of(pictured(), Plane(), asker, cache, top_k=1).questions("questions", 2)
        assert found.texts == ("image 0?", "image 2?", "image 3?") and found.owners.tolist() == [0, 2, 3]
        assert found.generated == 4 and found.vectors.shape == (3, 2)
        everything = bench_of(pictured(), Plane(), asker, cache, top_k=4).questions("questions", 2)
        assert len(everything.texts) == 4 and asker.asked == 4, "the texts are cached"
        bench_of(pictured(), Plane(), asker, cache).questions("questions", 3)
        assert asker.asked == 8, "other settings are asked anew"
    with pytest.raises(InvalidInputError, match="odes"):
        bench_of(pictured(), Plane(), asker).questions("odes", 1)


def test_interrupted_questions_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "_TOGETHER", 2)

    def stop(step: str, done: float, total: int) -> None:
        if step.startswith("asking"):
            raise KeyboardInterrupt

    first, second = Asker(), Asker()
    with Cache(tmp_path / "cache.sqlite") as cache:
        with pytest.raises(KeyboardInterrupt):
            bench_of(pictured(), Plane(), first, cache, stop).questions("questions", 1)
        found = bench_of(pictured(), Plane(), second, cache).questions("questions", 1)
    assert (first.asked, second.asked) == (2, 2)
    assert found.texts == bench_of(pictured(), Plane(), Asker()).questions("questions", 1).texts


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(0, 12))
def test_expanded_search_ranks_as_joining_all_images_does(seed: int, images: int, questions: int) -> None:
    random = np.random.default_rng(seed)

    class Drawn:
        fingerprint, dim = "drawn", 3
        vectors = unit(random.normal(size=(images, 3)))
        asking = unit(random.normal(size=(images, 3)))

        def encode_image(self, some: Sequence[Image], *, batch_size: int = 32) -> np.ndarray:
            return self.vectors[[int(str(image.id)) for image in some]]

        def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
            return self.asking[[int(text) for text in texts]]

    data = Dataset(
        "drawn",
        tuple(Image(f"{n}".encode(), f"{n}", f"{n}") for n in range(images)),
        tuple(Query(f"q{n}", f"{n}", "caption", "") for n in range(images)),
        {f"q{n}": {f"{n}": 1} for n in range(images)},
    )
    bench = bench_of(data, Drawn(), Asker())
    owners = random.integers(0, images, questions)
    vectors = unit(random.normal(size=(questions, 3)))
    bench._questions["questions", 3] = Questions(("?",) * questions, owners, vectors, questions)
    run = bench.part("text to image", "caption", None).expanded(WeightedSum(0.7))
    found = measure(run, ["MRR"])["MRR"]
    for row in range(images):
        similarity = (Drawn.vectors @ Drawn.asking[row]).astype(np.float64)
        question = np.full(images, np.nan)
        for owner, vector in zip(owners, vectors, strict=True):
            question[owner] = np.fmax(question[owner], float(vector @ Drawn.asking[row]))
        order = np.argsort(-similarity, kind="stable")
        joined = np.empty(images)
        joined[order] = join(WeightedSum(0.7), similarity[order], question[order])
        assert found[row] == pytest.approx(1 / (joined >= joined[row] - 1e-12).sum())


def test_expansion_finds_images_by_their_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "_EITHER", 1)
    bench = bench_of(pictured(), Plane(), Asker(), top_k=1)
    part = bench.part("text to image", "caption", None)
    run = SYSTEMS["expanded"].run("expanded", part, replace(CHOICE, expansion=RerankOnly()), 2)
    assert run.name == "expanded" and run.candidates[:, 0].tolist() == [0, 0, 1, 2, 3, 3]


# --- systems ----------------------------------------------------------------------------------------------


def test_fused_systems_fuse_what_their_names_say() -> None:
    part = bench_of(pictured(), Plane(6.0), Asker(), candidates=3, top_k=4).part(
        "text to image", "caption", None
    )
    likelihood = part.scored(Likelihood(), 2)
    expected = rerank_depth(part.first, fused_run(shallow(part.first, 2), likelihood, WeightedSum(0.5)), 2)
    fused = SYSTEMS["fused"].run("fused", part, CHOICE, 2)
    np.testing.assert_array_equal(fused.scores, expected.scores)
    expanded = part.expanded(CHOICE.expansion)
    scored = part.score(shallow(expanded, 2), Likelihood(), "x")
    joined = rerank_depth(expanded, fused_run(shallow(expanded, 2), scored, WeightedSum(0.5)), 2)
    both = SYSTEMS["fused+expanded"].run("fused+expanded", part, CHOICE, 2)
    np.testing.assert_array_equal(both.scores, joined.scores)
    own = replace(CHOICE, fusions={("fused", "text to image"): WeightedSum(0.0)})
    first = SYSTEMS["fused"].run("fused", part, own, 2)
    assert np.array_equal(
        np.argsort(-first.scores, kind="stable"), np.argsort(-part.first.scores, kind="stable")
    )


def test_normalization_subtracts_the_hubness_of_each_image() -> None:
    bench = bench_of(pictured(), Plane(), Asker(), top_k=4, bank=2, bank_scale=10.0, bank_strength=1.2)
    part = bench.part("text to image", "caption", None)
    written = bench.questions("search", 2)
    bank = QueryBank(written.vectors, "plane", 10.0, 1.2)
    taken = 1.2 * bank.hubness(Plane().encode_image(pictured().gallery))
    normalized = SYSTEMS["normalized"].run("normalized", part, CHOICE, 3)
    np.testing.assert_array_equal(normalized.candidates, part.first.candidates)
    np.testing.assert_allclose(normalized.scores, part.first.scores - taken[part.first.candidates], atol=1e-6)
    joined = fused_run(shallow(normalized, 3), part.scored(Likelihood(), 3), WeightedSum(0.5))
    fused = SYSTEMS["normalized+fused"].run("normalized+fused", part, CHOICE, 3)
    np.testing.assert_array_equal(fused.scores, rerank_depth(part.first, joined, 3).scores)
    assert (fused.scores[:, :3] >= 0).all() and (fused.scores[:, 3:] < 0).all(), "the others stay below"
    bench._questions["search", 2] = Questions((), np.empty(0, np.int64), np.empty((0, 2), np.float32), 7)
    with pytest.raises(InvalidInputError, match="no search with the 7 generated texts finds its image"):
        bench.part("text to image", "caption", None).normalized  # noqa: B018


def test_prior_is_subtracted_image_to_text_only() -> None:
    bench = bench_of(pictured(), Plane(), Asker(), candidates=6)
    there, back = (bench.part(way, "caption", None) for way in DIRECTIONS)
    corrected = SYSTEMS["likelihood - prior"].make(back, CHOICE, 6)
    priors = np.array([-abs(9 - number(query.text)) for query in pictured().queries])
    expected = back.scored(Likelihood(), 6).scores - 0.3 * priors[back.first.candidates]
    np.testing.assert_allclose(corrected.scores, expected)
    fused = SYSTEMS["fused: no prior"].make(back, CHOICE, 6)
    plain = fused_run(back.first, back.scored(Likelihood(), 6), WeightedSum(0.5))
    np.testing.assert_array_equal(fused.scores, plain.scores)
    blind = SYSTEMS["no_image"].make(there, CHOICE, 4)
    assert (blind.scores == blind.scores[:, :1]).all()
    assert not measure(blind, ["R@1"])["R@1"].any(), "ties count against it"
    ranked = SYSTEMS["no_image"].make(back, CHOICE, 6)
    np.testing.assert_allclose(ranked.scores, priors[ranked.candidates])


@pytest.mark.parametrize("way", DIRECTIONS)
def test_shuffled_shows_another_image_in_place_of_each(way: Direction) -> None:
    part = bench_of(pictured(), Plane(), Asker(), candidates=3, seed=3).part(way, "caption", None)
    run = part.shuffled(Likelihood(), 3)
    assert np.array_equal(run.candidates, part.first.candidates[:, :3]) and run.task is part.task
    texts = {query.id: number(query.text) for query in pictured().queries}
    shown: dict[int, set[int]] = {}
    for row, query in enumerate(run.task.queries):
        for place, score in zip(run.candidates[row], run.scores[row], strict=True):
            image, text = (
                (run.task.items[place], query) if way == DIRECTIONS[0] else (query, run.task.items[place])
            )
            possible = {n for n in range(4) if -abs(n - texts[text]) == score}
            own = shown.setdefault(int(image[1:]), set(range(4)))
            own &= possible
    assert all(possible and possible != {image} for image, possible in shown.items())
    assert not np.array_equal(run.scores, part.scored(Likelihood(), 3).scores)
    assert np.array_equal(part.shuffled(Likelihood(), 3).scores, run.scores)


def test_a_single_image_cannot_be_shuffled() -> None:
    alone = Dataset("one", pictured().gallery[:1], pictured().queries[:1], {"q0": {"i0": 1}})
    with pytest.raises(InvalidInputError, match="single image"):
        bench_of(alone, Plane(), Asker()).part("text to image", "caption", None).shuffled(Likelihood(), 1)


def test_a_system_without_generator_is_refused() -> None:
    part = bench_of(pictured(), Plane(), None).part("text to image", "caption", None)
    with pytest.raises(InvalidInputError, match="needs a generator"):
        part.scored(Likelihood(), 2)


def test_systems_are_chosen_by_name() -> None:
    assert choose_systems(["yes-no"]) == ("yes_no",)
    assert choose_systems(["shuffled", " fused"]) == ("fused", "shuffled")
    assert choose_systems(["first_stage"]) == ()
    assert choose_systems(["likelihood"]) == ("likelihood", "likelihood - prior")
    assert choose_systems(["wording", "pixels"]) == (*WORDINGS, "pixels")
    assert choose_systems(["all"]) == (*SYSTEMS, "pixels")
    with pytest.raises(InvalidInputError, match="no system 'bm25'; choose from first_stage, likelihood"):
        choose_systems(["bm25"])
    assert set(options()) >= {"fused+expanded", "normalized+fused", "mean", "prior"}


def test_wordings_are_named_after_their_rule() -> None:
    assert all(name.startswith(f"{rule.name}: ") for name, rule in WORDINGS.items())
    assert len({repr(rule) for rule in WORDINGS.values()}) == len(WORDINGS)

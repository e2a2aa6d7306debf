"""Whole studies of toys: what is compared with what, what is kept, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sets import write_colours, write_folder
from test_systems import Asker, Readable, pictured

from zsqretrieval.errors import InvalidInputError, ZsqError
from zsqretrieval.evaluation.comparison import compare
from zsqretrieval.evaluation.datasets import Dataset, read_folder, read_shards
from zsqretrieval.evaluation.findings import Part, Study
from zsqretrieval.evaluation.measures import measure
from zsqretrieval.evaluation.plan import (
    ABLATIONS,
    NORMALIZED,
    SYSTEMS,
    Plan,
    choose_directions,
    choose_systems,
    with_forms,
    with_weight,
)
from zsqretrieval.evaluation.rerank_bench import WEIGHTS
from zsqretrieval.evaluation.runs import GeneratorSystem, first_stage, fused_run, prior_corrected, shallow
from zsqretrieval.evaluation.study import run_study
from zsqretrieval.evaluation.systems import GalleryQuestions, NormalizedSystem, ask_gallery, log_priors
from zsqretrieval.search.fusion import ReciprocalRank, WeightedSum
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Context, Image, LogLikelihood

QUICK = Plan(candidates=4, depths=(0, 2), resamples=50, permutations=99, ablation_queries=5, questions=1)


@pytest.fixture
def colours(tmp_path: Path) -> Dataset:
    return read_shards(write_colours(tmp_path / "colours", shades=2))


def study(dataset: Dataset, work: Path, plan: Plan = QUICK, **settings: Any) -> Study:
    generator = settings.pop("generator", ToyStatesGenerator())
    encoder = settings.pop("encoder", ToyEncoder())
    found = run_study(encoder, generator, dataset, plan, work=work, cost=False, **settings)
    json.dumps(found.to_json(), allow_nan=False)
    return found


def part_of(found: Study, direction: str, form: str = "caption") -> Part:
    (part,) = [one for one in found.parts if (one.direction, one.form) == (direction, form)]
    return part


# --- what is measured -------------------------------------------------------------------------------------


def test_systems_are_what_their_names_say(colours: Dataset, tmp_path: Path) -> None:
    plan = replace(QUICK, candidates=12, alpha=0.3, systems=choose_systems(["likelihood", "yesno", "fused"]))
    found = study(colours, tmp_path / "work", plan)
    assert [(one.direction, one.form) for one in found.parts] == [
        (way, form) for way in ("text to image", "image to text") for form in ("caption", "question/which")
    ]
    there, back = part_of(found, "text to image"), part_of(found, "image to text")
    assert [run.name for run in there.runs] == ["clip", "likelihood", "yes_no", "fused"]
    assert [run.name for run in back.runs] == ["clip", "likelihood", "likelihood - prior", "yes_no", "fused"]
    for part in (there, back):
        data = colours.of_form("caption")
        first = first_stage(ToyEncoder(), data, candidates=12, direction=part.direction)
        run = GeneratorSystem(ToyGenerator(), Likelihood()).run(data, first)
        corrected = run
        if part.direction == "image to text":
            texts = [query.text for query in data.queries]
            corrected = prior_corrected(run, log_priors(ToyGenerator(), Likelihood(), texts), 0.3)
        by_hand = {
            "clip": first,
            "likelihood": run,
            "likelihood - prior": corrected,
            "fused": fused_run(first, corrected, WeightedSum()),
        }
        ours = {one.name: one for one in part.runs}
        for name in ours.keys() & by_hand.keys():
            theirs = measure(by_hand[name], part.task.qrels, ["R@1", "R@5"])
            mine = measure(ours[name], part.task.qrels, ["R@1", "R@5"])
            assert all(np.array_equal(mine[one], theirs[one]) for one in mine), name


def test_the_curve_begins_at_the_first_stage_and_ends_at_the_result(colours: Dataset, tmp_path: Path) -> None:
    found = study(colours, tmp_path / "work")
    for part in found.parts:
        result = {(one.system, one.measure): one.mean for one in part.results}
        ends = {(one.system, one.depth, one.measure): one.mean for one in part.curve}
        assert {depth for _, depth, _ in ends} == {0, 2, 4}
        for system in {system for system, _, _ in ends}:
            for name in ("R@1", "R@5", "MRR"):
                assert ends[system, 0, name] == result["clip", name]
                assert ends[system, 4, name] == result[system, name]
            assert result[system, "R@100"] == result["clip", "R@100"], "what is not read is not lost"
        ceiling = {point.depth: point.mean for point in part.ceiling}
        assert ceiling[2] <= ceiling[4]
        for (_, depth, name), mean in ends.items():
            assert name != "R@1" or depth == 0 or mean <= ceiling[depth]


def test_the_first_stage_with_a_bank(
    colours: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(
        QUICK, candidates=3, bank=2, top_k=99, fusion=WeightedSum(0.5), systems=choose_systems(NORMALIZED)
    )
    found = study(colours, tmp_path / "work", plan)
    there, back = part_of(found, "text to image"), part_of(found, "image to text")
    assert [run.name for run in back.runs] == ["clip"]
    first, normalized, fused = there.runs
    assert (normalized.name, fused.name) == NORMALIZED
    data = colours.of_form("caption")
    written = ask_gallery(ToyEncoder(), ToyStatesGenerator(), data.gallery, n=2, style="search", top_k=99)
    assert found.checks["query bank"] == {"generated": written.generated, "kept": len(written.texts)}
    bank = QueryBank(written.vectors, ToyEncoder.fingerprint)
    taken = bank.strength * bank.hubness(ToyEncoder().encode_image(data.gallery))
    assert taken.std() > 0.01
    np.testing.assert_array_equal(normalized.candidates, first.candidates)
    np.testing.assert_allclose(normalized.scores, first.scores - taken[first.candidates], atol=1e-6)
    read = GeneratorSystem(ToyStatesGenerator(), Likelihood()).run(data, shallow(first, 3))
    joined = fused_run(replace(shallow(normalized, 3), name="clip"), read, WeightedSum(0.5))
    order = np.argsort(-fused.scores[:, :3], axis=1, kind="stable")
    np.testing.assert_array_equal(order, np.argsort(-joined.scores, axis=1, kind="stable"))
    assert (fused.scores[:, :3] >= 0).all() and (fused.scores[:, 3:] < 0).all(), "the rest stands behind"
    nothing = GalleryQuestions((), np.empty(0, np.int64), np.empty((0, 16), np.float32), 7)
    monkeypatch.setattr("zsqretrieval.evaluation.workbench.ask_gallery", lambda *_, **__: nothing)
    with pytest.raises(InvalidInputError, match="none of 7 texts that the generator wrote leads back"):
        study(colours, tmp_path / "work", plan)
    with pytest.raises(InvalidInputError, match="of images that are searched"):
        NormalizedSystem(ToyEncoder(), bank).run(data, back.runs[0])


def test_curves_may_go_deeper_than_what_is_read(colours: Dataset, tmp_path: Path) -> None:
    plan = replace(QUICK, depths=(0, 2, 5, 100), systems=choose_systems(["all"]))
    less = study(colours, tmp_path / "less", plan)
    more = study(colours, tmp_path / "more", replace(plan, curve_candidates=6))
    for part, deeper in zip(less.parts, more.parts, strict=True):
        by_text = part.direction == "text to image"
        assert {point.depth for point in part.curve} == {0, 2, 4}
        assert {point.depth for point in deeper.curve} == ({0, 2, 4, 5, 6} if by_text else {0, 2, 4})
        assert [point for point in deeper.curve if point.depth <= 4] == list(part.curve)
        assert deeper.results == part.results and deeper.ablations == part.ablations
        assert (deeper.ties, deeper.chance) == (part.ties, part.chance)


def test_chance_counts_every_right_candidate(colours: Dataset, tmp_path: Path) -> None:
    """Two captions of each image are right, so chance is twice as high where images look for texts."""
    plan = replace(QUICK, ablation_queries=99, candidates=24)
    found = study(colours, tmp_path / "work", plan)
    images = len(colours.gallery)
    assert part_of(found, "text to image").chance == pytest.approx(1 / images)
    assert part_of(found, "image to text").chance == pytest.approx(2 / (2 * images))
    few = study(colours, tmp_path / "work", replace(plan, candidates=4))
    part = part_of(few, "image to text")
    nearest = shallow(part.runs[0], 4)
    shares = [
        np.mean([nearest.items[place] in part.task.qrels[query] for place in row])
        for query, row in zip(nearest.queries, nearest.candidates, strict=True)
    ]
    assert part.chance == pytest.approx(np.mean(shares)) and part.chance > 2 / (2 * images)


def test_ablations_are_compared_with_what_they_are_of(colours: Dataset, tmp_path: Path) -> None:
    plan = replace(QUICK, systems=choose_systems(["all"]))
    found = study(colours, tmp_path / "work", plan)
    there, back = part_of(found, "text to image"), part_of(found, "image to text")
    names = {base: {one.system for one in some} for base, some in there.ablations.items()}
    assert names["likelihood"] >= {"likelihood", "no_image", "shuffled", "likelihood: ask"}
    assert names["yes_no"] == {"yes_no", "yes_no: question", "yes_no: vqascore"}
    assert names["fused"] == {"fused", "fused: mean"}
    assert {one.system for one in back.ablations["fused"]} == {"fused", "fused: mean", "fused: no prior"}
    for base, some in there.ablations.items():
        assert {one.queries for one in some} == {5}
        for one in some:
            assert (one.against is None) == (one.system == base)
            assert one.against is None or one.against.baseline == base
    blind = [one.mean for one in there.ablations["likelihood"] if one.system == "no_image"]
    assert blind[0] == 0.0, "R@1 of ties"
    pixels = found.checks["pixels"]
    assert pixels["pairs"] == 20 * 10 and pixels["largest_difference"] < 1e-5 < pixels["largest_score"]
    assert found.checks["questions"]["generated"] >= found.checks["questions"]["kept"] > 0


def test_examples_are_those_that_change_most(tmp_path: Path) -> None:
    """In the plane the generator is always right; the encoder, turned by 16 degrees, is not."""
    plan = replace(QUICK, systems=("clip", "likelihood"), directions=("text to image",))
    found = study(pictured(), tmp_path, plan, encoder=Readable(16.0), generator=Asker(), forms=["caption"])
    (part,) = found.parts
    assert [result.mean for result in part.results[:2]] == [2 / 6, 1.0]
    assert not part.lost and len(part.won) == 4
    assert {one.after for one in part.won} == {1} and all((one.before or 0) > 1 for one in part.won)
    assert all(one.first_after[0] in one.relevant for one in part.won)


def test_queries_are_sampled_evenly_in_both_directions(colours: Dataset, tmp_path: Path) -> None:
    found = study(colours, tmp_path / "work", replace(QUICK, queries=7, systems=("clip", "likelihood")))
    for form in ("caption", "question/which"):
        there, back = part_of(found, "text to image", form), part_of(found, "image to text", form)
        assert len(there.task.queries) == 7 and len(np.unique(there.task.clusters)) == 7
        assert len(back.task.queries) == 7 and len(back.task.items) == 24, "among all texts"
    again = study(colours, tmp_path / "other", replace(QUICK, queries=7, systems=("clip", "likelihood")))
    assert [one.results for one in again.parts] == [one.results for one in found.parts]
    plan = replace(QUICK, queries=7, systems=("clip",))
    alone = study(colours, tmp_path / "alone", plan, forms=["question/which"])
    there = part_of(alone, "text to image", "question/which").task.queries
    assert there == part_of(found, "text to image", "question/which").task.queries, "whatever else is asked"


def test_results_are_those_of_compare(colours: Dataset, tmp_path: Path) -> None:
    part = part_of(study(colours, tmp_path / "work"), "text to image")
    assert part.results == compare(
        part.task, part.runs, baseline="clip", resamples=50, permutations=99, seed=0
    )


# --- tuning -----------------------------------------------------------------------------------------------


class Contrary(Asker):
    """Likes an image more the further it is from what the text says."""

    fingerprint = "contrary"

    def log_likelihood(self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any) -> Any:
        found = super().log_likelihood(contexts, continuations)
        return [LogLikelihood(one.tokens, -5 - one.token_log_probs) for one in found]


def test_weights_are_those_that_do_best_on_the_other_split(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "colours", shades=2)
    test, dev = read_shards(folder), read_shards(folder, "dev")
    plan = replace(QUICK, systems=choose_systems(["fused", "expand", "mean"]), candidates=12)
    told: set[str] = set()
    plan = replace(plan, systems=(*plan.systems, "yes_no"))
    found = study(test, tmp_path / "work", plan, tune_on=dev, progress=lambda what, *_: told.add(what))  # type: ignore[arg-type]
    assert {what for what in told if "yes_no" in what and "dev" in what} == set()
    assert "colours dev: text to image, caption: scoring by likelihood" in told
    choice = found.choice
    assert choice.origin == "tuned for R@1 on colours dev"
    for direction in plan.directions:
        rows = [one for one in choice.sweep if (one["direction"], one["parameter"]) == (direction, "fusion")]
        assert len(rows) == len(WEIGHTS)
        best = max(rows, key=lambda one: (one["R@1"], one["R@5"], one["R@10"]))
        assert best["value"] == repr(choice.fusion[direction])
    parameters = {(one["direction"], one["parameter"]) for one in choice.sweep}
    assert ("image to text", "alpha") in parameters and ("text to image", "alpha") not in parameters
    assert ("text to image", "expansion") in parameters and ("text to image", "fusion of mean") in parameters


def test_a_generator_that_misleads_gets_no_weight(tmp_path: Path) -> None:
    plan = replace(QUICK, systems=("clip", "fused"), directions=("text to image",))
    other = [replace(image, content=f"dev {image.id}".encode()) for image in pictured().gallery]
    dev = replace(pictured(), name="plane dev", gallery=tuple(other))
    for generator, weight in ((Contrary(), 0.0), (Asker(), 0.1)):
        # Turned by 6 degrees, the encoder takes every image for the next one: any help is welcome.
        encoder = Readable(2.0 if weight == 0 else 6.0)
        found = study(
            pictured(),
            tmp_path / generator.fingerprint,
            plan,
            tune_on=dev,
            encoder=encoder,
            generator=generator,
            forms=["caption"],
        )
        fusion = found.choice.fusion["text to image"]
        assert isinstance(fusion, WeightedSum) and (fusion.weight > 0) == (weight > 0)
        results = {(one.system, one.measure): one.mean for one in found.parts[0].results}
        assert results["fused", "R@1"] == 1.0


def test_answers_are_not_seen_before(colours: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"share 12 images.*tune on another split"):
        study(colours, tmp_path / "work", tune_on=colours)
    with pytest.raises(InvalidInputError, match="has a weight to tune"):
        study(colours, tmp_path / "work", replace(QUICK, fusion=ReciprocalRank()), tune_on=colours)


# --- resuming, refusing -----------------------------------------------------------------------------------


class Counting(ToyStatesGenerator):
    asked = seen = written = 0

    def log_likelihood(self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any) -> Any:
        self.asked += len(contexts)
        return super().log_likelihood(contexts, continuations)

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> Any:
        self.seen += len(images)
        return super().image_states(images)

    def generate(self, contexts: Sequence[Context], **settings: Any) -> list[list[str]]:
        self.written += len(contexts)
        return super().generate(contexts, **settings)


def test_a_study_goes_on_where_it_was(colours: Dataset, tmp_path: Path) -> None:
    work = tmp_path / "work"
    plan = replace(QUICK, systems=choose_systems([*SYSTEMS, "shuffled", "mean"]))
    whole = Counting()
    expected = study(colours, tmp_path / "whole", plan, generator=whole)

    def stop(what: str, done: int, total: int) -> None:
        if what == "image to text, caption: scoring by likelihood":
            raise KeyboardInterrupt

    first, second, third = Counting(), Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        study(colours, work, plan, generator=first, progress=stop)
    assert study(colours, work, plan, generator=second).to_json() == expected.to_json()
    assert first.asked + second.asked == whole.asked and first.asked > 0 < second.asked
    assert first.written == whole.written and second.written == 0
    assert study(colours, work, plan, generator=third).to_json() == expected.to_json()
    assert (third.asked, third.seen, third.written) == (0, 0, 0)
    more = Counting()
    study(colours, work, plan, generator=more, forms=["caption", "question/what"])
    assert 0 < more.asked < whole.asked, "a form that is new is all that is computed"


def test_progress_says_what_of_which_part(colours: Dataset, tmp_path: Path) -> None:
    told: dict[str, tuple[int, int]] = {}
    study(colours, tmp_path / "work", progress=lambda what, *done: told.update({what: done}))  # type: ignore[arg-type]
    assert all(done == total for done, total in told.values())
    assert "text to image, caption: scoring by likelihood" in told
    assert any(what.startswith("image to text, question/which: ") for what in told)


def test_a_broken_scorer_is_named_with_its_query(colours: Dataset, tmp_path: Path) -> None:
    class Broken(ToyGenerator):
        def log_likelihood(self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any) -> Any:
            return [LogLikelihood(("?",), np.array([np.nan], np.float32)) for _ in contexts]

    with pytest.raises(
        ZsqError,
        match=r"Broken gave nan as the log-probability of ' A \w+ dog runs .*' given .*test-000.tar#",
    ):
        study(colours, tmp_path / "work", generator=Broken())

    class Blind(ToyEncoder):
        def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> Any:
            return super().encode_text(texts) * np.nan

    with pytest.raises(
        InvalidInputError, match=r"run 'clip', query 'test-000/0000#0': the score of .* is nan"
    ):
        study(colours, tmp_path / "other", encoder=Blind())


def test_plans_are_checked() -> None:
    assert choose_systems(["yesno"]) == ("clip", "yes_no")
    assert choose_systems(["shuffled", " FUSED".lower()]) == ("clip", "fused", "shuffled")
    assert choose_systems(["all"]) == (*SYSTEMS, *NORMALIZED, *ABLATIONS)
    assert choose_systems(["normalized-fused"]) == ("clip", "normalized_fused")
    assert choose_directions(["image-to-text"]) == ("image to text",)
    assert with_weight(WeightedSum(1, "raw", 100), 0.5) == WeightedSum(0.5, "raw", 100)
    assert with_weight(ReciprocalRank(), 0.5) == WeightedSum(0.5)
    for wrong in (
        {"systems": ("bm25",)},
        {"directions": ()},
        {"directions": ("sideways",)},
        {"candidates": 0},
        {"queries": 0},
        {"alpha": 1.5},
        {"batch_size": 0},
        {"resamples": 0},
        {"permutations": 0},
        {"seed": -1},
        {"depths": (0, -5)},
        {"depths": (2.5,)},
        {"measures": ("R@1", "MMR")},
    ):
        with pytest.raises(InvalidInputError):
            Plan(**wrong)  # type: ignore[arg-type]


def test_forms_are_made_where_they_are_asked_for(colours: Dataset, tmp_path: Path) -> None:
    assert with_forms(colours).forms == ("caption", "question/which")
    assert with_forms(colours, ["question/what"]).forms == ("question/what",)
    own = read_folder(write_folder(tmp_path / "own"))
    assert with_forms(own).forms == ("caption", "human question", "question/which")
    asked = own.of_form("human question")
    assert with_forms(asked).forms == ("human question",)
    with pytest.raises(
        InvalidInputError, match="no queries of the form 'question/which'; it has human quest"
    ):
        with_forms(asked, ["question/which"])

"""Whole evaluations of toys: comparisons, caching, tuning and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from plane import Asker, Plane, pictured
from small_sets import write_colours, write_folder
from zsqretrieval.errors import InvalidInputError, ZsqError
from zsqretrieval.evaluation.datasets import Dataset, read_folder, read_judgments, read_shards
from zsqretrieval.evaluation.estimate import human_time
from zsqretrieval.evaluation.experiment import GRID, WEIGHTS, check_leaks, evaluate
from zsqretrieval.evaluation.results import Results, compare
from zsqretrieval.evaluation.run import relevant, shallow
from zsqretrieval.evaluation.settings import Settings, choose_directions, with_forms, with_weight
from zsqretrieval.evaluation.systems import choose_systems
from zsqretrieval.search.fusion import Maximum, ReciprocalRank, RerankOnly, WeightedSum
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Context, Image, LogLikelihood

QUICK = Settings(
    candidates=4, depths=(0, 2), resamples=50, permutations=99, ablation_queries=5, questions=1,
    tuning_queries=8, timed_queries=1,
)  # fmt: skip
T2I, I2T = "text to image", "image to text"


@pytest.fixture
def colours(tmp_path: Path) -> Dataset:
    return read_shards(write_colours(tmp_path / "colours", shades=2))


def run(dataset: Dataset, settings: Settings = QUICK, **options: Any) -> Results:
    generator = options.pop("generator", ToyStatesGenerator())
    encoder = options.pop("encoder", ToyEncoder())
    found = evaluate(dataset, encoder, generator, settings, **{"cost": False, **options})
    json.loads(found.to_json())
    return found


def values(results: Results, group: str, *by: str, **equal: Any) -> dict[Any, float]:
    """Values of a group by some columns."""
    rows = results.select(group, **equal)
    keys = rows[list(by)].itertuples(index=False, name=None) if len(by) > 1 else rows[by[0]]
    return dict(zip(keys, rows["value"], strict=True))


# --- measuring --------------------------------------------------------------------------------------------


def test_every_system_is_compared_with_the_first_stage(colours: Dataset) -> None:
    results = run(colours)
    found = results.select("systems")
    assert list(dict.fromkeys(zip(found["direction"], found["form"], strict=True))) == [
        (way, form) for way in (T2I, I2T) for form in ("caption", "question/which")
    ]
    there, back = (found[(found["direction"] == way) & (found["form"] == "caption")] for way in (T2I, I2T))
    names = ["ToyEncoder", "likelihood", "yes_no", "fused", "expanded"]
    assert list(dict.fromkeys(there["system"])) == names and results.facts["first_stage"] == names[0]
    assert list(dict.fromkeys(back["system"])) == [*names[:2], "likelihood - prior", *names[2:4]]
    others = found[found["system"] != "ToyEncoder"]
    assert set(others["baseline"]) == {"ToyEncoder"} and others["p"].notna().all()
    assert found[found["system"] == "ToyEncoder"]["gain"].isna().all()
    assert set(found["queries"]) == {24, 12}, "one number of queries for all systems of a form"
    runs = [one for path, one in results.runs.items() if path.startswith("runs/text-to-image/caption/")]
    rows = compare(runs, baseline="ToyEncoder", resamples=50, permutations=99, depth=4)
    assert [one["value"] for one in rows] == there["value"].tolist()
    assert set(found["run"]) <= set(results.runs)


def test_curves_begin_at_the_first_stage_and_end_at_the_result(colours: Dataset) -> None:
    results = run(colours)
    ends = values(results, "curve", "direction", "form", "system", "depth", "measure")
    result = values(results, "systems", "direction", "form", "system", "measure")
    ceiling = values(results, "ceiling", "direction", "form", "depth")
    assert {depth for *_, depth, _ in ends} == {0, 2, 4}
    for (way, form, system, depth, name), value in ends.items():
        if depth == 0:
            assert value == result[way, form, "ToyEncoder", name]
        elif depth == 4:
            assert value == result[way, form, system, name]
        assert name != "R@1" or depth == 0 or value <= ceiling[way, form, depth]
    for (way, form, system, name), value in result.items():
        if name == "R@100" and system != "expanded":
            assert value == result[way, form, "ToyEncoder", name], "candidates below the depth are not lost"


def test_deeper_curves_change_nothing_else(colours: Dataset) -> None:
    settings = replace(QUICK, depths=(0, 2, 5, 100), systems=choose_systems(["all"]))
    less, more = (run(colours, replace(settings, curve_candidates=depth)) for depth in (None, 6))
    depths = {way: set(some["depth"]) for way, some in more.select("curve").groupby("direction")}
    assert depths[T2I] == {0, 2, 4, 5, 6} and depths[I2T] == {0, 2, 4}
    keep = more.table[~more.table["group"].isin(["curve", "ceiling"]) | (more.table["depth"] <= 4)]
    assert keep.reset_index(drop=True).equals(less.table.reset_index(drop=True))


def test_ablations_are_compared_with_the_complete_system(colours: Dataset) -> None:
    results = run(colours, replace(QUICK, systems=choose_systems(["all"])))
    rows = results.select("ablations", form="caption", measure="R@1")
    there, back = (rows[rows["direction"] == way] for way in (T2I, I2T))
    bases = {base: set(some["system"]) for base, some in there.groupby("baseline")}
    assert bases["likelihood"] >= {"no_image", "shuffled", "likelihood: ask"}
    assert bases["yes_no"] == {"yes_no: question", "yes_no: vqascore"}
    assert bases["fused"] == {"fused: mean"}
    assert set(back[back["baseline"] == "fused"]["system"]) == {"fused: mean", "fused: no prior"}
    complete = there[there["baseline"].isna() & (there["system"] != "chance")]
    assert set(complete["system"]) == {"likelihood", "yes_no", "fused"} and set(there["queries"]) == {5}
    assert there[there["system"] == "no_image"]["value"].tolist() == [0.0], "ties count against it"
    assert set(results.facts["ablations"]) >= {"no_image", "fused: mean"}
    pixels = results.facts["checks"]["pixels"]
    assert pixels["pairs"] == 20 * 10 and pixels["largest_difference"] < 1e-5 < pixels["largest_score"]
    for name in ("questions", "query bank"):
        checked = results.facts["checks"][name]
        assert checked["generated"] >= checked["kept"] > 0


def test_chance_is_the_share_of_relevant_candidates(colours: Dataset) -> None:
    """Two captions of each image are relevant, so chance is higher image to text."""
    settings = replace(
        QUICK, ablation_queries=99, candidates=24, systems=choose_systems(["likelihood", "shuffled"])
    )
    chance = values(run(colours, settings), "ablations", "direction", "form", system="chance")
    assert chance[T2I, "caption"] == pytest.approx(1 / 12)
    assert chance[I2T, "caption"] == pytest.approx(2 / 24)
    few = run(colours, replace(settings, candidates=4))
    nearest = shallow(few.runs["runs/image-to-text/caption/ToyEncoder.run"], 4)
    share = relevant(nearest).mean()
    chance = values(few, "ablations", "direction", "form", system="chance")
    assert chance[I2T, "caption"] == pytest.approx(share) and share > 2 / 24


def test_reliability_has_bins_errors_and_ties(colours: Dataset) -> None:
    results = run(colours, replace(QUICK, systems=("likelihood", "yes_no")))
    rows = results.select("reliability", direction=T2I, form="caption")
    assert set(rows["measure"]) == {"predicted", "observed", "calibration error", "tied"}
    assert set(rows[rows["measure"] == "tied"]["system"]) == {"likelihood", "yes_no"}
    assert rows["value"].between(0, 1).all()
    meaning = results.facts["probabilities"][T2I]
    assert meaning["yes_no"] == "P(yes) of every candidate" and "times 100" in meaning["ToyEncoder"]


def test_examples_are_those_that_change_most() -> None:
    """The generator is always right; the encoder, 16 degrees off, is not."""
    settings = replace(QUICK, systems=("likelihood",), directions=(T2I,))
    results = run(pictured(), settings, encoder=Plane(16.0), generator=Asker(), forms=["caption"])
    recall = values(results, "systems", "system", measure="R@1")
    assert recall == {"Plane": pytest.approx(2 / 6), "likelihood": 1.0}
    examples = results.facts["examples"]
    assert {one["outcome"] for one in examples} == {"won"} and len(examples) == 4
    assert all(one["after"] == 1 and one["before"] > 1 for one in examples)
    assert all(one["first_after"][0] in one["relevant"] for one in examples)


def test_human_ratings_are_correlated_with_every_system(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "colours", shades=2)
    lines = [
        f"test-000/{n:04}\ttest-000/{m:04}#0\t{1 + (n + m) % 3}\t1\t2" for n in range(6) for m in range(6)
    ]
    (folder / "ExpertAnnotations.txt").write_text("\n".join(lines))
    data = read_shards(folder)
    results = run(data, judgments=read_judgments(folder, data))
    rows = results.select("agreement")
    assert set(rows["system"]) >= {"ToyEncoder", "likelihood", "likelihood - prior", "fused"}
    assert set(rows["form"]) == {"Flickr8k-Expert"} and set(rows["measure"]) == {"tau-c"}
    (scores,) = results.ratings.values()
    assert list(scores.columns) == [
        "image", "ToyEncoder", "likelihood", "likelihood - prior", "fused", "yes_no",
    ]  # fmt: skip
    images, texts = ToyEncoder().encode_image(data.gallery[:1]), ToyEncoder().encode_text(["x"])
    assert len(scores) == 30 and scores["ToyEncoder"].between(-1, 1).all() and images.shape == texts.shape


def test_the_first_stage_can_be_measured_without_a_generator(colours: Dataset) -> None:
    results = run(colours, replace(QUICK, systems=()), generator=None)
    assert set(results.select("systems")["system"]) == {"ToyEncoder"}
    assert results.facts["fingerprints"] == {"encoder": "toy-encoder-1"}
    with pytest.raises(InvalidInputError, match="the system 'likelihood' needs a generator"):
        run(colours, generator=None)


# --- tuning -----------------------------------------------------------------------------------------------


class Contrary(Asker):
    """Scores an image higher the further it is from the text."""

    fingerprint = "contrary"

    def log_likelihood(self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any) -> Any:
        found = super().log_likelihood(contexts, continuations)
        return [LogLikelihood(one.tokens, -5 - one.token_log_probs) for one in found]


def test_parameters_are_the_best_on_the_other_split(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "colours", shades=2)
    test, dev = read_shards(folder), read_shards(folder, "dev")
    names = ["fused", "expanded", "mean", "yes_no", "normalized+fused", "likelihood"]
    steps: set[str] = set()
    results = run(
        test, replace(QUICK, systems=choose_systems(names), candidates=12, top_k=99),
        tune_on=dev, progress=lambda step, *_: steps.add(step),
    )  # fmt: skip
    assert "colours dev: text to image, caption: scoring by likelihood" in steps
    assert not any("yes_no" in step and "dev" in step for step in steps), "it has no parameter"
    choice = results.facts["choice"]
    assert choice["origin"] == "tuned for R@1 on colours dev"
    sweep = pd.DataFrame(choice["sweep"])
    tuned = set(sweep[["direction", "system", "parameter"]].itertuples(index=False, name=None))
    assert tuned == {
        (T2I, "fused", "fusion"), (T2I, "fused: mean", "fusion"), (T2I, "normalized+fused", "fusion"),
        (T2I, "expanded", "expansion"),
        (I2T, "likelihood - prior", "alpha"), (I2T, "fused", "fusion"), (I2T, "fused: mean", "fusion"),
    }  # fmt: skip
    for (way, system), rows in sweep[sweep["parameter"] == "fusion"].groupby(["direction", "system"]):
        assert len(rows) == len(WEIGHTS)
        best = max(rows.to_dict("records"), key=lambda one: (one["R@1"], one["R@5"], one["R@10"]))
        assert best["value"] == choice["fusion"][system][way], "the first of the best"


@pytest.mark.parametrize(("generator", "bit", "weight"), [(Contrary(), 2.0, 0.0), (Asker(), 6.0, 0.2)])
def test_a_misleading_generator_gets_no_weight(generator: Asker, bit: float, weight: float) -> None:
    other = [replace(image, content=f"dev {image.id}".encode()) for image in pictured().gallery]
    dev = replace(pictured(), name="plane dev", gallery=tuple(other))
    results = run(
        pictured(), replace(QUICK, systems=("fused",), directions=(T2I,)),
        tune_on=dev, encoder=Plane(bit), generator=generator, forms=["caption"],
    )  # fmt: skip
    assert results.facts["choice"]["fusion"]["fused"][T2I] == repr(WeightedSum(weight))
    assert values(results, "systems", "system", measure="R@1")["fused"] == 1.0


@pytest.mark.parametrize("expansion", [WeightedSum(7.0), Maximum(), ReciprocalRank()])
def test_expansions_of_every_kind_are_tuned(expansion: Any, tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "colours")
    settings = replace(QUICK, systems=("expanded",), expansion=expansion, directions=(T2I,), top_k=99)
    results = run(read_shards(folder), settings, tune_on=read_shards(folder, "dev"))
    rows = results.facts["choice"]["sweep"]
    assert [row["value"] for row in rows] == [repr(one) for one in GRID[type(expansion)]]


def test_tuning_needs_a_parameter_and_other_images(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "colours", splits=("test",))
    shutil.copy(folder / "test-000.tar", folder / "dev-000.tar")
    test, dev = read_shards(folder), read_shards(folder, "dev")
    with pytest.raises(InvalidInputError, match=r"colours dev and colours test share 6 images.*dev-000"):
        run(test, tune_on=dev)
    other = read_shards(write_colours(tmp_path / "other"))
    renamed = replace(test.gallery[3], id="renamed", source="elsewhere")
    with pytest.raises(InvalidInputError, match="share 1 images, such as elsewhere"):
        check_leaks(test, replace(other, gallery=(*other.gallery, renamed)))
    folder = write_colours(tmp_path / "more")
    test, dev = read_shards(folder), read_shards(folder, "dev")
    named = [replace(image, source=own.source) for image, own in zip(dev.gallery, test.gallery, strict=True)]
    check_leaks(test, replace(dev, gallery=tuple(named)))  # equal names of other images are fine
    with pytest.raises(InvalidInputError, match="only a WeightedSum has a weight to tune"):
        run(test, replace(QUICK, fusion=ReciprocalRank()), tune_on=dev)
    with pytest.raises(InvalidInputError, match=r"the expansion RerankOnly.* has no parameter"):
        run(test, replace(QUICK, expansion=RerankOnly()), tune_on=dev)


# --- continuing, progress, refusals -----------------------------------------------------------------------


class Counting(ToyStatesGenerator):
    asked = seen = written = 0

    def log_likelihood(self, contexts: Sequence[Context], *arguments: Any, **settings: Any) -> Any:
        self.asked += len(contexts)
        return super().log_likelihood(contexts, *arguments, **settings)

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> Any:
        self.seen += len(images)
        return super().image_states(images)

    def generate(self, contexts: Sequence[Context], **settings: Any) -> list[list[str]]:
        self.written += len(contexts)
        return super().generate(contexts, **settings)


def test_an_interrupted_evaluation_continues(colours: Dataset, tmp_path: Path) -> None:
    settings = replace(QUICK, systems=choose_systems(["yes_no", "fused", "expanded", "shuffled", "mean"]))
    expected = run(colours, settings, work=tmp_path / "whole")

    def stop(step: str, done: int, total: int | None) -> None:
        if step == "image to text, caption: scoring by likelihood":
            raise KeyboardInterrupt

    work, third = tmp_path / "work", Counting()
    with pytest.raises(KeyboardInterrupt):
        run(colours, settings, work=work, progress=stop)
    second = run(colours, settings, work=work)
    assert second.table.equals(expected.table) and second.facts == expected.facts
    again = run(colours, settings, work=work, generator=third)
    assert again.table.equals(expected.table)
    assert (third.asked, third.seen, third.written) == (0, 0, 0), "everything is cached, the estimate too"
    more = Counting()
    run(colours, settings, work=work, generator=more, forms=["caption", "question/what"])
    assert more.asked > 0 and more.written <= 4, "only a new form is computed"


def test_progress_counts_seconds_to_the_estimated_total(colours: Dataset, tmp_path: Path) -> None:
    for again in (False, True):
        calls: list[tuple[str, int, int | None]] = []
        told: list[str] = []
        run(
            colours, work=tmp_path / "work", cost=True,
            progress=lambda *one: calls.append(one), notice=told.append,  # noqa: B023
        )  # fmt: skip
        assert len({total for *_, total in calls}) == 1, "one bar over everything"
        done = [one for _, one, _ in calls]
        assert done == sorted(done) and done[-1] <= (calls[-1][2] or 0)
        steps = {step for step, *_ in calls}
        assert again or "text to image, caption: scoring by likelihood" in steps
        assert told == ["expected time: less than a minute"]
    assert [human_time(one) for one in (5, 60, 700, 12000)] == [
        "less than a minute", "a minute", "12 minutes", "3.3 hours",
    ]  # fmt: skip


def test_a_broken_score_is_named_with_its_query(colours: Dataset) -> None:
    class Broken(ToyGenerator):
        def log_likelihood(self, contexts: Sequence[Context], *_: Any, **__: Any) -> Any:
            return [LogLikelihood(("?",), np.array([np.nan], np.float32)) for _ in contexts]

    with pytest.raises(ZsqError, match=r"nan .*' A \w+ dog runs .*' given .*test-000.tar#"):
        run(colours, generator=Broken())

    class Blind(ToyEncoder):
        def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> Any:
            return super().encode_text(texts) * np.nan

    with pytest.raises(ZsqError, match="the encoder Blind gave a vector that is zero or not finite"):
        run(colours, encoder=Blind(), settings=replace(QUICK, systems=()))


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"directions": ()}, {"directions": ("sideways",)}, {"candidates": 0}, {"queries": 0}, {"alpha": 1.5},
        {"batch_size": 0}, {"resamples": 0}, {"permutations": 0}, {"seed": -1}, {"depths": (0, -5)},
        {"depths": (2.5,)}, {"measures": ("R@1", "MMR")}, {"bank": 0}, {"top_k": 0}, {"temperature": -1},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Settings(**wrong)


def test_directions_and_weights_are_parsed() -> None:
    assert choose_directions(["image-to-text"]) == (I2T,)
    with pytest.raises(InvalidInputError, match="no direction 'text to text'"):
        choose_directions(["text-to-text"])
    assert with_weight(WeightedSum(1, "raw", 100), 0.5) == WeightedSum(0.5, "raw", 100)
    assert with_weight(ReciprocalRank(), 0.5) == WeightedSum(0.5)


def test_forms_are_made_from_captions_on_demand(colours: Dataset, tmp_path: Path) -> None:
    assert with_forms(colours).forms == ("caption", "question/which")
    assert with_forms(colours, ["question/what"]).forms == ("question/what",)
    own = read_folder(write_folder(tmp_path / "own"))
    assert with_forms(own).forms == ("caption", "human question", "question/which")
    asked = own.of_form("human question")
    assert with_forms(asked).forms == ("human question",)
    with pytest.raises(InvalidInputError, match="no queries of the form 'question/which'; it has human"):
        with_forms(asked, ["question/which"])


def test_small_data_sets_get_small_samples(colours: Dataset) -> None:
    fitted = replace(QUICK, candidates=50).fitting(colours)
    assert (fitted.queries, fitted.candidates) == (None, 10), "24 captions, 12 images"
    assert replace(QUICK, candidates=50).fitting(colours, candidates=False).candidates == 50
    many = replace(
        colours,
        queries=tuple(replace(one, id=f"{one.id}{n}") for n in range(50) for one in colours.queries),
        qrels={f"{id}{n}": answers for n in range(50) for id, answers in colours.qrels.items()},
    )
    fitted = Settings().fitting(many)
    assert (fitted.queries, fitted.timed_queries) == (100, 5)
    assert replace(QUICK, queries=7).fitting(many).queries == 7

"""Images and texts that cannot be measured do not end an evaluation: they are counted and named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from picky import Picky, PickyEncoder, PickyStates, strip
from small_sets import write_folder
from zsqretrieval.errors import ImageError
from zsqretrieval.evaluation.datasets import Dataset, Judgments, Query, read_folder
from zsqretrieval.evaluation.experiment import evaluate
from zsqretrieval.evaluation.report import write_report, write_verdict
from zsqretrieval.evaluation.results import Results
from zsqretrieval.evaluation.settings import Settings
from zsqretrieval.evaluation.systems import choose_systems
from zsqretrieval.testing.pictures import encoded, paintings
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import Image

QUICK = Settings(
    systems=choose_systems(["likelihood", "yes_no", "fused"]), candidates=4, depths=(0, 2), resamples=20,
    permutations=19, ablation_queries=5, questions=1, timed_queries=1,
)  # fmt: skip


def run(dataset: Dataset, generator: Any = None, encoder: Any = None, **options: Any) -> Results:
    settings = options.pop("settings", QUICK if generator else replace(QUICK, systems=()))
    forms = options.pop("forms", ["caption"])
    found = evaluate(
        dataset, encoder or ToyEncoder(), generator, settings, **{"cost": False, "forms": forms, **options}
    )
    json.loads(found.to_json())
    return found


def recall(results: Results, system: str, way: str = "text to image") -> tuple[float, int]:
    (one,) = results.select("systems", system=system, measure="R@1", direction=way).to_dict("records")
    return one["value"], one["queries"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:45]), "truncated|damaged|PNG"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"no picture"), "not an image|format"),
        (lambda path: (path.unlink(), path.mkdir()), "director|cannot be read|not a"),
        (lambda path: strip().save(path), "cannot take it"),
    ],
    ids=["truncated", "empty", "text", "folder", "refused by the encoder"],
)
def test_image_that_cannot_be_encoded_is_left_out_by_name_with_its_queries(
    spoil: Any, reason: str, tmp_path: Path
) -> None:
    data = read_folder(write_folder(tmp_path / "set"))
    spoil(tmp_path / "set" / "red.png")
    results = run(data, ToyGenerator(), PickyEncoder())
    out = results.facts["dataset"]["left_out"]
    assert list(out["images"]) == ["red.png"] and len(out["queries"]) == 2
    assert recall(results, "PickyEncoder") == (1.0, 10) and recall(results, "likelihood")[1] == 10
    images, queries = results.facts["dataset"]["notes"][-2:]
    assert images.startswith("1 of 6 images cannot be read or encoded and are left out: red.png (")
    assert re.search(reason, images), images
    assert queries.startswith("2 of 12 queries are left out") and all(id in queries for id in out["queries"])


def test_data_set_without_a_single_good_image_is_refused(tmp_path: Path) -> None:
    data = read_folder(write_folder(tmp_path / "set"))
    for file in (tmp_path / "set").glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ImageError, match="empty"):
        run(data)


def numbered(n: int = 4, *, captions: dict[int, str] | None = None, extra: Any = ()) -> Dataset:
    """Plain pictures with two captions each."""
    colours = ["red", "green", "blue", "yellow", "white", "black"][:n]
    pictures = [encoded(PILImage.new("RGB", (8, 8), one)) for one in colours] + list(extra)
    names = [*colours, *(f"extra {k}" for k in range(len(extra)))]
    images = tuple(Image(one, name, name) for one, name in zip(pictures, names, strict=True))
    queries = tuple(
        Query(f"{name}#{k}", (captions or {}).get(2 * i + k, f"{name} thing {k}"), "caption", "")
        for i, name in enumerate(names)
        for k in range(2)
    )
    return Dataset("numbered", images, queries, {one.id: {one.id.split("#")[0]: 1} for one in queries})


@pytest.mark.parametrize("generator", [Picky, PickyStates])
def test_image_that_the_generator_cannot_take_stays_below_the_others(generator: Any, tmp_path: Path) -> None:
    results = run(numbered(extra=[encoded(strip())]), generator(), cost=True)
    (note,) = results.facts["dataset"]["notes"]
    assert ": 0 texts and 1 images" in note and "extra 0" in note
    assert {one["image"] for one in results.facts["dataset"]["unscored"]} == {"extra 0"}
    assert recall(results, "likelihood")[1] == recall(results, "ToyEncoder")[1] == 10
    ranked = results.runs["runs/text-to-image/caption/likelihood.run"]
    last = np.argsort(-ranked.scores, axis=1)
    strips = np.take_along_axis(ranked.candidates, last, 1) == 4
    assert (strips.argmax(1) >= 3).all(), "below every scored candidate"


@pytest.mark.parametrize("text", ["red " * 60, "a blue or white <image_pad>", "red? " * 70])
def test_text_that_the_generator_cannot_take_keeps_the_first_stage(text: str, tmp_path: Path) -> None:
    results = run(numbered(captions={3: text}), Picky(max_tokens=50), forms=["caption"])
    (note,) = results.facts["dataset"]["notes"]
    assert ": 1 texts and 0 images" in note and note.endswith("together: green#1")
    names = ("ToyEncoder", "likelihood")
    first, scored = (results.runs[f"runs/text-to-image/caption/{name}.run"] for name in names)
    ties = [np.unique(one.scores[3]).size for one in (first, scored)]
    assert ties[0] == ties[1] > 1, "scores that differ in the first stage do not tie"
    order = [np.argsort(-one.scores[3], kind="stable").tolist() for one in (first, scored)]
    assert first.candidates[3][order[0]].tolist() == scored.candidates[3][order[1]].tolist()
    for way in ("text to image", "image to text"):
        assert recall(results, "fused", way)[1] == recall(results, "ToyEncoder", way)[1]


@pytest.mark.parametrize("raises", [None, ValueError, RuntimeError])
def test_text_that_the_encoder_cannot_take_is_left_out_by_name(raises: Any) -> None:
    class Unknown(ToyGenerator):
        def generate(self, contexts: Any, *, n: int = 1, **settings: Any) -> Any:
            return [["is it unknown ?", *(f"what is red {k} ?" for k in range(1, n))] for _ in contexts]

    data = numbered(captions={3: "unknown", 4: "an unknown blue", 5: "unknown too"})
    judged = Judgments(
        "rated", np.tile(np.arange(4), 6),
        tuple(f"a {c}" for c in ("red", "blue", "unknown") for _ in range(8)),
        np.random.default_rng(0).integers(1, 5, (24, 3)).astype(float), "c",
    )  # fmt: skip
    settings = replace(QUICK, systems=choose_systems(["likelihood", "expanded"]), questions=2)
    encoder = PickyEncoder(raises=raises)
    results = run(data, Unknown(), encoder, judgments=[judged], settings=settings, cost=True)
    (note,) = results.facts["dataset"]["notes"]
    assert note == "3 of 8 texts cannot be encoded and are left out: green#1; blue#0; blue#1"
    assert recall(results, "PickyEncoder")[1] == recall(results, "likelihood")[1] == 5
    assert recall(results, "likelihood", "image to text")[1] == 3, "blue has no text left"
    assert results.facts["checks"]["questions"]["generated"] > 0
    assert set(results.select("agreement")["queries"]) == {16}


def test_rated_pairs_that_cannot_be_scored_are_left_out() -> None:
    data = numbered(extra=[encoded(strip()), b"broken"])
    random = np.random.default_rng(0)
    images = np.tile(np.arange(6), 4)
    judged = Judgments(
        "rated", images, tuple(f"a {c}" for c in ("red", "blue") for _ in range(12)),
        random.integers(1, 5, (24, 3)).astype(float), "c",
    )  # fmt: skip
    results = run(data, Picky(), judgments=[judged])
    rows = results.select("agreement")
    assert {"ToyEncoder", "likelihood", "yes_no", "fused"} <= set(rows["system"])
    assert set(rows["queries"]) == {16} and rows["value"].notna().all()


def test_copies_of_an_image_are_one_answer() -> None:
    red = encoded(PILImage.new("RGB", (8, 8), "red"))
    for extra in ([red], [red, red]):
        captions = {8 + n: f"a red thing {n}" for n in range(2 * len(extra))}
        results = run(numbered(captions=captions, extra=extra), ToyGenerator())
        assert recall(results, "ToyEncoder") == (1.0, 8 + 2 * len(extra))
        (note,) = results.facts["dataset"]["notes"]
        assert note.startswith(f"{len(extra)} images are copies of others, byte for byte")
        assert "extra 0 is red" in note
        assert results.facts["dataset"]["images"] == 4


def test_copy_of_an_image_that_answers_another_query_adds_its_grade() -> None:
    picture = paintings(1)[0].content
    images = tuple(Image(picture, name, name) for name in ("a", "b"))
    queries = (Query("q", "one", "caption", ""), Query("p", "two", "caption", ""))
    data = Dataset("copies", images, queries, {"q": {"a": 1, "b": 3}, "p": {"b": 0, "a": 2}})
    results = run(data)
    assert results.dataset is not None
    assert results.dataset.qrels == {"q": {"a": 3}, "p": {"a": 2}}


def test_a_continued_evaluation_names_the_same_items(tmp_path: Path) -> None:
    data = numbered(captions={3: "red " * 60}, extra=[encoded(strip()), b""])
    first, second = (run(data, Picky(max_tokens=50), work=tmp_path / "work") for _ in range(2))
    assert first.facts == second.facts and first.table.equals(second.table)
    write_report(first, tmp_path / "report", command="zsq evaluate")
    for name in ("report.md", "report.html"):
        shown = (tmp_path / "report" / name).read_text()
        assert all(one in shown for one in ("extra 1 (", "extra 1#0", "extra 0", "green#1"))
    write_verdict(first, tmp_path / "verdict.md", command="zsq evaluate")
    files = [tmp_path / "verdict.md", *(tmp_path / "verdict").rglob("*.json")]
    assert not any("red red red" in file.read_text() for file in files), "a verdict holds no texts"

"""What stands in a report: run files that measure the same elsewhere, tables, a page on its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sets import write_colours
from test_study import QUICK

from zsqretrieval.data.samples import photographs
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset, Query, read_shards
from zsqretrieval.evaluation.findings import Study
from zsqretrieval.evaluation.measures import measure
from zsqretrieval.evaluation.opening import open_dataset
from zsqretrieval.evaluation.plan import Plan, choose_systems
from zsqretrieval.evaluation.report import write_report
from zsqretrieval.evaluation.run_files import run_file, write_runs
from zsqretrieval.evaluation.runs import some_queries
from zsqretrieval.evaluation.study import run_study
from zsqretrieval.evaluation.tables import answers, tables
from zsqretrieval.evaluation.trec import read_qrels, read_run
from zsqretrieval.evaluation.writing import write_whole
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.testing.toys import ToyEncoder, ToyStatesGenerator

NASTY = '<script>alert("|")</script> red'


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    colours = read_shards(write_colours(folder / "colours", shades=2))
    queries = (replace(colours.queries[0], text=NASTY), *colours.queries[1:])
    data = replace(colours, queries=queries, notes=("a note & more",))
    plan = replace(QUICK, systems=choose_systems(["all"]))
    encoder = ToyEncoder()
    index = ExactIndex(16)
    return run_study(encoder, ToyStatesGenerator(), data, plan, work=folder / "work", index=index)


@pytest.fixture(scope="module")
def folder(found: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(found, folder, command="zsq evaluate <here> | less")
    return folder


def test_run_files_measure_what_the_report_says(found: Study, folder: Path) -> None:
    for part in found.parts:
        place = folder / "runs" / part.direction.replace(" ", "-") / part.form.replace("/", "-")
        assert read_qrels(place / "qrels.txt", part.task) == part.task.qrels
        files = sorted(place.glob("*.run"))
        runs = {run.name: run for run in (read_run(file, part.task, part.direction) for file in files)}
        assert set(runs) == {run.name for run in part.runs} and len(files) == len(runs)
        for one in part.results:
            again = measure(runs[one.system], part.task.qrels, [one.measure])[one.measure]
            assert np.mean(again) == pytest.approx(one.mean), (one.system, one.measure)
        asked = part.ablation_runs[0].queries
        sample = some_queries(part.task, np.array([part.task.queries.index(query) for query in asked]))
        told = [one for results in part.ablations.values() for one in results]
        without = {run.name for run in part.ablation_runs}
        assert {one.system for one in told} == {"likelihood", "yes_no", "fused"} | without
        for one in told:
            if one.system in without:
                run = read_run(folder / "runs" / run_file(part, one.system), sample, part.direction)
                again = measure(run, sample.qrels, [one.measure])[one.measure]
                assert np.mean(again) == pytest.approx(one.mean), (one.system, one.measure)


def test_run_files_can_be_cut_and_compressed(found: Study, tmp_path: Path) -> None:
    files = write_runs(found, tmp_path, depth=2, suffix=".gz")
    assert all(file.name.endswith(".gz") for file in files)
    part = found.parts[0]
    run = read_run(tmp_path / f"{run_file(part, 'fused')}.gz", part.task)
    assert run.candidates.shape[1] == 2
    (recall,) = (one for one in part.results if (one.system, one.measure) == ("fused", "R@1"))
    assert np.mean(measure(run, part.task.qrels, ["R@1"])["R@1"]) == pytest.approx(recall.mean)
    contents = [file.read_bytes() for file in files]
    assert contents == [file.read_bytes() for file in write_runs(found, tmp_path, depth=2, suffix=".gz")]
    (tmp_path / "image-to-text" / "old.run.gz").write_bytes(b"of another study")
    write_runs(found, tmp_path, depth=2, suffix=".gz")
    assert not (tmp_path / "image-to-text" / "old.run.gz").exists()
    files[0].write_bytes(contents[0][:-9])
    with pytest.raises(InvalidInputError, match=r"qrels\.txt\.gz: cannot be read"):
        read_qrels(files[0])
    files[0].write_bytes(b"no archive")
    with pytest.raises(InvalidInputError, match=r"qrels\.txt\.gz: cannot be read"):
        read_qrels(files[0])


def test_json_holds_everything_and_names_its_files(found: Study, folder: Path) -> None:
    facts = json.loads((folder / "report.json").read_text())
    assert facts["command"] == "zsq evaluate <here> | less" and facts["plan"]["seed"] == 0
    assert {"python", "packages", "threads", "processors"} <= facts["environment"].keys()
    assert facts["fingerprints"]["generator"] == "toy-states-generator-1"
    for name, checksum in facts["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {*facts["files"], "report.json"}
    assert facts["cost"]["bytes_per_image"]["state"] == 12

    def numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, one in value.items():
                yield from numbers(one, key)
            if {"mean", "interval"} <= value.keys():
                low, high = value["interval"]
                assert low - 1e-9 <= value["mean"] <= high + 1e-9
        elif isinstance(value, list):
            for one in value:
                yield from numbers(one, name)
        else:
            yield name, value

    assert all(value is None or not isinstance(value, float) or np.isfinite(value)
               for _, value in numbers(facts))  # fmt: skip
    for part in facts["parts"]:
        for what in ("results", "curve", "ceiling"):
            assert part[what] and all({"mean", "interval"} <= one.keys() for one in part[what]), what


def test_tables_are_whole_in_markdown(found: Study, folder: Path) -> None:
    text = (folder / "report.md").read_text()
    for table in tables(found):
        assert f"## {table.title}\n" in text
        assert table.rows and all(len(row) == len(table.header) for row in table.rows), table.title
        for row in table.rows:
            for header, cell in zip(table.header, row, strict=True):
                if (
                    re.fullmatch(r"(R|MRR|nDCG|mAP).*|ceiling", header)
                    and cell
                    and cell not in ("R@1", "R@10")
                ):
                    assert re.fullmatch(r"\d+\.\d \(\d+\.\d to \d+\.\d\)", cell), (table.title, header, cell)
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    assert "<script>" not in text and "zsq evaluate <here> | less" in text
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (folder / name).read_text().lstrip().startswith("<?xml")


class Page(HTMLParser):
    """Checks that tags close, and gathers what is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        facts = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            self.sources.append(facts["src"])
            assert facts["alt"]
        assert "href" not in facts
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_needs_nothing_else(found: Study, folder: Path) -> None:
    page = Page()
    page.feed((folder / "report.html").read_text())
    page.close()
    assert not page.open
    assert all(source.startswith("data:image/") for source in page.sources)
    drawn = sum(source.startswith("data:image/svg+xml") for source in page.sources)
    assert drawn == len(list((folder / "figures").glob("*.svg"))) == 6
    assert any(source.startswith("data:image/jpeg") for source in page.sources)
    for table in tables(found):
        assert table.title in page.texts
    for part in found.parts:
        for one in (*part.won, *part.lost):
            assert one.text in page.texts
    assert "zsq evaluate <here> | less" in page.texts and "Note: a note & more" in page.texts


def test_the_same_study_makes_the_same_figures(found: Study, folder: Path, tmp_path: Path) -> None:
    write_report(found, tmp_path, command="again")
    for figure in (folder / "figures").glob("*.svg"):
        assert (tmp_path / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_the_answer_says_how_sure_and_at_what_cost(found: Study) -> None:
    said = answers(found)
    assert len(said) == len(found.parts)
    part = found.parts[0]
    (own,) = [one for one in part.results if (one.system, one.measure) == ("fused", "R@1")]
    assert own.against is not None
    verdict = "finds" if own.against.p_holm < 0.05 else "cannot be told from"
    assert f"Text to image, caption: fused {verdict}" in said[0]
    assert f"{100 * own.mean:.1f}" in said[0] and "Holm" in said[0] and "ms instead of" in said[0]
    sure = replace(own, against=replace(own.against, difference=0.2, p_holm=0.001))
    better = replace(part, results=(sure, *(one for one in part.results if one is not own)))
    first = replace(found, parts=(better,))
    assert "fused finds more than clip" in answers(first)[0]
    alone = replace(part, runs=part.runs[:1], results=part.results[:1])
    assert answers(replace(found, parts=(alone,))) == []


def test_a_study_of_little_is_reported_too(tmp_path: Path) -> None:
    """One image, one caption, no cost, the first stage alone."""
    (image, *_) = read_shards(write_colours(tmp_path / "colours")).gallery
    data = Dataset("one", (image,), (Query("q", "red", "caption", ""),), {"q": {str(image.id): 1}})
    for systems in (("clip",), ("clip", "fused", "yes_no")):
        plan = replace(QUICK, systems=systems)
        little = run_study(
            ToyEncoder(),
            ToyStatesGenerator(),
            data,
            plan,
            work=tmp_path / "work",
            forms=["caption"],
            cost=False,
        )
        facts = write_report(little, tmp_path / "-".join(systems), command="zsq")
        assert facts["cost"] is None and facts["parts"][0]["results"][0]["mean"] == 1.0


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"

    def torn() -> Iterator[str]:
        yield "half"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, torn())
    assert not list(path.parent.iterdir())
    write_whole(path, ["one\n", "two \udcff\n"])
    assert path.read_text() == "one\ntwo \\udcff\n"
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, torn())
    assert path.read_text().startswith("one") and list(path.parent.iterdir()) == [path]


def test_the_mini_models_are_measured_end_to_end(tmp_path: Path) -> None:
    from zsqretrieval.presets import preset_encoder, preset_fusion, preset_generator

    said = {
        "astronaut": "A woman in an orange space suit .",
        "cat": "A brown cat looks at the camera .",
        "coffee": "A cup of coffee on a wooden table .",
        "flower": "A red flower in front of green leaves .",
        "motorcycle": "A motorcycle stands in a garage .",
        "moon": "The surface of the moon .",
        "coins": "Many old coins in rows .",
        "bricks": "A wall of bricks .",
    }
    own = tmp_path / "photographs"
    own.mkdir()
    lines = []
    for image in photographs():
        if image.id in said:
            assert isinstance(image.content, Path)
            name = f"{image.id}{image.content.suffix}"
            (own / name).write_bytes(image.content.read_bytes())
            lines.append(json.dumps({"image": name, "caption": said[image.id]}))
    assert len(lines) == 8
    (own / "captions.jsonl").write_text("\n".join(lines))
    generator = preset_generator("mini")
    assert generator is not None
    plan = Plan(
        choose_systems(["likelihood", "fused", "expand", "shuffled", "no_image", "pixels"]),
        candidates=8,
        depths=(0, 4),
        fusion=preset_fusion("mini"),
        resamples=50,
        permutations=99,
        questions=1,
    )
    study = run_study(
        preset_encoder("mini"),
        generator.get(),
        open_dataset(str(own)),
        plan,
        work=tmp_path / "work",
        forms=["caption"],
    )
    results = {(one.direction, r.system, r.measure): r.mean for one in study.parts for r in one.results}
    assert results["text to image", "clip", "R@5"] == 1.0
    assert results["text to image", "fused", "R@5"] == 1.0
    there = study.parts[0].ablations["likelihood"]
    recalled = {one.system: one.mean for one in there if one.measure == "MRR"}
    assert recalled["likelihood"] > recalled["shuffled"]
    assert study.checks["pixels"]["largest_difference"] < 0.5  # nats; states are kept in 16 bits
    assert study.cost is not None
    read = {depth: study.cost.of("likelihood", depth) for depth in (4, 8)}
    assert read[4] is not None and read[8] is not None
    assert read[4].flops and read[8].flops and 1.5 < read[8].flops / read[4].flops < 2.1
    facts = write_report(study, tmp_path / "report", command="zsq")
    assert any(table.title == "Cost of a query" for table in tables(study)) and facts["answers"]

"""The page that answers: what it says of what was found, and that its numbers are those of its run files."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_sets import write_colours
from test_study import QUICK

from zsqretrieval.evaluation.agreement import agreement
from zsqretrieval.evaluation.datasets import read_shards
from zsqretrieval.evaluation.findings import Study
from zsqretrieval.evaluation.human import Judgments, correlate, encoder_scores, generator_scores
from zsqretrieval.evaluation.measures import measure
from zsqretrieval.evaluation.plan import choose_systems
from zsqretrieval.evaluation.published import RETRIEVAL
from zsqretrieval.evaluation.study import run_study
from zsqretrieval.evaluation.systems import log_priors
from zsqretrieval.evaluation.tables import markdown_cell, tables
from zsqretrieval.evaluation.trec import read_run
from zsqretrieval.evaluation.verdict import VERDICT_MEASURES, verdict, write_verdict
from zsqretrieval.evaluation.workbench import Workbench
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.search.fusion import WeightedSum
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyStatesGenerator

PLAN = replace(
    QUICK, systems=choose_systems(["all"]), measures=VERDICT_MEASURES, fusion=WeightedSum(0.5), alpha=0.5
)


def ratings() -> Judgments:
    """Every colour's first sentence beside three images, the right one rated highest."""
    colours = list(COLOURS)
    pairs = [(n, (n + step) % len(colours)) for n in range(len(colours)) for step in (0, 1, 2)]
    captions = tuple(f"A {colours[said]} dog runs through the grass ." for _, said in pairs)
    given = np.array([[4.0 if shown == said else 1.0] for shown, said in pairs])
    return Judgments("Flickr8k-Expert", np.array([shown for shown, _ in pairs]), captions, given, "c")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    data = read_shards(write_colours(folder / "colours", shades=2))
    return run_study(
        *(ToyEncoder(), ToyStatesGenerator(), data, PLAN),
        work=folder / "work",
        judgments=[ratings()],
        index=ExactIndex(16),
    )


def test_every_recall_is_that_of_the_run_it_names(found: Study, tmp_path: Path) -> None:
    path = tmp_path / "docs" / "verdict.md"
    write_verdict(found, path, command="zsq verdict colours")
    text = path.read_text()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    checked = 0
    for part in found.parts:
        table = sections[part.direction.capitalize()]
        for line in table.splitlines():
            link = re.search(r"\[run\]\((verdict/runs/.+?\.run\.gz)\)", line)
            if link and line.startswith(f"| {part.form} |"):
                run = read_run(path.parent / link[1], part.task, part.direction)
                cells = [cell.strip() for cell in line.strip("| ").split("|")]
                again = measure(run, part.task.qrels, VERDICT_MEASURES)
                told = [float(cell.split(" (")[0]) for cell in cells[2:5]]
                assert told == [round(100 * float(again[name].mean()), 1) for name in VERDICT_MEASURES]
                checked += 1
    assert checked == sum(len(part.runs) for part in found.parts)
    for link in re.findall(r"\]\((verdict/[^)]+)\)", text):
        assert (path.parent / link).is_file(), link
    assert "zsq verdict colours" in text


def test_nothing_of_the_data_set_but_ids_lies_beside_the_page(found: Study, tmp_path: Path) -> None:
    write_verdict(found, tmp_path / "verdict.md", command="zsq")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"dog runs" not in (gzip.decompress(content) if file.suffix == ".gz" else content), file
    facts = json.loads((tmp_path / "verdict" / "numbers.json").read_text())
    assert facts["parts"][0]["results"] and facts["gallery"] is None


def answered(found: Study, fused: float, likelihood: float, p: float = 0.001) -> str:
    """The first paragraph, had the systems differed so much from the first stage."""
    change = {"fused": fused, "likelihood": likelihood}
    parts = tuple(
        replace(
            part,
            results=tuple(
                replace(one, against=replace(one.against, difference=change[one.system], p_holm=p))
                if one.against is not None and one.system in change
                else one
                for one in part.results
            ),
        )
        for part in found.parts
    )
    return verdict(replace(found, parts=parts), command="zsq", place="x", shown={}).split("\n\n")[1]


def test_the_first_paragraph_answers(found: Study) -> None:
    said = answered(found, 0.1, -0.1)
    assert said.startswith(
        "**Joined with the first stage: yes, it finds more. By itself: no, it finds less.**"
    )
    assert "+10.0 (" in said and "p = 0.001" in said and "times as long" in said
    assert "Joined with the first stage: it cannot be told" in answered(found, 0.1, 0.1, p=0.2)
    (first, *others) = [part for part in found.parts if part.direction == "text to image"]
    assert others, "two forms are needed to differ"
    split = replace(found, parts=(replace(first, results=tuple(
        replace(one, against=replace(one.against, difference=0.3, p_holm=0.01)) if one.against else one
        for one in first.results
    )), *(replace(part, results=tuple(
        replace(one, against=replace(one.against, difference=0.0, p_holm=1.0)) if one.against else one
        for one in part.results
    )) for part in others)))  # fmt: skip
    text = verdict(split, command="zsq", place="x", shown={})
    assert "Joined with the first stage: it finds more for caption; it cannot be told from the first" in text


def test_ties_are_counted(found: Study) -> None:
    for part in found.parts:
        assert set(part.ties) >= {"likelihood", "fused", "yes_no"}
        assert part.ties["yes_no"] == 1.0, "the toy answers yes or no alike to everything"


def test_what_others_published_is_marked_as_theirs(found: Study) -> None:
    text = verdict(found, command="zsq", place="x", shown={})
    section = text.split("## Published, and not ours")[1].split("\n## ")[0]
    assert all(one.source in section and markdown_cell(one.system) in section for one in RETRIEVAL)
    assert "LAION-5B" in text and "0.28" in text


def test_systems_agree_with_people_as_their_scores_do(found: Study, tmp_path: Path) -> None:
    judged, data = ratings(), found.dataset
    generator = ToyStatesGenerator()
    likelihood = generator_scores(generator, Likelihood(), judged, data.gallery)
    prior = log_priors(generator, Likelihood(), judged.captions)
    cosine = encoder_scores(ToyEncoder(), judged, data.gallery)
    expected = {
        "clip": cosine,
        "likelihood": likelihood,
        "likelihood - prior": likelihood - 0.5 * prior,
        "fused": WeightedSum(0.5).fuse(cosine, likelihood - 0.5 * prior),
    }
    (agreed,) = found.agreement
    assert set(agreed.taus) == set(expected), "the toy answers yes or no alike to everything"
    for system, scores in expected.items():
        assert agreed.taus[system].tau == pytest.approx(correlate(judged, scores, resamples=2).tau), system
    assert agreed.taus["clip"].tau > 0.5
    (table,) = [table for table in tables(found) if table.title == "Agreement with people"]
    assert "51.2 (Flickr8k-Expert)" in table.note and len(table.rows) == 4
    few = replace(PLAN, systems=("clip",))
    bench = Workbench(ToyEncoder(), generator, data, few, tmp_path, lambda *_: None)
    assert set(agreement(bench, [judged], found.choice)[0].taus) == {"clip"}


def test_a_correlation_is_that_of_the_scores_beside_the_page(found: Study, tmp_path: Path) -> None:
    write_verdict(found, tmp_path / "verdict.md", command="zsq")
    (place,) = re.findall(r"\]\((verdict/runs/agreement/[^)]+)\)", (tmp_path / "verdict.md").read_text())
    header, *rows = [
        line.split("\t") for line in gzip.decompress((tmp_path / place).read_bytes()).decode().splitlines()
    ]
    judged = ratings()
    assert [row[0] for row in rows] == [str(found.dataset.gallery[n].id) for n in judged.images]
    for column, system in enumerate(header[1:], 1):
        scores = np.array([float(row[column]) for row in rows])
        if system in found.agreement[0].taus:
            told = found.agreement[0].taus[system].tau
            assert correlate(judged, scores, resamples=2).tau == pytest.approx(told), system

"""The verdict in the docs: rendered from its numbers, and every recall is that of its run file."""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from zsqretrieval.evaluation.report import answer, write_verdict
from zsqretrieval.evaluation.report.tables import records
from zsqretrieval.evaluation.results import Results

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "verdict.md").read_text(encoding="utf-8")
RESULTS = Results.from_json((DOCS / "verdict" / "numbers.json").read_text(encoding="utf-8"))


def test_page_is_rendered_from_its_numbers(tmp_path: Path) -> None:
    again = tmp_path / "verdict.md"
    published = DOCS / "data" / "published.json"
    write_verdict(RESULTS, again, command=RESULTS.facts["command"], published=published)
    assert again.read_text() == PAGE
    drawn = {path.name for path in (tmp_path / "verdict" / "figures").iterdir()}
    assert drawn == {path.name for path in (DOCS / "verdict" / "figures").iterdir()}


def test_page_opens_with_three_sentences_and_a_table() -> None:
    said = answer(RESULTS)
    assert len(said) == 3
    assert PAGE.startswith(
        f"# Does question generation find images, and at what cost?\n\n{chr(10).join(said)}\n\n| "
    )
    assert f"on {RESULTS.facts['measured']}" in PAGE
    for place in re.findall(r"\]\((verdict/[^)]+)\)", PAGE):
        assert (DOCS / place).is_file(), place


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def recalls(place: str, sample: bool, depths: list[int]) -> dict[str, float]:
    """R@k of a run file; of the queries of the ablations only, if it is compared with them there."""
    run = DOCS / "verdict" / place
    folder = run.parent.parent if run.parent.name == "ablations" else run.parent
    relevant = defaultdict(set)
    for query, _, item, grade in lines(folder / "qrels.txt.gz"):
        if int(grade) > 0:
            relevant[query].add(item)
    ranked = defaultdict(list)
    for query, _, item, rank, score, _ in lines(run):
        ranked[query].append((int(rank), float(score), item))
    if sample:
        asked = {query for query, *_ in lines(next((folder / "ablations").iterdir()))}
        ranked = defaultdict(list, {query: ranked[query] for query in asked})
    assert {len(answers) for answers in ranked.values()} == {10}
    for answers in ranked.values():
        assert [score for _, score, _ in answers] == sorted((score for _, score, _ in answers), reverse=True)
    firsts = [
        min((rank for rank, _, item in answers if item in relevant[query]), default=float("inf"))
        for query, answers in ranked.items()
    ]
    return {f"R@{depth}": sum(rank <= depth for rank in firsts) / len(firsts) for depth in depths}


WRITTEN = ["R@1", "R@5", "R@10"]  # run files are cut to the first 10
LINKED = RESULTS.table[RESULTS.table["run"].notna() & RESULTS.table["measure"].isin(WRITTEN)]
GROUPS = [pytest.param(rows, id="-".join(names)) for names, rows in LINKED.groupby(["group", "run"])]


@pytest.mark.parametrize("rows", GROUPS)
def test_recall_equals_that_of_its_run_file(rows: pd.DataFrame) -> None:
    first = rows.iloc[0]
    depths = [int(name[2:]) for name in rows["measure"]]
    found = recalls(first["run"], first["group"] == "ablations", depths)
    assert f"(verdict/{first['run']})" in PAGE
    for row in records(rows):
        assert found[row["measure"]] == pytest.approx(row["value"], abs=1e-9), (row["run"], row["measure"])


def test_every_recall_has_a_run_file() -> None:
    recalled = RESULTS.table[RESULTS.table["group"].isin(["systems", "ablations"])]
    assert set(recalled[recalled["run"].isna()]["system"]) == {"chance"}
    assert len(GROUPS) > 40


def test_measured_value_has_an_interval() -> None:
    without = RESULTS.table[RESULTS.table["low"].isna()]
    assert set(without["measure"]) <= {"predicted", "observed", "tied", "flops", "size", "R@1"}
    assert set(without[without["measure"] == "R@1"]["system"]) == {"chance"}
    for row in records(RESULTS.table.dropna(subset=["value", "low"])):
        assert row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9, row

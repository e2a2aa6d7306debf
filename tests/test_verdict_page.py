"""The verdict that is in the docs: every recall is that of the run file it names."""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "verdict.md"
ROW = re.compile(r"^\| (?P<cells>.+) \| \[run\]\((?P<run>verdict/runs/[^)]+)\) \|$", re.M)


def rows_of_recalls() -> list[tuple[str, bool, dict[int, float]]]:
    """Of every row with a run file its place, whether it is of a sample, and the recalls told, by depth."""
    found = []
    header: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if "R@1" in cells:
            header = cells
        if row := ROW.match(line):
            told = {
                int(name[2:]): float(cell.split(" (")[0])
                for name, cell in zip(header, cells, strict=False)
                if name.startswith("R@")
            }
            found.append((row["run"], "queries" in header, told))
    return found


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_there_is_a_verdict() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.match(r"# .+\n\n\*\*Joined with the first stage: .+\*\*", text)
    assert len(ROWS) > 40
    for place in re.findall(r"\]\((verdict/[^)]+)\)", text):
        assert (PAGE.parent / place).is_file(), place


ROWS = rows_of_recalls()


@pytest.mark.parametrize(("place", "sample", "told"), ROWS, ids=[place for place, _, _ in ROWS])
def test_a_recall_is_that_of_its_run(place: str, sample: bool, told: dict[int, float]) -> None:
    run = PAGE.parent / place
    folder = run.parent.parent if run.parent.name == "ablations" else run.parent
    relevant = defaultdict(set)
    for query, _, item, grade in lines(folder / "qrels.txt.gz"):
        if int(grade) > 0:
            relevant[query].add(item)
    ranked = defaultdict(list)
    for query, _, item, rank, score, _ in lines(run):
        ranked[query].append((int(rank), float(score), item))
    if sample:  # whole systems are compared there with what lacks a part, on the queries of the latter
        asked = {query for query, *_ in lines(next((folder / "ablations").iterdir()))}
        ranked = defaultdict(list, {query: ranked[query] for query in asked})
    assert {len(answers) for answers in ranked.values()} == {10}
    for depth, percent in told.items():
        found = 0
        for query, answers in ranked.items():
            assert [score for _, score, _ in answers] == sorted((s for _, s, _ in answers), reverse=True)
            found += bool(relevant[query] & {item for rank, _, item in answers if rank <= depth})
        assert round(100 * found / len(ranked), 1) == pytest.approx(percent, abs=0.051), (depth, place)


MEASURED = {
    *("R@1", "R@5", "R@10", "MRR", "at 1", "at 10", "ceiling", "ceiling, %", "tau", "ms", "per second"),
    *("ms a query", "queries/s", "R@10 predicted", "measured", "off, 95 %", "candidates needed"),
    *("seconds", "times ours"),
}
NOT_MEASURED = ("What reading them costs by Kosmos-2", "Published, and not ours")


def test_what_was_measured_has_an_interval() -> None:
    seen = set()
    for section in PAGE.read_text(encoding="utf-8").split("\n## "):
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
        if section.startswith(NOT_MEASURED) or not rows:
            continue
        header, *body = rows
        for row in body:
            for name, cell in zip(header, row, strict=False):
                if name in MEASURED and cell.strip():
                    assert re.search(r"\d to [+-]?\d", cell), (section.splitlines()[0], name, row)
                    seen.add(name)
    assert seen == MEASURED

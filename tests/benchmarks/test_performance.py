"""The page of performance: made from its JSON files, and the committed one is up to date."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.goals import SECTIONS, Goal, Section
from benchmarks.performance import DOCS, main, measure_section, write_page
from refusing import refused


def point(recall: float, rate: float) -> dict[str, Any]:
    return {"recall": recall, "batch_qps": rate, "one_by_one_qps": rate / 2}


def index_facts() -> dict[str, Any]:
    levels = {"0.90": 4.5, "0.95": 4.25, "0.98": None}
    facts: dict[str, Any] = {
        "data": "synthetic",
        "index": "compressed",
        "count": 100_000,
        "dim": 512,
        "queries": 1000,
        "rounds": 5,
        "machine": {"processor": "A | B", "measured": "2026-11-29"},
        "build_ratio_to_hnswlib": 0.1,
        "memory_ratio_to_hnswlib": 0.5,
        "exact": {"share_of_product": 0.82},
        "scaling": {},
        "systems": {
            name: {
                "build_cpu_s": 1.5,
                "memory": {"anonymous_bytes_per_vector": 2200.0},
                "qps": {way: {"0.90": 1000.0} for way in ("batch", "one_by_one")},
                "curve": [point(0.9, 1000), point(0.97, 100)],
            }
            for name in ("compressed", "hnswlib")
        },
    }
    for suffix in ("", "_one_by_one"):
        for title in ("hnswlib", "best_peer"):
            facts[f"qps_ratio_to_{title}{suffix}"] = levels
            facts[f"qps_spread_to_{title}{suffix}"] = {
                level: ratio and [4, 5] for level, ratio in levels.items()
            }
        facts[f"best_peer{suffix}"] = dict.fromkeys(levels, "scann")
    return facts


def test_page_shows_goals_and_leaves_missing_sections_out(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "performance").mkdir()
    (tmp_path / "performance" / "old.svg").touch()
    (tmp_path / "data" / "performance-index.json").write_text(json.dumps(index_facts()))
    main(["--docs", str(tmp_path)])
    page = (tmp_path / "performance.md").read_text()
    for line in (
        "queries in batch, to hnswlib: at least 4x | 4.5x at 0.90, 4.25x at 0.95, none at 0.98 | missed",
        "CPU time of the build, to hnswlib: at most 0.2x | 0.1x | reached |",
        "resident memory, to hnswlib: at most 0.15x | 0.5x | missed |",
        "to the product alone: at least 60 % | 82 % | reached |",
        "| compressed | 1.5 | 2,200 | 1,000 | - | - | 1,000 | - | - |",
        "| best peer, batch | 4.50 (4.00 to 5.00) scann | 4.25 (4.00 to 5.00) scann | - |",
    ):
        assert line in page, line
    assert "1,000,000" not in page and "Scoring" not in page
    assert [path.name for path in (tmp_path / "performance").iterdir()] == ["index.svg"]
    once = (tmp_path / "performance" / "index.svg").read_text()
    main(["--docs", str(tmp_path)])
    assert (tmp_path / "performance" / "index.svg").read_text() == once


def test_missed_goal_shows_its_reason(tmp_path: Path) -> None:
    section = Section(
        "Depth",
        "depth.json",
        "benchmarks.depth",
        (Goal("time, to K = 100", lambda facts: facts["share"], 1 / 3, "%", at_most=True, reason="noise"),),
        "depth",
    )
    (tmp_path / "data").mkdir()
    ways = [{"way": "fixed 10", "candidates": 10, "R@1": {"value": 0.3}}]
    facts = {"share": 0.5, "ms_per_candidate": {"in rounds": 20}, "ways": ways}
    (tmp_path / "data" / "depth.json").write_text(json.dumps(facts))
    write_page(tmp_path, [section])
    assert (
        "| Depth | time, to K = 100: at most 33 % | 50 % | noise |"
        in (tmp_path / "performance.md").read_text()
    )
    assert (tmp_path / "performance" / "depth.svg").is_file()


def test_measurement_is_kept_or_its_failure_raised(tmp_path: Path) -> None:
    command = "benchmarks.guard {0} {0}"
    refused("ended with", measure_section, Section("", "x.json", command.format("absent"), ()), tmp_path)
    command = "benchmarks.index --vectors 100 --dim 16 --rounds 1 --threads 1 --systems exact --index exact"
    measure_section(Section("", "x.json", command, ()), tmp_path)
    assert json.loads((tmp_path / "data" / "x.json").read_text())["count"] == 100


def test_committed_page_is_made_from_the_committed_numbers(tmp_path: Path) -> None:
    shutil.copytree(DOCS / "data", tmp_path / "data")
    write_page(tmp_path)
    assert (tmp_path / "performance.md").read_text() == (DOCS / "performance.md").read_text()
    plots = [
        sorted((path.name, path.read_text()) for path in (docs / "performance").glob("*.svg"))
        for docs in (tmp_path, DOCS)
    ]
    assert [name for name, _ in plots[0]] == [name for name, _ in plots[1]]
    if sys.version_info >= (3, 11):  # the last matplotlib for Python 3.10 writes other paths
        assert plots[0] == plots[1]
    known = {section.file for section in SECTIONS}
    assert {path.name for path in (DOCS / "data").glob("performance-*.json")} <= known

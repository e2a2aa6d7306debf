"""The page of measurements, from committed JSON files: docs/performance.md and its plots.

python -m benchmarks.performance                                    # write the page again
python -m benchmarks.performance --measure performance-index.json   # measure a section first
"""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.curves import BATCH, SINGLE
from benchmarks.goals import SECTIONS, Goal, Section
from benchmarks.guard import read
from benchmarks.index import COLUMNS, table
from benchmarks.output import run
from benchmarks.plots import lines, pareto
from zsqretrieval._util.files import write_whole
from zsqretrieval.errors import InvalidInputError

DOCS = Path(__file__).parents[1] / "docs"
_PAGE, _DATA, _PLOTS = "performance.md", "data", "performance"
_INTRO = """# Performance

After this page you know how fast the index, the scoring engine and the pipeline are, beside other software and the
machine, and which goals they miss. `python -m benchmarks.performance` makes the page from JSON files in `docs/data`.
The command under each title measures on your machine. The systems of a table took turns in one run: compare ratios,
not absolute numbers of two runs.
"""  # noqa: E501


def write_page(docs: Path, sections: Sequence[Section] = SECTIONS) -> None:
    """Write the page and its plots into a folder with ``data/*.json``, and remove other plots."""
    plots: dict[str, str] = {}
    found = [(section, read(file)) for section in sections if (file := docs / _DATA / section.file).is_file()]
    parts = [_INTRO, *_summary(found)]
    for section, facts in found:
        parts += [f"## {section.title}", f"`{_command(section)}`", *_details(section, facts, plots)]
    write_whole(docs / _PAGE, ["\n\n".join(part.strip() for part in parts) + "\n"])
    for name, svg in plots.items():
        write_whole(docs / _PLOTS / name, [svg])
    for old in (docs / _PLOTS).glob("*.svg"):
        if old.name not in plots:
            old.unlink()


def _command(section: Section) -> str:
    return f"OMP_NUM_THREADS=1 python -m {section.command} --json"


def _summary(found: Sequence[tuple[Section, Mapping[str, Any]]]) -> Iterator[str]:
    rows = [(section, goal, facts) for section, facts in found for goal in section.goals]
    if rows:
        yield "## Goals"
        yield _markdown(
            ("", "goal", "measured", "result"),
            [(section.title, *_goal(goal, facts)) for section, goal, facts in rows],
        )


def _goal(goal: Goal, facts: Mapping[str, Any]) -> tuple[str, str, str]:
    """The goal, the numbers, and whether it is reached or why not."""
    values = goal.measured(facts)
    said = [f"{_number(value, goal.unit)}{f' at {name}' if name else ''}" for name, value in values.items()]
    bound = f"{goal.text}: {'at most' if goal.at_most else 'at least'} {_number(goal.bound, goal.unit)}"
    return bound, ", ".join(said), "reached" if goal.reached(values) else goal.reason or "missed"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "none"
    if unit == "%":
        return f"{100 * value:.0f} %"
    return f"{value:.3g}{'' if unit == 'x' else ' '}{unit}"


def _details(section: Section, facts: Mapping[str, Any], plots: dict[str, str]) -> Iterator[str]:
    stem = section.file.removesuffix(".json").removeprefix("performance-")
    if section.kind == "index":
        machine = facts["machine"]
        yield (
            f"{facts['count']:,} vectors of {facts['dim']} numbers ({facts['data']}), {facts['queries']:,} "
            f"queries, recall@10. {machine['processor']}, {machine['measured']}, medians of "
            f"{facts['rounds']} rounds. Queries per second are of CPU time of one thread; memory is that of "
            "the loaded index, without mapped files."
        )
        plots[f"{stem}.svg"] = pareto(facts)
        yield f"![Recall and queries per second]({_PLOTS}/{stem}.svg)"
        yield _markdown(COLUMNS, table(facts))
        yield _ratio_table(facts)
    elif section.kind == "depth":
        each = facts["ms_per_candidate"]["in rounds"]
        rows = [
            {"ms": each * way["candidates"], "recall": 100 * way["R@1"]["value"], "by": way["way"].split()[0]}
            for way in facts["ways"]
        ]
        plots[f"{stem}.svg"] = lines(rows, "ms", "recall", "by", ("ms of scoring a question", "R@1, %"))
        yield f"![Recall and time]({_PLOTS}/{stem}.svg)"


def _ratio_table(facts: Mapping[str, Any]) -> str:
    """Ratios at each recall with their spread over rounds."""
    rows = []
    for title in ("hnswlib", "best_peer"):
        for suffix, way in (("", BATCH), ("_one_by_one", SINGLE)):
            ratios, spreads = (facts[f"qps_{kind}_to_{title}{suffix}"] for kind in ("ratio", "spread"))
            peers = facts[f"best_peer{suffix}"] if title == "best_peer" else {}
            cells = []
            for level, ratio in ratios.items():
                if ratio is None:
                    cells.append("-")
                else:
                    low, high = spreads[level]
                    cells.append(f"{ratio:.2f} ({low:.2f} to {high:.2f}) {peers.get(level, '')}".strip())
            rows.append((f"{title.replace('_', ' ')}, {way.replace('_', ' ')}", *cells))
    return _markdown((f"{facts['index']} to", *(f"at {level}" for level in ratios)), rows)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells)


def measure_section(section: Section, docs: Path) -> None:
    """Run the command of a section in a process of its own and keep its JSON.

    Raises:
        InvalidInputError: the command failed; its errors are on stderr.
    """
    command = [sys.executable, "-m", *section.command.split(), "--json"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise InvalidInputError(f"{' '.join(command)} ended with {done.returncode}; see its error above")
    write_whole(docs / _DATA / section.file, [done.stdout[done.stdout.index("{") :]])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    files = [section.file for section in SECTIONS]
    parser = ArgumentParser("python -m benchmarks.performance", description="Write the page of measurements.")
    parser.add_argument(
        "--measure", nargs="*", choices=files, help="Measure these first; without names, all."
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="Folder of the page and of data/*.json.")
    given = parser.parse_args(arguments)
    for section in SECTIONS:
        if given.measure is not None and section.file in (given.measure or files):
            measure_section(section, given.docs)
    write_page(given.docs)


if __name__ == "__main__":
    run(main)

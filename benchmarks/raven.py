"""Give a generator a Raven-style test; prints a Markdown table.

    python -m benchmarks.raven                            # 50 generated matrices of each layout
    python -m benchmarks.raven --save FOLDER              # also writes them as pictures and items.jsonl
    python -m benchmarks.raven --data FOLDER              # your own test in that format

Accuracies come with a 95 % interval and the probability p that guessing is as accurate or more.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from zsqretrieval import plugins
from zsqretrieval.tasks import (
    Accuracy,
    RavenItem,
    generate_matrices,
    raven_item,
    read_raven,
    score_raven,
    write_raven,
)
from zsqretrieval.tasks.raven_matrices import LAYOUTS

KOSMOS_1 = {"with instruction tuning": 11, "without": 13}  # of 50: 22 % and 26 %, arXiv 2302.14045


def row(name: str, accuracy: Accuracy, ties: object) -> None:
    """Print one row of the table."""
    low, high = accuracy.interval()
    print(
        f"| {name} | {accuracy.correct} of {accuracy.total} | {100 * accuracy.share:.1f} "
        f"({100 * low:.1f} to {100 * high:.1f}) | {accuracy.p_value:.3f} | {ties} |"
    )


def main() -> None:
    """Print one row for each number of context images, and one for all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", default="mini", help="plugin name")
    parser.add_argument("--count", type=int, default=50, help="matrices of each layout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="read this test instead")
    parser.add_argument("--save", type=Path, help="write the test to this folder")
    args = parser.parse_args()

    if args.data:
        items = read_raven(args.data)
    else:
        items = [
            raven_item(matrix, f"{layout} {number}")
            for layout in LAYOUTS
            for number, matrix in enumerate(generate_matrices(args.count, layout=layout, seed=args.seed), 1)
        ]
    if args.save:
        write_raven(args.save, items)
    generator = plugins.create("generator", args.generator, {})

    print(f"Generator: `{generator.fingerprint}`\n")
    print("| context images | solved | percent (95 %) | p | ties |")
    print("|---|---|---|---|---|")

    def shown(item: RavenItem) -> int:
        return len(item.context)

    total, solved, tied = 0, 0, 0
    for count, group in itertools.groupby(sorted(items, key=shown), shown):
        score = score_raven(generator, list(group))
        row(str(count), score.accuracy, score.ties)
        total += score.accuracy.total
        solved += score.accuracy.correct
        tied += score.ties
    row("all", Accuracy(solved, total, score.accuracy.chance), tied)
    for name, correct in KOSMOS_1.items():
        row(f"Kosmos-1 {name}, its own 50 items", Accuracy(correct, 50, 1 / 6), "")


if __name__ == "__main__":
    main()

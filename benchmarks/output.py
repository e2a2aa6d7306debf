"""Command-line output that the benchmarks share: JSON or a table on stdout, a progress bar on stderr."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars

from zsqretrieval.errors import ZsqError
from zsqretrieval.types import Progress


def command_line(name: str, description: str, **numbers: tuple[int, str]) -> ArgumentParser:
    """Parser with ``--json``, and one option for each integer of ``numbers``: its default and help."""
    parser = ArgumentParser(f"python -m benchmarks.{name}", description=description)
    for option, (default, text) in numbers.items():
        flag = "--" + option.replace("_", "-")
        parser.add_argument(flag, type=int, default=default, help=f"{text} [default: {default}]")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    return parser


def write_results(
    facts: Mapping[str, Any],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Print ``facts`` as JSON, or a table and the notes below it."""
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    cells = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.write("\n" + "\n".join(notes) + "\n")


@contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """One bar on stderr; yields the callback that advances it."""
    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=None)
        yield lambda _, done, total: bars.update(task, completed=done, total=total)


def run(main: Callable[[], None]) -> None:
    """Run a command line; an error of the library ends the process with its message."""
    try:
        main()
    except ZsqError as error:
        sys.exit(f"error: {error}")

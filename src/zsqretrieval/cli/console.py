"""How the commands talk: answers on stdout, all else on stderr, progress bars only on a terminal.

Whatever is printed here is :func:`printable` first, so commands need not think of where a text comes from.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.console import Console

    from zsqretrieval.data.loader import Skipped
    from zsqretrieval.types import Hit

__all__ = [
    "Counted",
    "PlainTable",
    "check_page",
    "count_bar",
    "emit_json",
    "hit_facts",
    "human_size",
    "name_skipped",
    "notice",
    "printable",
    "say",
    "show",
    "stage_bars",
    "write_page",
]

_NAMED = 10  # skipped images named where people read
_EVERY = 60.0  # seconds between two lines about progress where there are no bars
_UNBOUNDED = 10_000  # columns: what is piped is never folded


class Counted(Protocol):
    """Told how many are done, and of how many once that is known."""

    def __call__(self, done: int, total: int | None = None, /) -> object:
        """Take notice of progress."""


def say(text: str = "") -> None:
    """Print a sentence of the answer on stdout."""
    _console(stderr=False).print(printable(text), soft_wrap=True)


def notice(text: str) -> None:
    """Print one line on stderr: ``zsq: ...``."""
    line = " ".join(printable(part) for part in text.splitlines())
    _console(stderr=True).print(f"zsq: {line}", soft_wrap=True)


class PlainTable:
    """A table with a line under its head.

    Args:
        columns: their names.
        numbers: those that are aligned to the right, and never folded.
    """

    def __init__(self, *columns: str, numbers: Iterable[str] = ()) -> None:
        self.columns, self.numbers = columns, frozenset(numbers)
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """Add a line below the others."""
        self.rows.append(cells)


def show(table: PlainTable) -> None:
    """Print a table on stdout, as wide as the terminal, or as wide as it likes into a pipe."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in table.columns:
        aligned = column in table.numbers
        justify: Literal["right", "left"] = "right" if aligned else "left"
        drawn.add_column(printable(column), justify=justify, no_wrap=aligned, overflow="fold")
    for cells in table.rows:
        drawn.add_row(*map(printable, cells))
    _console(stderr=False).print(drawn)


def emit_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, in ASCII, which every code page of Windows can carry."""
    _console(stderr=False).out(json.dumps(facts, indent=2), highlight=False)


def printable(text: str) -> str:
    r"""Text from outside with control characters as ``\xNN``: a file name cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def hit_facts(place: int, hit: Hit) -> dict[str, Any]:
    """A hit as JSON; its score is null when a stage that ranks could not judge it."""
    return {
        "rank": place,
        "id": hit.id,
        "source": hit.source,
        "score": hit.score if math.isfinite(hit.score) else None,
        "scores": dict(hit.scores),
        "caption": hit.caption,
        "metadata": dict(hit.metadata),
    }


def human_size(size: float) -> str:
    """Bytes for people: ``1.5 MB``."""
    if size < 1000:
        return f"{size:.0f} bytes"
    power = min(int(math.log10(size)) // 3, 4)
    return f"{size / 1000**power:.3g} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def name_skipped(skipped: Sequence[Skipped], tell: Callable[[str], None]) -> None:
    """Name the first of the images that were left out, one a line."""
    for one in skipped[:_NAMED]:
        tell(printable(f"skipped {one.source}: {one.reason}"))
    if len(skipped) > _NAMED:
        tell(f"... and {len(skipped) - _NAMED} more; --json names them all")


def check_page(path: Path | None) -> None:
    """Make sure, before the work, that a page can be written at ``path``.

    Raises:
        InvalidInputError: there is a folder, or a file is in the way.
    """
    if path is None:
        return
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; name a file for the page: {path / 'page.html'}")
    above = next(one for one in path.absolute().parents if one.exists())
    if not above.is_dir():
        raise InvalidInputError(f"no page can be written to {path}: {above} is no folder")


def write_page(path: Path, html: str) -> Path:
    """Write a page, and folders on the way, and return its absolute path; what is no Unicode is escaped."""
    from zsqretrieval.evaluation.writing import write_whole

    path = path.absolute()
    write_whole(path, [html])
    return path


@contextmanager
def count_bar(what: str, total: int | None) -> Iterator[Counted]:
    """A progress bar over things that are counted; gives the function to be told the count so far."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def report(done: int, total: int | None = None, /) -> None:
            progress.update(task, completed=done, total=total)

        yield report


@contextmanager
def stage_bars(*, lines: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per stage of a long work; gives the function to be told stage, count so far, and total.

    Args:
        lines: where there is no terminal, say once a minute in a line how far it is.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    named = TextColumn("{task.description}", markup=False)
    columns = (named, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _console(stderr=True)
    tasks: dict[str, Any] = {}
    begun: dict[str, float] = {}
    told = said = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def report(stage: str, done: int, total: int) -> None:
            nonlocal told, said
            now = time.monotonic()
            if stage not in tasks:
                tasks[stage] = progress.add_task(printable(stage), total=total)
                begun[stage] = told  # a stage is first told of when a part of it is done
            told = now
            progress.update(tasks[stage], completed=done)
            if lines and not console.is_terminal and done < total and now - said >= _EVERY:
                said = now
                left = (now - begun[stage]) * (total - done) / max(done, 1) / 60
                notice(f"{stage}: {done} of {total}, about {left:.0f} minutes left")

        yield report


def _console(*, stderr: bool) -> Console:
    # Made anew each time, for the stream as it is now. No markup: brackets in a file name are brackets.
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNBOUNDED
    return console

"""Output of the commands: answers on stdout, the rest on stderr, progress bars only on a terminal.

Every text is made :func:`printable` here, so commands need not consider where it comes from.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from zsqretrieval._util.checks import printable
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.console import Console

    from zsqretrieval.data.loader import Skipped
    from zsqretrieval.search.display import Stage
    from zsqretrieval.search.ranking import Ranking
    from zsqretrieval.types import Hit, Progress

_NAMED = 10  # skipped images that are named for people
_EVERY = 60.0  # seconds between two lines of progress without a terminal
_UNBOUNDED = 10_000  # columns: piped output is never folded


def say(text: str = "") -> None:
    """Print a sentence of the answer on stdout."""
    _console(stderr=False).print(printable(text), soft_wrap=True)


def notice(text: str) -> None:
    """Print one line on stderr: ``zsq: ...``."""
    line = " ".join(printable(part) for part in text.splitlines())
    _console(stderr=True).print(f"zsq: {line}", soft_wrap=True)


def show(columns: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: Collection[str] = ()) -> None:
    """Print a table on stdout, as wide as the terminal; into a pipe, as wide as its cells.

    The columns named in ``numbers`` are aligned to the right and never folded.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        aligned = column in numbers
        justify: Literal["right", "left"] = "right" if aligned else "left"
        table.add_column(printable(column), justify=justify, no_wrap=aligned, overflow="fold")
    for cells in rows:
        table.add_row(*map(printable, cells))
    _console(stderr=False).print(table)


def emit_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, in ASCII, which every code page of Windows can carry."""
    _console(stderr=False).out(json.dumps(facts, indent=2, allow_nan=False), highlight=False)


def show_pictures(ranking: Ranking) -> None:
    """Print a ranking with thumbnails, on a terminal that can show them."""
    console = _console(stderr=False)
    if console.is_terminal and console.color_system == "truecolor":
        console.print(ranking)


def score_columns(hits: Iterable[Hit]) -> dict[str, str]:
    """Column names of the scores in some hits, by score; ``"score"`` when there is only one."""
    fullest_first = sorted(hits, key=lambda hit: -len(hit.scores))
    names = list(dict.fromkeys(name for hit in fullest_first for name in hit.scores))
    return {name: _stage(name).label if len(names) > 1 else "score" for name in names}


def score_cells(hit: Hit, names: Iterable[str]) -> list[str]:
    """The scores of a hit as text; empty where it has none."""
    return [f"{hit.scores[name]:.{_stage(name).digits}f}" if name in hit.scores else "" for name in names]


def _stage(name: str) -> Stage:
    from zsqretrieval.search.display import STAGES, Stage

    return STAGES.get(name) or Stage(name.replace("_", " "), digits=3)


def timings_text(timings: Mapping[str, float]) -> str:
    """Seconds per stage as a sentence."""
    parts = [f"{_stage(name).label} {human_seconds(seconds)}" for name, seconds in timings.items()]
    return f"Took: {', '.join(parts)}."


def human_seconds(seconds: float) -> str:
    """Seconds for people: ``12 ms``, ``3.4 s``."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def human_size(size: float) -> str:
    """Bytes for people: ``1.5 MB``."""
    if size < 1000:
        return f"{size:.0f} bytes"
    power = min(int(math.log10(size)) // 3, 5)
    return f"{size / 1000**power:.3g} {('', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def name_skipped(skipped: Sequence[Skipped], tell: Callable[[str], None], what: str = "skipped") -> None:
    """Name the first skipped or mended images, one a line."""
    for one in skipped[:_NAMED]:
        tell(f"{what} {one.source}: {one.reason}")
    if len(skipped) > _NAMED:
        tell(f"... and {len(skipped) - _NAMED} more; --json names them all")


def counts_text(report: Any) -> str:
    """The numbers of a report that are not zero: ``3 added, 1 skipped``."""
    values = {one.name: getattr(report, one.name) for one in fields(report)}
    counts = {name: len(one) if isinstance(one, tuple) else one for name, one in values.items()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if type(count) is int and count)


def say_denied(denied: Mapping[str, int]) -> None:
    """Say how many rows were denied, and why."""
    from zsqretrieval.laion.safety import REASONS

    if denied:
        reasons = ", ".join(f"{count} {reason} ({REASONS[reason]})" for reason, count in denied.items())
        say(f"{sum(denied.values())} rows denied: {reasons}.")


def check_page(path: Path | None) -> None:
    """Check, before the work, that a page can be written: no folder, and no file in the way of one."""
    if path is None:
        return
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; name a file for the page: {path / 'page.html'}")
    above = next(one for one in path.absolute().parents if one.exists())
    if not above.is_dir():
        raise InvalidInputError(f"cannot write a page to {path}: {above} is not a folder")


def write_page(path: Path, html: str) -> Path:
    """Write a page and missing folders; returns its absolute path. Lone surrogates are escaped."""
    from zsqretrieval._util.files import write_whole  # imports NumPy, which `zsq --help` does not need

    path = path.absolute()
    write_whole(path, [html])
    return path


@contextmanager
def continued(what: str | Callable[[], str]) -> Iterator[None]:
    """Say after Ctrl-C what is done, and that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        done = what if isinstance(what, str) else what()
        notice(f"interrupted; {done}. Run the same command again to continue")
        raise typer.Exit(130) from None


@contextmanager
def progress_bars(*, whole: bool = False) -> Iterator[Progress]:
    """Show one bar per step; gives the callback for the library's ``progress`` arguments.

    Args:
        whole: all calls count towards one total: show one bar, and without a terminal a line a minute.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    named = TextColumn("{task.description}", markup=False)
    counted: ProgressColumn = TaskProgressColumn() if whole else MofNCompleteColumn()
    console = _console(stderr=True)
    tasks: dict[str, Any] = {}
    begun = last = time.monotonic()
    with Bars(
        named, BarColumn(), counted, TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bars:  # fmt: skip

        def report(step: str, done: int, total: int | None) -> None:
            nonlocal last
            name = "" if whole else step
            if name not in tasks:
                tasks[name] = bars.add_task("")
            bars.update(tasks[name], description=printable(step), completed=done, total=total)
            now = time.monotonic()
            if whole and not console.is_terminal and total and done and now - last >= _EVERY:
                last = now
                left = (now - begun) * (total - done) / done / 60
                notice(f"{100 * done / total:.0f} %, about {left:.0f} minutes left: {step}")

        yield report


def _console(*, stderr: bool) -> Console:
    # Made anew each time, for the current stream. No markup: brackets in a file name are brackets.
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNBOUNDED
    return console

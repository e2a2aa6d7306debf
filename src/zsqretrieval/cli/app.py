"""All commands, and their common handling of errors, warnings and exit codes.

Exit codes: 0 done; 1 an error, in one line on stderr; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zsqretrieval.cli.album import index, index_fields, info, remove
from zsqretrieval.cli.chat import chat
from zsqretrieval.cli.collection import add_embeddings, export, merge, reencode, sync, tune
from zsqretrieval.cli.console import notice
from zsqretrieval.cli.demo import demo
from zsqretrieval.cli.evaluate import evaluate
from zsqretrieval.cli.laion import allow_list, filter_rows, ingest, stats
from zsqretrieval.cli.laion import remove as remove_listed
from zsqretrieval.cli.laion import search as search_rows
from zsqretrieval.cli.questions import questions
from zsqretrieval.cli.scale import embed, plan
from zsqretrieval.cli.search import search
from zsqretrieval.cli.serve import serve
from zsqretrieval.errors import ZsqError


class Commands(TyperGroup):
    """Commands whose errors end in one line and an exit code, not in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command of ``ctx``."""
        with warnings.catch_warnings(), _hints():
            warnings.showwarning = _warn
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                notice("interrupted")
                raise typer.Exit(130) from None
            except BrokenPipeError:  # `zsq ... | head`: the reader has had enough
                raise
            except (ZsqError, OSError) as error:
                if ctx.params.get("debug"):
                    raise
                notice(f"error: {error}")
                raise typer.Exit(1) from error


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Print a hint of the library."""
        notice(f"hint: {record.getMessage()}")


@contextmanager
def _hints() -> Iterator[None]:
    """Print what the library logs."""
    log, handler = logging.getLogger("zsqretrieval"), _Notices()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    notice(f"warning: {message}")


def _print_version(wanted: bool) -> None:
    if wanted:
        from zsqretrieval import __version__

        typer.echo(f"zsqretrieval {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="ZSQ_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Find images by asking questions of them."""


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.callback()(root)
app.command("demo")(demo)
app.command("index")(index)
app.command("questions")(questions)
app.command("search")(search)
app.command("chat")(chat)
app.command("serve")(serve)
app.command("info")(info)
app.command("index-fields")(index_fields)
app.command("remove")(remove)
app.command("sync")(sync)
app.command("merge")(merge)
app.command("reencode")(reencode)
app.command("add-embeddings")(add_embeddings)
app.command("export")(export)
app.command("tune")(tune)
app.command("evaluate")(evaluate)

laion = typer.Typer(no_args_is_help=True, help="Work with metadata and embeddings of LAION and DataComp.")
laion.command("stats")(stats)
laion.command("allow-list")(allow_list)
laion.command("ingest")(ingest)
laion.command("search")(search_rows)
laion.command("remove")(remove_listed)
laion.command("filter")(filter_rows)
laion.command("embed")(embed)
laion.command("plan")(plan)
app.add_typer(laion, name="laion")


def main() -> None:
    """Run ``zsq``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name the terminal's code page lacks must not end a command
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns of forks, and we ask short questions
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded
        # Threads that wait for one another spin for milliseconds. Beside another program a search took up to
        # fifteen times as long for it; shorter spinning costs nothing.
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    app(prog_name="zsq")

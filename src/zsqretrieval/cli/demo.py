"""``zsq demo``: from photographs to answers in one command."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsqretrieval.cli.console import (
    count_bar,
    emit_json,
    hit_facts,
    name_skipped,
    notice,
    plain_table,
    printable,
    say,
    show,
    write_page,
)
from zsqretrieval.cli.opening import new_retriever
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table

    from zsqretrieval.demo import Question
    from zsqretrieval.types import Ranking

__all__ = ["demo"]


def demo(
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of your own images, in place of the photographs that come along."),
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="Ask this instead; may be repeated.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Encoder and index: mini or clip.")] = "mini",
    index: Annotated[str, typer.Option(help="hnsw or exact.")] = "hnsw",
    k: Annotated[int, typer.Option("-k", min=1, help="How many images per question.")] = 3,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the page.")] = Path(
        "zsq-demo.html"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")
    ] = False,
) -> None:
    """Ask questions of a small album and write what was found as a web page."""
    from zsqretrieval.demo import GENERIC_QUESTIONS, QUESTIONS, Question, photographs

    if images is not None and not images.exists():
        raise InvalidInputError(f"{images}: no such folder; give --images a folder of images")
    album = photographs() if images is None else images
    asked: Sequence[Question] = QUESTIONS if images is None else GENERIC_QUESTIONS
    if question:
        asked = [Question(text) for text in question]

    with new_retriever(preset, index=index) as retriever:
        with count_bar("indexing", len(album) if isinstance(album, list) else None) as progress:
            report = retriever.add(album, progress=progress)
        name_skipped(report.skipped, notice)
        # Nothing is asked of an empty album, nor about a photograph that is not there.
        asked = [
            one for one in asked if len(retriever) and (one.expected is None or one.expected in retriever)
        ]
        begin = time.perf_counter()
        rankings = [retriever.search(one.text, k) for one in asked]
        seconds = time.perf_counter() - begin
        facts = _facts(asked, rankings) | {
            "images": len(retriever),
            "encoder": retriever.encoder.fingerprint,
            "index": index,
            "skipped": [{"source": one.source, "reason": one.reason} for one in report.skipped],
            "seconds": {"add": report.seconds, "search": seconds},
        }
    page = write_page(out, _page(asked, rankings, facts)) if rankings else None
    if as_json:
        emit_json(facts | {"html": None if page is None else str(page)})
        return
    if page is None:
        say(f"No images were found in {printable(str(images))}; give --images a folder of photographs.")
        return
    show(_table(asked, rankings))
    say(_summary(facts))
    say(f"Page with the images: {printable(str(page))}")


def _facts(asked: Sequence[Question], rankings: Sequence[Ranking]) -> dict[str, Any]:
    places = [_place(one, ranking) for one, ranking in zip(asked, rankings, strict=True)]
    return {
        "questions": [
            {
                "question": one.text,
                "expected": one.expected,
                "rank": place,
                "hits": [hit_facts(i, hit) for i, hit in enumerate(ranking, start=1)],
            }
            for one, ranking, place in zip(asked, rankings, places, strict=True)
        ],
        "expected": sum(one.expected is not None for one in asked),
        "found_first": places.count(1),
        "found": sum(place is not None for place in places),
    }


def _place(question: Question, ranking: Ranking) -> int | None:
    """Where the expected image stands, from 1; None when it is not there or nothing was expected."""
    ids = [hit.id for hit in ranking]
    return ids.index(question.expected) + 1 if question.expected in ids else None


def _summary(facts: dict[str, Any]) -> str:
    said = f"{len(facts['questions'])} questions to {facts['images']} images"
    if facts["expected"]:
        said += f"; the expected one came first for {facts['found_first']} of {facts['expected']}"
    seconds = facts["seconds"]
    each = 1000 * seconds["search"] / len(facts["questions"])
    return f"{said}. Indexed in {seconds['add']:.1f} s, answered in {each:.0f} ms a question."


def _table(asked: Sequence[Question], rankings: Sequence[Ranking]) -> Table:
    columns = ["question", "found first", "score", "then"]
    judged = any(one.expected for one in asked)
    table = plain_table(*columns, *(["as expected"] if judged else []), numbers=("score",))
    for one, ranking in zip(asked, rankings, strict=True):
        first, *others = ranking
        then = ", ".join(printable(hit.id) for hit in others)
        row = [printable(one.text), printable(first.id), f"{first.score:.3f}", then]
        table.add_row(*row, *([_verdict(one, ranking)] if judged else []))
    return table


def _verdict(question: Question, ranking: Ranking) -> str:
    place = _place(question, ranking)
    if place == 1:
        return "yes"
    return f"no: {question.expected} " + (
        f"is in place {place}" if place else f"is not in the first {len(ranking)}"
    )


def _page(asked: Sequence[Question], rankings: Sequence[Ranking], facts: dict[str, Any]) -> str:
    from zsqretrieval.contact_sheet import Row, contact_sheet, thumbnails

    hits = [hit for ranking in rankings for hit in ranking]
    credits = {hit.id: hit.metadata["credit"] for hit in hits if "credit" in hit.metadata}
    return contact_sheet(
        [Row(ranking, one.expected) for one, ranking in zip(asked, rankings, strict=True)],
        thumbnails(hits),
        title="Questions, answered with images",
        summary=_summary(facts),
        credits="; ".join(f"{id}: {credit}" for id, credit in sorted(credits.items())),
    )

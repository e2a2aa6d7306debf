"""``zsq demo``: from photographs to answers in one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsqretrieval.cli.console import (
    PlainTable,
    check_page,
    count_bar,
    emit_json,
    hit_facts,
    name_skipped,
    notice,
    say,
    show,
    write_page,
)
from zsqretrieval.cli.opening import new_retriever, sees_once
from zsqretrieval.cli.reading import (
    AsJson,
    Candidates,
    EncoderWeights,
    GeneratorWeights,
    HowFused,
    HowScored,
    Scorings,
    Weight,
    human_seconds,
    score_cells,
    score_columns,
    search_settings,
)
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.data.samples import Question
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
    preset: Annotated[
        str, typer.Option(help="Encoder, index and generator: mini, clip, clip-kosmos2 or clip-l14-kosmos2.")
    ] = "mini",
    index: Annotated[str, typer.Option(help="hnsw or exact.")] = "hnsw",
    k: Annotated[int, typer.Option("-k", min=1, help="How many images per question.")] = 3,
    candidates: Candidates = 100,
    scoring: HowScored = None,
    fusion: HowFused = None,
    weight: Weight = None,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the page.")] = Path(
        "zsq-demo.html"
    ),
    as_json: AsJson = False,
) -> None:
    """Ask questions of a small album and write what was found as a web page.

    Where the preset has a generator, it reads the candidates of the first stage and re-ranks them.
    """
    from zsqretrieval.data.samples import GENERIC_QUESTIONS, QUESTIONS, Question, photographs

    check_page(out)
    if images is not None and not images.exists():
        raise InvalidInputError(f"{images}: no such folder; give --images a folder of images")
    album = photographs() if images is None else images
    asked: Sequence[Question] = QUESTIONS if images is None else GENERIC_QUESTIONS
    if question:
        asked = [Question(text) for text in question]

    settings = search_settings(candidates, scoring, fusion, weight)
    reads = scoring is not Scorings.NONE
    with new_retriever(
        preset,
        index=index,
        states="memory" if reads and sees_once(preset) else None,
        encoder_weights=encoder_weights,
        generator_weights=generator_weights,
    ) as retriever:
        with count_bar("indexing", len(album) if isinstance(album, list) else None) as progress:
            report = retriever.add(album, progress=progress)
        name_skipped(report.skipped, notice)
        # Nothing is asked of an empty album, nor about a photograph that is not there.
        asked = [
            one for one in asked if len(retriever) and (one.expected is None or one.expected in retriever)
        ]
        reranks = reads and retriever.has_generator
        rankings, before = [], []
        with count_bar("asking", len(asked)) as progress:
            for one in asked:
                rankings.append(retriever.search(one.text, k, **settings))
                before.append(retriever.search(one.text, max(k, candidates), scoring=None))
                progress(len(rankings))
        facts = _facts(asked, rankings, before) | {
            "images": len(retriever),
            "encoder": retriever.encoder.fingerprint,
            "index": index,
            "generator": retriever.generator.fingerprint if reranks and retriever.generator else None,
            "skipped": [{"source": one.source, "reason": one.reason} for one in report.skipped],
            "seconds": {"add": report.seconds, "search": _mean_timings(rankings)},
        }
    page = write_page(out, _page(asked, rankings, facts)) if rankings else None
    if as_json:
        emit_json(facts | {"html": None if page is None else str(page)})
        return
    if page is None:
        say(f"No images were found in {images}; give --images a folder of photographs.")
        return
    show(_table(asked, rankings, facts))
    say(_summary(facts))
    if reads and not reranks:
        say(f"The preset {preset} has no generator, so the first stage ranked alone.")
    say(f"Page with the images: {page}")


def _facts(
    asked: Sequence[Question], rankings: Sequence[Ranking], before: Sequence[Ranking]
) -> dict[str, Any]:
    places = [_place(one, ranking) for one, ranking in zip(asked, rankings, strict=True)]
    former = [_place(one, ranking) for one, ranking in zip(asked, before, strict=True)]
    return {
        "questions": [
            {
                "question": one.text,
                "expected": one.expected,
                "rank": place,
                "first_stage_rank": first,
                "hits": [hit_facts(i, hit) for i, hit in enumerate(ranking, start=1)],
                "timings": dict(ranking.timings),
            }
            for one, ranking, place, first in zip(asked, rankings, places, former, strict=True)
        ],
        "expected": sum(one.expected is not None for one in asked),
        "found_first": places.count(1),
        "found_first_by_first_stage": former.count(1),
        "found": sum(place is not None for place in places),
    }


def _mean_timings(rankings: Sequence[Ranking]) -> dict[str, float]:
    """Seconds a question by stage."""
    stages = dict.fromkeys(stage for ranking in rankings for stage in ranking.timings)
    return {
        stage: sum(ranking.timings.get(stage, 0.0) for ranking in rankings) / len(rankings)
        for stage in stages
    }


def _place(question: Question, ranking: Ranking) -> int | None:
    """Where the expected image stands, from 1; None when it is not there or nothing was expected."""
    ids = [hit.id for hit in ranking]
    return ids.index(question.expected) + 1 if question.expected in ids else None


def _summary(facts: dict[str, Any]) -> str:
    said = f"{len(facts['questions'])} questions to {facts['images']} images"
    if facts["expected"]:
        said += f"; the expected one came first for {facts['found_first']} of {facts['expected']}"
        if facts["generator"]:
            said += f", by the first stage alone for {facts['found_first_by_first_stage']}"
    stages = facts["seconds"]["search"]
    each = f"{human_seconds(sum(stages.values()))} a question"
    if facts["generator"]:
        each += f", {human_seconds(sum(list(stages.values())[2:]))} of it for reading the candidates"
    return f"{said}. Indexed in {facts['seconds']['add']:.1f} s, answered in {each}."


def _table(asked: Sequence[Question], rankings: Sequence[Ranking], facts: dict[str, Any]) -> PlainTable:
    stages = score_columns(hit for ranking in rankings for hit in ranking)
    columns = ["question", "found first", *stages.values(), "then"]
    judged = any(one.expected for one in asked)
    table = PlainTable(*columns, *(["as expected"] if judged else []), numbers=stages.values())
    for one, ranking, fact in zip(asked, rankings, facts["questions"], strict=True):
        first, *others = ranking
        then = ", ".join(hit.id for hit in others)
        row = [one.text, first.id, *score_cells(first, stages), then]
        table.add_row(*row, *([_verdict(fact, reranked=len(stages) > 1)] if judged else []))
    return table


def _verdict(fact: dict[str, Any], *, reranked: bool) -> str:
    rank, former = fact["rank"], fact["first_stage_rank"]
    said = "yes" if rank == 1 else f"no: {fact['expected']} "
    if rank is None:
        said += f"is not in the first {len(fact['hits'])}"
    elif rank > 1:
        said += f"is in place {rank}"
    if reranked and former != rank:
        said += f" (first stage: place {former})" if former else " (first stage: none)"
    return said


def _page(asked: Sequence[Question], rankings: Sequence[Ranking], facts: dict[str, Any]) -> str:
    from zsqretrieval.search.display import Row, contact_sheet, thumbnails

    hits = [hit for ranking in rankings for hit in ranking]
    credits = {hit.id: hit.metadata["credit"] for hit in hits if "credit" in hit.metadata}
    return contact_sheet(
        [Row(ranking, one.expected) for one, ranking in zip(asked, rankings, strict=True)],
        thumbnails(hits),
        title="Questions, answered with images",
        summary=_summary(facts),
        credits="; ".join(f"{id}: {credit}" for id, credit in sorted(credits.items())),
    )

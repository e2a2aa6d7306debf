"""``zsq demo``: index a few photographs, ask questions, write a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsqretrieval.cli.console import (
    check_page,
    emit_json,
    human_seconds,
    name_skipped,
    notice,
    progress_bars,
    say,
    score_cells,
    score_columns,
    show,
    write_page,
)
from zsqretrieval.cli.options import (
    AsJson,
    Candidates,
    Device,
    EncoderWeights,
    GeneratorWeights,
    HowFused,
    HowReranked,
    Reranks,
    Weight,
    caches_features,
    preset_with,
    rerank_of,
)
from zsqretrieval.cli.serve import Port, run_server
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.album.candidates import StatesMode
    from zsqretrieval.data.samples import Question
    from zsqretrieval.search.ranking import Ranking


def demo(
    ctx: typer.Context,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images, instead of the photographs of scikit-image."),
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="Question to ask instead; may be repeated.")
    ] = None,
    preset: Annotated[str, typer.Option(help="mini, clip, clip-kosmos2 or clip-l14-kosmos2.")] = "mini",
    index: Annotated[str, typer.Option(help="compressed, hnsw or exact.")] = "compressed",
    k: Annotated[int, typer.Option("-k", min=1, help="Images per question.")] = 3,
    candidates: Candidates = 100,
    rerank: HowReranked = None,
    fusion: HowFused = None,
    weight: Weight = None,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    device: Device = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the page.")] = Path("zsq-demo.html"),
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve the album as a page to search in.")
    ] = False,
    port: Port = 8000,
    as_json: AsJson = False,
) -> None:
    """Ask questions of a small album and write the results as a web page.

    If the preset has a generator, it re-ranks the candidates of the first stage.
    """
    from zsqretrieval.data.samples import GENERIC_QUESTIONS, QUESTIONS, Question, photographs

    check_page(out)
    if images is not None and not images.exists():
        raise InvalidInputError(f"{images}: no such folder; give --images a folder of images")
    album = photographs() if images is None else images
    asked: Sequence[Question] = QUESTIONS if images is None else GENERIC_QUESTIONS
    if question:
        asked = [Question(text) for text in question]

    from zsqretrieval.retriever import Retriever

    how = rerank_of(candidates, rerank, fusion, weight)
    parts = preset_with(
        preset, index=index, encoder_weights=encoder_weights, generator_weights=generator_weights
    )
    states: StatesMode = "disk" if how is not None and caches_features(parts) else None
    retriever = ctx.with_resource(Retriever.from_preset(parts, states=states))
    with progress_bars() as bars:
        report = retriever.add(album, progress=bars)
        name_skipped(report.skipped, notice)
        # An album of other photographs has no expected answers, and an empty one no answers.
        asked = [
            one for one in asked if len(retriever) and (one.expected is None or one.expected in retriever)
        ]
        reranks = how is not None and retriever.has_generator
        rankings, before = [], []
        for one in asked:
            rankings.append(retriever.search(one.text, k, rerank=how))
            before.append(retriever.search(one.text, max(k, candidates), rerank=None))
            bars("asking", len(rankings), len(asked))
        facts = _facts(asked, rankings, before) | {
            "images": len(retriever),
            "encoder": retriever.encoder.fingerprint,
            "index": index,
            "generator": retriever.generator.fingerprint if reranks and retriever.generator else None,
            "skipped": list(map(asdict, report.skipped)),
            "seconds": {"add": report.seconds, "search": _mean_timings(rankings)},
        }
    page = write_page(out, _page(asked, rankings, facts)) if rankings else None
    if as_json:
        emit_json(facts | {"html": None if page is None else str(page)})
        return
    if page is None:
        say(f"No images were found in {images}; give --images a folder of photographs.")
        return
    _show(asked, rankings, facts)
    say(_summary(facts))
    if rerank is not Reranks.NONE and not reranks:
        say(f"The preset {preset} has no generator, so the first stage ranks alone.")
    say(f"Page with the images: {page}")
    if serve:
        run_server(retriever, "127.0.0.1", port, title="Demo", rerank=rerank is not Reranks.NONE)


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
                "hits": ranking.to_dicts(),
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
    """Mean seconds per question by stage."""
    stages = dict.fromkeys(stage for ranking in rankings for stage in ranking.timings)
    return {
        stage: sum(ranking.timings.get(stage, 0.0) for ranking in rankings) / len(rankings)
        for stage in stages
    }


def _place(question: Question, ranking: Ranking) -> int | None:
    """Rank of the expected image, from 1; None if it is not found or none is expected."""
    ids = [hit.id for hit in ranking]
    return ids.index(question.expected) + 1 if question.expected in ids else None


def _summary(facts: dict[str, Any]) -> str:
    said = f"{len(facts['questions'])} questions to {facts['images']} images"
    if facts["expected"]:
        said += f"; the expected image ranks first for {facts['found_first']} of {facts['expected']}"
        if facts["generator"]:
            said += f", by the first stage alone for {facts['found_first_by_first_stage']}"
    stages = facts["seconds"]["search"]
    each = f"{human_seconds(sum(stages.values()))} a question"
    if facts["generator"]:
        each += f", {human_seconds(sum(list(stages.values())[2:]))} of it for re-ranking"
    return f"{said}. Indexed in {facts['seconds']['add']:.1f} s, answered in {each}."


def _show(asked: Sequence[Question], rankings: Sequence[Ranking], facts: dict[str, Any]) -> None:
    stages = score_columns(hit for ranking in rankings for hit in ranking)
    columns = ["question", "found first", *stages.values(), "then"]
    judged = any(one.expected for one in asked)
    rows = []
    for one, ranking, fact in zip(asked, rankings, facts["questions"], strict=True):
        first, *others = ranking
        then = ", ".join(hit.id for hit in others)
        row = [one.text, first.id, *score_cells(first, stages), then]
        rows.append([*row, *([_verdict(fact, reranked=len(stages) > 1)] if judged else [])])
    show([*columns, *(["as expected"] if judged else [])], rows, numbers=stages.values())


def _verdict(fact: dict[str, Any], *, reranked: bool) -> str:
    rank, former = fact["rank"], fact["first_stage_rank"]
    said = "yes" if rank == 1 else f"no: {fact['expected']} "
    if rank is None:
        said += f"is not in the first {len(fact['hits'])}"
    elif rank > 1:
        said += f"has rank {rank}"
    if reranked and former != rank:
        said += f" (first stage: rank {former})" if former else " (first stage: none)"
    return said


def _page(asked: Sequence[Question], rankings: Sequence[Ranking], facts: dict[str, Any]) -> str:
    from zsqretrieval.search.display import Row, contact_sheet, thumbnails

    hits = [hit for ranking in rankings for hit in ranking]
    credits = {hit.id: hit.metadata["credit"] for hit in hits if "credit" in hit.metadata}
    return contact_sheet(
        [Row(ranking, one.expected) for one, ranking in zip(asked, rankings, strict=True)],
        thumbnails(hits),
        title="Questions answered with images",
        summary=_summary(facts),
        credits="; ".join(f"{id}: {credit}" for id, credit in sorted(credits.items())),
    )

"""``zsq demo``: index a few photographs, ask questions, write a page."""

from __future__ import annotations

import math
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
        typer.Option(help="Folder of images, instead of the photographs of the demo."),
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
    from zsqretrieval.data.samples import GENERIC_QUESTIONS, QUESTIONS, UNANSWERABLE, Question, photographs

    check_page(out)
    if images is not None and not images.exists():
        raise InvalidInputError(f"{images}: no such folder; give --images a folder of images")
    album = photographs() if images is None else images
    asked: Sequence[Question] = (*QUESTIONS, *UNANSWERABLE) if images is None else GENERIC_QUESTIONS
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
        if not len(retriever):
            asked = []
        reranks = how is not None and retriever.has_generator
        # Every ranking has all candidates: the expected image may be far below the first k.
        depth, least = max(k, candidates), 0.0 if retriever.calibration.relevance_scale else None
        rankings, before = [], []
        for one in asked:
            rankings.append(retriever.search(one.text, depth, rerank=how, min_probability=least))
            before.append(retriever.search(one.text, depth, rerank=None))
            bars("asking", len(rankings), len(asked))
        facts = _facts(asked, rankings, before, k) | {
            "judges": least is not None,
            "images": len(retriever),
            "encoder": retriever.encoder.fingerprint,
            "index": index,
            "generator": retriever.generator.fingerprint if reranks and retriever.generator else None,
            "skipped": list(map(asdict, report.skipped)),
            "seconds": {"add": report.seconds, "search": _mean_timings(rankings)},
        }
    page = write_page(out, _page(asked, rankings, facts, k)) if rankings else None
    if as_json:
        emit_json(facts | {"html": None if page is None else str(page)})
        return
    if page is None:
        say(f"No images were found in {images}; give --images a folder of photographs.")
        return
    _show(asked, [ranking[:k] for ranking in rankings], facts)
    say(_summary(facts))
    if rerank != "none" and not reranks:
        say(f"The preset {preset} has no generator, so the first stage ranks alone.")
    say(f"Page with the images: {page}")
    if serve:
        run_server(retriever, "127.0.0.1", port, title="Demo", rerank=rerank != "none")


def _facts(
    asked: Sequence[Question], rankings: Sequence[Ranking], before: Sequence[Ranking], k: int
) -> dict[str, Any]:
    questions: list[dict[str, Any]] = [
        {
            "question": one.text,
            "expected": one.expected,
            "answerable": one.answerable,
            "rank": _place(one, ranking),
            "first_stage_rank": _place(one, former),
            "nothing_found": ranking[:k].nothing_found,
            "hits": ranking[:k].to_dicts(),
            "timings": dict(ranking.timings),
        }
        for one, ranking, former in zip(asked, rankings, before, strict=True)
    ]
    judged = [one for one in questions if one["expected"] is not None]
    ranks = [(one["rank"] or math.inf, one["first_stage_rank"] or math.inf) for one in judged]
    return {
        "questions": questions,
        "expected": len(judged),
        "found_first": sum(rank == 1 for rank, _ in ranks),
        "found_first_by_first_stage": sum(former == 1 for _, former in ranks),
        "found": sum(rank <= k for rank, _ in ranks),
        "moved_up": sum(rank < former for rank, former in ranks),
        "moved_down": sum(rank > former for rank, former in ranks),
        "unanswerable": sum(not one["answerable"] for one in questions),
        "nothing_found_rightly": sum(one["nothing_found"] and not one["answerable"] for one in questions),
        "nothing_found_wrongly": sum(one["nothing_found"] for one in judged),
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
    """What the demo showed, also where a stage did harm."""
    said = [f"{len(facts['questions'])} questions to {facts['images']} images."]
    if facts["expected"]:
        said.append(_verdict_on_ranks(facts))
    if facts["unanswerable"] and facts["judges"]:
        said.append(
            f"All hits are judged improbable for {facts['nothing_found_rightly']} of "
            f"{facts['unanswerable']} questions that no image answers, and wrongly for "
            f"{facts['nothing_found_wrongly']} of the {facts['expected']} others."
        )
    stages = facts["seconds"]["search"]
    each = f"{human_seconds(sum(stages.values()))} a question"
    if facts["generator"]:
        each += f", {human_seconds(sum(list(stages.values())[2:]))} of it for re-ranking"
    return " ".join([*said, f"Indexed in {facts['seconds']['add']:.1f} s, answered in {each}."])


def _verdict_on_ranks(facts: dict[str, Any]) -> str:
    from scipy.stats import binomtest

    said = f"The expected image ranks first for {facts['found_first']} of {facts['expected']}"
    if not facts["generator"]:
        return f"{said}."
    up, down = facts["moved_up"], facts["moved_down"]
    said += f", by the first stage alone for {facts['found_first_by_first_stage']}. "
    if not up + down:
        return f"{said}Re-ranking moved no expected image."
    said += f"Re-ranking moved it up for {up} questions and down for {down}"
    if binomtest(up, up + down).pvalue >= 0.05:
        return f"{said}, which may be chance."
    return f"{said}: it {'helps' if up > down else 'hurts'} here."


def _show(asked: Sequence[Question], rankings: Sequence[Ranking], facts: dict[str, Any]) -> None:
    stages = score_columns(hit for ranking in rankings for hit in ranking)
    columns = ["question", "found first", *stages.values(), "then"]
    judged = any(one.expected or not one.answerable for one in asked)
    rows = []
    for one, ranking, fact in zip(asked, rankings, facts["questions"], strict=True):
        first, *others = ranking
        then = ", ".join(hit.id for hit in others)
        row = [one.text, first.id, *score_cells(first, stages), then]
        rows.append([*row, *([_verdict(fact, reranked=len(stages) > 1)] if judged else [])])
    show([*columns, *(["as expected"] if judged else [])], rows, numbers=stages.values())


def _verdict(fact: dict[str, Any], *, reranked: bool) -> str:
    if not fact["answerable"]:
        return "yes: nothing fits" if fact["nothing_found"] else "no: nothing should fit"
    if fact["expected"] is None:
        return ""
    rank, former = fact["rank"], fact["first_stage_rank"]
    said = "yes" if rank == 1 else f"no: {fact['expected']} "
    if rank is None:
        said += "is no candidate"
    elif rank > 1:
        said += f"has rank {rank}"
    if reranked and former != rank:
        said += f" (first stage: rank {former})" if former else " (first stage: none)"
    return said


def _page(asked: Sequence[Question], rankings: Sequence[Ranking], facts: dict[str, Any], k: int) -> str:
    from zsqretrieval.search.display import Row, contact_sheet, thumbnails

    rows = [
        Row(ranking, one.expected, one.answerable, first=k, former=fact["first_stage_rank"])
        for one, ranking, fact in zip(asked, rankings, facts["questions"], strict=True)
    ]
    hits = [hit for row in rows for hit in row.shown().values()]
    credits = {hit.id: hit.metadata["credit"] for hit in hits if "credit" in hit.metadata}
    return contact_sheet(
        rows,
        thumbnails(hits),
        title="Questions answered with images",
        summary=_summary(facts),
        credits="; ".join(f"{id}: {credit}" for id, credit in sorted(credits.items())),
    )

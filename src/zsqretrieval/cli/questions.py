"""``zsq questions``: write, filter, list and remove the stored questions of an album."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from zsqretrieval.cli.console import continued, emit_json, name_skipped, notice, progress_bars, say, show
from zsqretrieval.cli.options import (
    Album,
    AsJson,
    Device,
    GeneratorPreset,
    GeneratorWeights,
    TrustParts,
    open_album,
)

if TYPE_CHECKING:
    from zsqretrieval.album.questions import StoredQuestion
    from zsqretrieval.retriever import Retriever


Styles: TypeAlias = Literal["questions", "captions", "attributes", "search"]


def questions(
    album: Album,
    n: Annotated[int, typer.Option("-n", min=1, help="Most questions per image.")] = 3,
    style: Annotated[
        Styles | None, typer.Option(help="Style of the texts.", show_default="questions")
    ] = None,
    answers: Annotated[bool, typer.Option("--answers", help="Also store the generator's answers.")] = False,
    top_k: Annotated[
        int,
        typer.Option(min=0, help="Keep questions that find their own image among the first K; 0 keeps all."),
    ] = 10,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Sampling seed; another one writes other questions.")] = 0,
    filter_again: Annotated[
        bool, typer.Option("--filter", help="Only repeat the round trip of all questions, with --top-k.")
    ] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Only list the stored questions.")] = False,
    image: Annotated[str | None, typer.Option(help="Only list the questions of this image.")] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Only remove the questions, or those of --style.")
    ] = False,
    preset: GeneratorPreset = None,
    generator_weights: GeneratorWeights = None,
    trust_parts: TrustParts = False,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 16,
    as_json: AsJson = False,
) -> None:
    """Write questions about all images of an album, and keep those that lead back to them.

    Each batch is on disk before the next begins; the same command continues an interrupted run. Afterwards
    `zsq search --expand` also searches the questions.
    """
    listing = list_only or image is not None
    if listing + filter_again + remove > 1:
        raise typer.BadParameter("--list, --filter and --remove exclude one another; give one")
    writes = not (listing or filter_again or remove)
    kept_within = top_k or None
    facts: dict[str, Any] = {"album": str(album.absolute())}
    with open_album(
        album,
        preset=preset,
        generator_weights=generator_weights,
        needs_generator=writes,
        trust_parts=trust_parts,
    ) as retriever:
        with continued("finished batches are on disk"):
            if remove:
                facts["removed"] = retriever.questions.remove(style)
            elif filter_again:
                with progress_bars() as bars:
                    facts |= asdict(retriever.questions.filter(kept_within, progress=bars))
            elif writes:
                with progress_bars() as bars:
                    report = retriever.questions.generate(
                        n,
                        style=style or "questions",
                        answers=answers,
                        top_k=kept_within,
                        temperature=temperature,
                        seed=seed,
                        batch_size=batch_size,
                        progress=bars,
                    )
                facts |= asdict(report)
                if not as_json:
                    name_skipped(report.skipped, notice)
        facts["styles"] = [asdict(one) for one in retriever.questions.styles()]
        listed = _chosen(retriever, image, style) if listing else []
        if not listing:
            retriever.save()
    if as_json:
        emit_json(facts | ({"questions": [_question_json(one) for one in listed]} if listing else {}))
    elif listing:
        _list(listed)
    else:
        _say_result(album, facts)


def _chosen(retriever: Retriever, image: str | None, style: Styles | None) -> list[StoredQuestion]:
    return [one for one in retriever.questions.list(image) if style in (None, one.recipe.style)]


def _question_json(one: StoredQuestion) -> dict[str, Any]:
    """A question as JSON, without the keys of the catalog."""
    facts = asdict(one)
    judgement: dict[str, Any] = facts.pop("judgement")
    return {name: value for name, value in facts.items() if name not in ("key", "image")} | judgement


def _list(questions: list[StoredQuestion]) -> None:
    if not questions:
        say("No questions yet; make some: zsq questions ALBUM")
        return
    rows = []
    for one in questions:
        judged = one.judgement
        found = "" if judged.top_k is None else str(judged.rank or f"> {judged.top_k}")
        kept = "kept" if judged.kept else ""
        rows.append((one.id, one.text, one.answer or "", found, kept))
    show(("image", "question", "answer", "rank", "kept"), rows, numbers=("rank",))


def _say_result(album: Path, facts: dict[str, Any]) -> None:
    if "removed" in facts:
        say(f"{facts['removed']} questions removed.")
    elif "asked" not in facts:
        say(f"{facts['kept']} of {facts['questions']} questions are kept, in {facts['seconds']:.1f} s.")
    else:
        known = f", {facts['known']} asked before" if facts["known"] else ""
        skipped = f", {len(facts['skipped'])} cannot be opened" if facts["skipped"] else ""
        say(
            f"{facts['asked']} images asked{known}{skipped}: {facts['questions']} new questions, of which "
            f"{facts['kept']} are kept, in {facts['seconds']:.1f} s."
        )
    if facts["styles"]:
        numbers = ("images", "questions", "kept", "answered")
        rows = [[one["style"], *(str(one[name]) for name in numbers)] for one in facts["styles"]]
        show(("style", *numbers), rows, numbers=numbers)
        say(f'Search them: zsq search {album} "what is the dog doing?" --expand')

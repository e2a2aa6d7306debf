"""``zsq questions``: let the generator ask the images of an album, judge again, list, forget."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsqretrieval.cli.console import (
    PlainTable,
    count_bar,
    emit_json,
    name_skipped,
    notice,
    say,
    show,
)
from zsqretrieval.cli.opening import open_album
from zsqretrieval.cli.reading import AsJson, GeneratorWeights

if TYPE_CHECKING:
    from zsqretrieval.album.questions import StoredQuestion
    from zsqretrieval.retriever import Retriever

__all__ = ["Styles", "questions"]


class Styles(str, Enum):
    """What the generator writes."""

    QUESTIONS = "questions"
    CAPTIONS = "captions"
    ATTRIBUTES = "attributes"
    SEARCH = "search"


def questions(
    album: Annotated[Path, typer.Argument(metavar="ALBUM", help="Directory of the album.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Questions of an image, at most.")] = 3,
    style: Annotated[
        Styles | None, typer.Option(help="What is written of each image.", show_default="questions")
    ] = None,
    answers: Annotated[bool, typer.Option("--answers", help="Let the generator answer as well.")] = False,
    top_k: Annotated[
        int,
        typer.Option(min=0, help="Keep questions that find their image among so many; 0 keeps all."),
    ] = 10,
    temperature: Annotated[float, typer.Option(min=0, help="Higher is more varied and less true.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Another seed asks anew.")] = 0,
    filter_again: Annotated[
        bool, typer.Option("--filter", help="Only search all questions again, and keep by --top-k.")
    ] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Only list what there is.")] = False,
    image: Annotated[str | None, typer.Option(help="Only list what this image was asked.")] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Only forget the questions, or those of --style.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help="Ask with the generator of this preset, in place of the album's.")
    ] = None,
    generator_weights: GeneratorWeights = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images shown together.")] = 16,
    as_json: AsJson = False,
) -> None:
    """Ask all images of an album, and keep the questions that lead back to them.

    Each batch is on disk before the next begins: an interrupted run is continued by the same command. Then
    `zsq search --expand` searches the questions as well.
    """
    listing = list_only or image is not None
    if listing + filter_again + forget > 1:
        raise typer.BadParameter("--list, --filter and --forget are different things to do; give one")
    asks = not (listing or filter_again or forget)
    kept_within = top_k or None
    facts: dict[str, Any] = {"album": str(album.absolute())}
    with open_album(album, reader=preset, generator_weights=generator_weights, reads=asks) as retriever:
        try:
            if forget:
                facts["forgotten"] = retriever.remove_questions(style and style.value)
            elif filter_again:
                with count_bar("searching questions", None) as progress:
                    facts |= asdict(retriever.filter_questions(kept_within, progress=progress))
            elif asks:
                with count_bar("asking images", len(retriever)) as progress:
                    report = retriever.generate_questions(
                        n,
                        style=(style or Styles.QUESTIONS).value,
                        answers=answers,
                        top_k=kept_within,
                        temperature=temperature,
                        seed=seed,
                        batch_size=batch_size,
                        progress=progress,
                    )
                facts |= asdict(report)
                if not as_json:
                    name_skipped(report.skipped, notice)
        except KeyboardInterrupt:
            notice("interrupted; what was written is safe. Run the same command again to continue")
            raise typer.Exit(130) from None
        facts["styles"] = [asdict(one) for one in retriever.question_styles()]
        listed = _chosen(retriever, image, style) if listing else []
        if not listing:
            retriever.save()
    if as_json:
        emit_json(facts | ({"questions": [_told(one) for one in listed]} if listing else {}))
    elif listing:
        _list(listed)
    else:
        _tell(album, facts)


def _chosen(retriever: Retriever, image: str | None, style: Styles | None) -> list[StoredQuestion]:
    return [one for one in retriever.questions(image) if style in (None, one.recipe.style)]


def _told(one: StoredQuestion) -> dict[str, Any]:
    made = asdict(one)
    return {
        "id": made["id"],
        "text": made["text"],
        "answer": made["answer"],
        **made["judgement"],
        "log_likelihood": made["log_likelihood"],
        "tokens": made["tokens"],
        "prompt": made["prompt"],
        "recipe": made["recipe"],
    }


def _list(questions: list[StoredQuestion]) -> None:
    if not questions:
        say("No questions yet; make some: zsq questions ALBUM")
        return
    table = PlainTable("image", "question", "answer", "found at", "kept", numbers=("found at",))
    for one in questions:
        judged = one.judgement
        found = "" if judged.top_k is None else str(judged.rank or f"> {judged.top_k}")
        kept = "kept" if judged.kept else ""
        table.add_row(one.id, one.text, one.answer or "", found, kept)
    show(table)


def _tell(album: Path, facts: dict[str, Any]) -> None:
    if "forgotten" in facts:
        say(f"{facts['forgotten']} questions forgotten.")
    elif "asked" not in facts:
        say(f"{facts['kept']} of {facts['questions']} questions are kept, in {facts['seconds']:.1f} s.")
    else:
        known = f", {facts['known']} had been asked before" if facts["known"] else ""
        skipped = f", {len(facts['skipped'])} cannot be shown" if facts["skipped"] else ""
        say(
            f"{facts['asked']} images asked{known}{skipped}: {facts['questions']} new questions, of which "
            f"{facts['kept']} are kept, in {facts['seconds']:.1f} s."
        )
    if facts["styles"]:
        numbers = ("images", "questions", "kept", "answered")
        table = PlainTable("style", *numbers, numbers=numbers)
        for one in facts["styles"]:
            table.add_row(one["style"], *(str(one[name]) for name in numbers))
        show(table)
        say(f'Search them: zsq search {album} "what is the dog doing?" --expand')

"""``zsq search``: find images of an album by a question, an image, or both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsqretrieval.cli.console import (
    check_page,
    emit_json,
    progress_bars,
    say,
    score_cells,
    score_columns,
    show,
    show_pictures,
    timings_text,
    write_page,
)
from zsqretrieval.cli.options import (
    Album,
    AsJson,
    Candidates,
    Device,
    GeneratorPreset,
    GeneratorWeights,
    HowFused,
    HowReranked,
    TrustParts,
    Weight,
    open_album,
    parse_where,
    read_lines,
    rerank_of,
)

if TYPE_CHECKING:
    from zsqretrieval.data.sources import Reopener
    from zsqretrieval.search.query import Query
    from zsqretrieval.search.ranking import Ranking
    from zsqretrieval.types import Hit

_QUESTION_ONLY = (
    *("candidates", "rerank", "fusion", "weight", "expand", "normalize", "bank", "explain"),
    "min_probability",
    *("preset", "generator_weights"),
)
"""Options of a search that have no meaning for a query image."""


def search(
    ctx: typer.Context,
    album: Album,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", help="The question.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="Find images like this one, or like it and the question.")
    ] = None,
    subtract: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Lower images of this; may be repeated. Weight 1/2."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of images.")] = 10,
    offset: Annotated[int, typer.Option(min=0, help="Number of images to skip, for the next page.")] = 0,
    where: Annotated[
        str | None,
        typer.Option(metavar="FILTER", help="Only images of a filter: \"year > 2010 and camera = 'X'\"."),
    ] = None,
    collapse: Annotated[
        float | None,
        typer.Option(
            metavar="COSINE", help="Show near-duplicates once: images at least that similar, such as 0.97."
        ),
    ] = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of being unlike the images before.")
    ] = 0.0,
    candidates: Candidates = 100,
    rerank: HowReranked = None,
    fusion: HowFused = None,
    weight: Weight = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Also search the questions that `zsq questions` stored.")
    ] = False,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Lower images that are near every question, by a query bank; needs "
            "`zsq questions ALBUM --style search`.",
        ),
    ] = False,
    bank: Annotated[
        Path | None,
        typer.Option(help="Use the questions of this file, one a line, as the query bank."),
    ] = None,
    min_probability: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            help="Only images that are relevant with that probability, such as 0.5.",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Answer the question from each hit and explain the hit.")
    ] = False,
    preset: GeneratorPreset = None,
    generator_weights: GeneratorWeights = None,
    trust_parts: TrustParts = False,
    device: Device = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with the images.")] = None,
    pictures: Annotated[
        bool, typer.Option("--thumbnails", help="Show thumbnails in a terminal with 24-bit colours.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the images of an album that best fit a question.

    Encoder and index fetch candidates. The generator, if there is one, then scores the question given each of
    them. A query image is compared by the encoder alone.
    """
    if question is None and image is None:
        raise typer.BadParameter("give a question, --image FILE, or both")
    if question is None:
        _refuse_question_options(ctx)
    check_page(html)
    selected = parse_where(where)
    how = rerank_of(candidates, rerank, fusion, weight)
    texts = None if bank is None else read_lines(bank)
    with open_album(
        album,
        preset=preset,
        generator_weights=generator_weights,
        needs_generator=question is not None and (how is not None or explain),
        trust_parts=trust_parts,
    ) as retriever:
        queries = retriever.query_bank(texts) if normalize or bank is not None else None
        with progress_bars() as bars:
            ranking = retriever.search(
                _query(question, image, subtract or []), k,
                offset=offset, where=selected, rerank=None if question is None else how, expand=expand,
                bank=queries, collapse=collapse, diversity=diversity, min_probability=min_probability,
                explain=explain, progress=bars,
            )  # fmt: skip
        page = write_page(html, _page(ranking, image, retriever.files())) if html else None
        is_empty = not len(retriever)
    if as_json:
        emit_json(
            {
                "album": str(album.absolute()),
                "query": ranking.query,
                "hits": ranking.to_dicts(),
                "nothing_found": ranking.nothing_found,
                "timings": dict(ranking.timings),
                "html": None if page is None else str(page),
            }
        )
        return
    if not len(ranking):
        say(_nothing(album, is_empty, min_probability, where))
        return
    if pictures:
        show_pictures(ranking)
    scores = score_columns(ranking)
    matched = ["matched question"] if expand else []
    rows = [
        [str(rank), *score_cells(hit, scores), hit.id, *([hit.matched_question or ""] if matched else [])]
        for rank, hit in enumerate(ranking, start=1)
    ]
    show(("", *scores.values(), "image", *matched), rows, numbers=("", *scores.values()))
    if explain:
        for rank, hit in enumerate(ranking, start=1):
            say(f"{rank}. {hit.id}")
            for line in explanation_lines(hit):
                say(f"   {line}")
        say("In brackets: by how many nats the image makes a word likelier (+) or less likely (-).")
    say(timings_text(ranking.timings))
    if page:
        say(f"Page with the images: {page}")


def _query(question: str | None, image: Path | None, subtract: list[str]) -> Query:
    from zsqretrieval.search.query import Query

    parts = [Query(one) for one in (question, image) if one is not None]
    query = sum(parts[1:], parts[0])
    for text in subtract:
        query -= 0.5 * Query(text)
    return query


def _nothing(album: Path, is_empty: bool, min_probability: float | None, where: str | None) -> str:
    if is_empty:
        return f"{album} holds no images yet; add some: zsq index FOLDER --out ALBUM"
    asked = [] if where is None else [f"--where {where!r}"]
    asked += [] if min_probability is None else [f"--min-probability {min_probability:g}"]
    return "Nothing found" + (f" with {' and '.join(asked)}." if asked else ".")


def _refuse_question_options(ctx: typer.Context) -> None:
    """Refuse options that would have no effect on a query image."""
    for name in _QUESTION_ONLY:
        source = ctx.get_parameter_source(name)
        given = source is not None and source.name != "DEFAULT"
        if given and ctx.params[name] != "none":  # which is what --image does
            raise typer.BadParameter(f"--{name.replace('_', '-')} needs a question, not --image")


def explanation_lines(hit: Hit) -> list[str]:
    """The answer, and the question with the gain of its words in nats, where it is large enough."""
    from zsqretrieval.search.explain import SAYS, words

    if hit.explanation is None:
        return ["image cannot be opened"]
    marked = [
        f"{word.text} [{word.gain:+.1f}]" if abs(word.gain) >= SAYS else word.text
        for word in words(hit.explanation)
    ]
    answer = hit.explanation.answer
    return [f"answers: {answer}" if answer else "gives no answer", f"explains: {' '.join(marked)}"]


def _page(ranking: Ranking, image: Path | None, files: Reopener) -> str:
    from zsqretrieval.search.display import Row, contact_sheet, thumbnail, thumbnails

    row = Row(ranking, asked_with=None if image is None else thumbnail(image))
    return contact_sheet([row], thumbnails(ranking, files), title="Search results")

"""``zsq index``, ``search``, ``info`` and ``remove``: an album on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsqretrieval.cli.console import (
    PlainTable,
    check_page,
    count_bar,
    emit_json,
    human_size,
    name_skipped,
    notice,
    say,
    show,
    write_page,
)
from zsqretrieval.cli.opening import encoder_config, new_retriever, open_album
from zsqretrieval.cli.reading import (
    AsJson,
    Candidates,
    EncoderWeights,
    GeneratorWeights,
    HowExpanded,
    HowFused,
    HowScored,
    Scorings,
    States,
    Weight,
    expansion_settings,
    hit_told,
    read_lines,
    score_cells,
    score_columns,
    search_settings,
    told_explanation,
    told_timings,
)
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.album.info import AlbumInfo
    from zsqretrieval.retriever import AddReport, Retriever
    from zsqretrieval.types import Ranking

__all__ = ["index", "info", "remove", "search"]

_Album = Annotated[Path, typer.Argument(metavar="ALBUM", help="Directory of the album.")]


def index(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Folders, tars (WebDataset), image files or patterns."),
    ],
    album: Annotated[Path, typer.Option("--out", "-o", help="Directory of the album; made or continued.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Parts of a new album: mini, clip, clip-kosmos2 or clip-l14-kosmos2.", show_default="mini"
        ),
    ] = None,
    index_name: Annotated[
        str | None, typer.Option("--index", help="Another index for a new album: hnsw or exact.")
    ] = None,
    states: Annotated[
        States | None,
        typer.Option(
            help="disk: let the generator see each image now and keep that beside the index, so that "
            "searching is faster.",
            show_default="none, or what the album was made with",
        ),
    ] = None,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded together.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Add images to an album on disk, which is made when there is none.

    What was added is safe at any moment: an interrupted run is continued by the same command.
    """
    from zsqretrieval.album.info import CATALOG, describe_album

    for source in sources:
        if not any(mark in source for mark in "*?[") and not Path(source).exists():
            raise InvalidInputError(f"{source}: no such file or folder; nothing was indexed")
    total = _count(sources)
    if (album / CATALOG).is_file():
        facts = describe_album(album)
        asked = preset or ("mini" if encoder_weights or generator_weights else None)
        _refuse_other_parts(facts, asked, index_name, encoder_weights)
        kept = facts.generator["states"] if facts.generator else None
        retriever = open_album(
            album,
            reader=asked,
            generator_weights=generator_weights,
            reads=states is States.DISK or (states is None and kept == "disk"),
            states={None: "auto", States.DISK: "disk", States.NONE: None}[states],
        )
    else:
        retriever = new_retriever(
            preset or "mini",
            index=index_name,
            path=album,
            states="disk" if states is States.DISK else None,
            encoder_weights=encoder_weights,
            generator_weights=generator_weights,
        )
    with retriever:
        try:
            with count_bar("indexing", total) as progress:
                report = retriever.add(list(sources), batch_size=batch_size, progress=progress)
            retriever.save()
        except KeyboardInterrupt:
            notice(
                f"interrupted; {album} holds {len(retriever)} images, all of them safe. "
                "Run the same command again to continue"
            )
            raise typer.Exit(130) from None
        if as_json:
            emit_json(_report_facts(album, retriever, report))
        else:
            _say_report(sources, album, retriever, report)


def _count(sources: list[str]) -> int | None:
    """How many images there are; None when a tar would have to be read to know."""
    from zsqretrieval.data.sources import open_images

    count = 0
    for image in open_images(list(sources)):
        if isinstance(image.content, bytes):
            return None
        count += 1
    return count


def _refuse_other_parts(
    facts: AlbumInfo, preset: str | None, index_name: str | None, encoder_weights: Path | None
) -> None:
    """An album keeps the encoder and index it was made with; to ask for others is an error, not ignored."""
    from zsqretrieval.presets import PRESETS

    made_with, wanted = facts.encoder, PRESETS.get(preset or "")
    if preset and wanted is None:
        raise InvalidInputError(f"there is no preset {preset!r}; choose from {', '.join(PRESETS)}")
    config = made_with["config"] or {}
    settings = {**wanted.encoder_config, **encoder_config(preset or "", encoder_weights)} if wanted else {}
    if wanted and (
        wanted.encoder != made_with["plugin"]
        or any(config.get(name) != value for name, value in settings.items())
    ):
        raise InvalidInputError(
            f"{facts.album} was made with the encoder {made_with["plugin"]!r} {config}, not with the preset "
            f"{preset!r}; leave out --preset, or make a new album"
        )
    if index_name and index_name != facts.index["plugin"]:
        raise InvalidInputError(
            f"{facts.album} was made with the index {facts.index["plugin"]!r}, not {index_name!r}; "
            "leave out --index, or make a new album"
        )


def _report_facts(album: Path, retriever: Retriever, report: AddReport) -> dict[str, Any]:
    return {
        "album": str(album.absolute()),
        "images": len(retriever),
        "added": list(report.added),
        "replaced": list(report.replaced),
        "moved": list(report.moved),
        "known": report.known,
        "skipped": [{"source": one.source, "reason": one.reason} for one in report.skipped],
        "seconds": report.seconds,
    }


def _say_report(sources: list[str], album: Path, retriever: Retriever, report: AddReport) -> None:
    counts = {
        "added": len(report.added),
        "replaced": len(report.replaced),
        "moved": len(report.moved),
        "known already": report.known,
        "skipped": len(report.skipped),
    }
    if not any(counts.values()):
        from zsqretrieval.data.sources import IMAGE_SUFFIXES

        say(
            f"No images were found in {', '.join(sources)}. "
            f"Looked for {' '.join(sorted(IMAGE_SUFFIXES))} and tars."
        )
        return
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    say(f"{said} in {report.seconds:.1f} s; {len(retriever)} images in {album}.")
    name_skipped(report.skipped, say)
    if len(retriever):
        say(f'Ask it something: zsq search {album} "a dog on the beach"')


_READING = (
    *("candidates", "scoring", "fusion", "weight", "expand", "expansion", "normalize", "bank", "explain"),
    *("preset", "generator_weights"),
)
"""The options of a search that say how a question is read."""


def search(
    ctx: typer.Context,
    album: _Album,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for images like this one instead.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many images.")] = 10,
    candidates: Candidates = 100,
    scoring: HowScored = None,
    fusion: HowFused = None,
    weight: Weight = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Search the questions that `zsq questions` made as well.")
    ] = False,
    expansion: HowExpanded = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Take away from the first stage what an image gets from any question; needs "
            "`zsq questions ALBUM --style search`.",
        ),
    ] = False,
    bank: Annotated[
        Path | None,
        typer.Option(help="Do that by the questions of this file, one a line, in place of the album's."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Answer the question from each hit, and say why it was found.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help="Read and fuse as this preset does, in place of the album.")
    ] = None,
    generator_weights: GeneratorWeights = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the images as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the images of an album that best fit a question.

    Encoder and index fetch candidates. A generator, if there is one, then says how likely the question is
    given each of them. An image in place of a question is compared by the encoder alone.
    """
    if (question is None) == (image is None):
        raise typer.BadParameter("give either a question or --image FILE")
    if image is not None:
        _refuse_reading(ctx)
    check_page(html)
    settings = search_settings(candidates, scoring, fusion, weight) | expansion_settings(expand, expansion)
    texts = None if bank is None else read_lines(bank)
    reads = image is None and (scoring is not Scorings.NONE or explain)
    with open_album(album, reader=preset, generator_weights=generator_weights, reads=reads) as retriever:
        if image is not None:
            ranking = retriever.search_image(image, k)
        else:
            if normalize or bank is not None:
                settings["bank"] = retriever.query_bank(texts)
            with count_bar("reading candidates", None) as progress:
                ranking = retriever.search(question or "", k, **settings, explain=explain, progress=progress)
    page = write_page(html, _page(ranking, image)) if html else None
    if as_json:
        emit_json(
            {
                "album": str(album.absolute()),
                "query": ranking.query,
                "hits": [hit_told(place, hit) for place, hit in enumerate(ranking, start=1)],
                "timings": dict(ranking.timings),
                "html": None if page is None else str(page),
            }
        )
        return
    if not len(ranking):
        say(f"{album} holds no images yet; add some: zsq index FOLDER --out ALBUM")
        return
    stages = score_columns(ranking)
    matched = ["matched question"] if settings["expand"] else []
    table = PlainTable("", *stages.values(), "image", *matched, numbers=("", *stages.values()))
    for place, hit in enumerate(ranking, start=1):
        asked = [hit.matched_question or ""] if matched else []
        table.add_row(str(place), *score_cells(hit, stages), hit.id, *asked)
    show(table)
    if explain:
        for place, hit in enumerate(ranking, start=1):
            say(f"{place}. {hit.id}")
            for line in told_explanation(hit):
                say(f"   {line}")
        say("In brackets: by how many nats the image makes a word likelier (+) or less likely (-).")
    say(told_timings(ranking.timings))
    if page:
        say(f"Page with the images: {page}")


def _refuse_reading(ctx: typer.Context) -> None:
    """An image is compared by the encoder alone: what says how a question is read would have no effect."""
    for name in _READING:
        source = ctx.get_parameter_source(name)
        given = source is not None and source.name != "DEFAULT"
        if given and ctx.params[name] is not Scorings.NONE:  # which is what --image does
            raise typer.BadParameter(f"--{name.replace('_', '-')} is about a question; --image has none")


def _page(ranking: Ranking, image: Path | None) -> str:
    from zsqretrieval.search.display import Row, contact_sheet, thumbnail, thumbnails

    row = Row(ranking, asked_with=None if image is None else thumbnail(image))
    return contact_sheet([row], thumbnails(ranking), title="What was found")


def info(album: _Album, as_json: AsJson = False) -> None:
    """Say what an album holds and what it was made with. Loads no model."""
    from zsqretrieval.album.info import describe_album

    facts = describe_album(album)
    if as_json:
        emit_json(asdict(facts))
        return
    encoder, kept, sizes = facts.encoder, facts.index, facts.bytes_on_disk
    state = "not saved" if not kept["saved"] else "up to date" if kept["up_to_date"] else "behind the catalog"
    table = PlainTable("album", facts.album)
    table.add_row("images", str(facts.images))
    table.add_row("encoder", f"{encoder["plugin"] or 'not a plugin'}, {encoder["dim"]} dimensions")
    table.add_row("fingerprint", str(encoder["fingerprint"]))
    table.add_row("index", f"{kept["plugin"] or 'not a plugin'}, {state}")
    table.add_row("generator", _generator(facts.generator))
    if facts.generator and facts.calibration:
        table.add_row("fusion", _fusion(facts.calibration["fusion"]))
    for one in facts.states:
        made_by = f"of {one['images']} of {facts.images} images, {one['dtype']}, by {one['fingerprint']}"
        table.add_row("image states", f"{made_by}, {human_size(one["bytes_on_disk"])}")
    for asked in facts.questions:
        found = "{questions} of {images} images, {kept} kept, {answered} answered".format_map(asked)
        table.add_row(asked["style"], found)
    table.add_row("catalog on disk", human_size(sizes["catalog"]))
    table.add_row("index on disk", human_size(sizes["index"]))
    show(table)
    if not facts.images:
        say("It is empty; add some images: zsq index FOLDER --out ALBUM")
    elif not kept["up_to_date"]:
        say("The next search brings the index up to date; `zsq index` also saves it.")


def _generator(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return "none"
    kept = {"disk": ["states on disk"], "memory": ["states in memory"]}.get(facts["states"] or "", [])
    return ", ".join([facts["plugin"], *_settings(facts["config"]), *kept])


def _fusion(facts: Mapping[str, Any]) -> str:
    return ", ".join([facts["plugin"].replace("_", " "), *_settings(facts["config"])])


def _settings(config: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in config.items()]


def remove(
    album: _Album,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Names, as `zsq search` prints them.")],
    as_json: AsJson = False,
) -> None:
    """Forget images of an album: all that are named or, when one is unknown, none. Files are not touched."""
    with open_album(album) as retriever:
        before = len(retriever)
        retriever.remove(ids)
        retriever.save()
        removed, left = before - len(retriever), len(retriever)
    if as_json:
        emit_json({"album": str(album.absolute()), "removed": removed, "images": left})
    else:
        say(f"{removed} removed; {left} images in {album}.")

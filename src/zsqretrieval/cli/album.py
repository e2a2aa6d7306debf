"""``zsq index``, ``info`` and ``remove``: an album on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zsqretrieval.cli.console import (
    continued,
    counts_text,
    emit_json,
    human_size,
    name_skipped,
    progress_bars,
    say,
    say_denied,
    show,
)
from zsqretrieval.cli.options import (
    Album,
    AsJson,
    BatchSize,
    Copy,
    Device,
    EncoderWeights,
    Exif,
    GeneratorWeights,
    MaxPixels,
    Safe,
    TrustParts,
    album_path,
    open_album,
    preset_with,
)
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.album.ingest import AddReport
    from zsqretrieval.retriever import Retriever

_FIELDS = 100  # that `info` lists


def index(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Folders, tars (WebDataset), image files or patterns."),
    ],
    album: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="ALBUM", parser=album_path, help="Directory of the album, new or existing."
        ),
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Parts of a new album: mini, clip, clip-kosmos2 or clip-l14-kosmos2.", show_default="mini"
        ),
    ] = None,
    index_name: Annotated[
        str | None, typer.Option("--index", help="Index of a new album: compressed, hnsw or exact.")
    ] = None,
    states: Annotated[
        Literal["lazy", "disk", "none"] | None,
        typer.Option(
            help="When to compute the generator's image features, which the album keeps to make searches "
            "faster: in the first search that needs them (lazy) or now (disk); none keeps none.",
            show_default="lazy, or the album's setting",
        ),
    ] = None,
    encoder_weights: EncoderWeights = None,
    generator_weights: GeneratorWeights = None,
    copy: Copy = False,
    exif: Exif = True,
    safety: Safe = True,
    trust_parts: TrustParts = False,
    device: Device = None,
    batch_size: BatchSize = 32,
    max_pixels: MaxPixels = 200_000_000,
    as_json: AsJson = False,
) -> None:
    """Add images to an album on disk; the album is made if there is none.

    Every batch is on disk before the next begins. The same command continues an interrupted run.
    """
    from zsqretrieval.album.info import CATALOG
    from zsqretrieval.data.sources import open_images

    for source in sources:
        next(open_images(source), None)  # a wrong path or pattern makes no album
    mode = None if states == "none" else states or "auto"
    wanted = preset or ("mini" if encoder_weights or generator_weights else None)
    if (album / CATALOG).is_file():
        _check_index(album, index_name)
        retriever = open_album(
            album,
            preset=wanted,
            generator_weights=generator_weights,
            states=mode,
            made_with=preset_with(wanted, encoder_weights=encoder_weights) if wanted else None,
            trust_parts=trust_parts,
        )
    else:
        from zsqretrieval.retriever import Retriever

        parts = preset_with(
            wanted or "mini",
            index=index_name,
            encoder_weights=encoder_weights,
            generator_weights=generator_weights,
        )
        retriever = Retriever.open(album, parts, states=mode)
    with retriever:
        with (
            continued(lambda: f"{album} holds {len(retriever)} images, all of them on disk"),
            progress_bars() as bars,
        ):
            report = retriever.add(
                list(sources),
                copy=copy,
                exif=exif,
                safety="auto" if safety else None,
                batch_size=batch_size,
                max_pixels=max_pixels,
                progress=bars,
            )
            retriever.save()
        if as_json:
            emit_json({"album": str(album.absolute()), "images": len(retriever), **asdict(report)})
        else:
            _say_report(sources, album, retriever, report)


def _check_index(album: Path, index_name: str | None) -> None:
    """Refuse an option that asks for another index than the album's."""
    from zsqretrieval.album.info import describe_album

    info = describe_album(album)
    if index_name and index_name != info.index["plugin"]:
        raise InvalidInputError(
            f"{album} was made with the index {info.index['plugin']!r}, not {index_name!r}; "
            "leave out --index, or make a new album"
        )


def _say_report(sources: list[str], album: Path, retriever: Retriever, report: AddReport) -> None:
    counts = counts_text(report)
    if not counts:
        from zsqretrieval.data.tars import IMAGE_SUFFIXES

        say(
            f"No images were found in {', '.join(sources)}. "
            f"Looked for {' '.join(sorted(IMAGE_SUFFIXES))} and tars."
        )
        return
    say(f"{counts} in {report.seconds:.1f} s; {len(retriever)} images in {album}.")
    name_skipped(report.skipped, say)
    name_skipped(report.mended, say, "mended")
    say_denied(report.denied)
    if len(retriever):
        say(f'Ask it something: zsq search {album} "a dog on the beach"')


def info(album: Album, as_json: AsJson = False) -> None:
    """Show what an album holds and what it was made with. Loads no model."""
    from zsqretrieval.album.info import describe_album

    facts = describe_album(album)
    if as_json:
        emit_json(asdict(facts))
        return
    encoder, saved, sizes = facts.encoder, facts.index, facts.bytes_on_disk
    state = "not saved" if not saved["saved"] else "up to date" if saved["up_to_date"] else "not up to date"
    rows = [
        ("images", str(facts.images)),
        ("encoder", f"{encoder['plugin'] or 'not a plugin'}, {encoder['dim']} dimensions"),
        ("fingerprint", encoder["fingerprint"]),
        ("index", f"{saved['plugin'] or 'not a plugin'}, {state}"),
        ("generator", _generator(facts.generator)),
    ]
    if facts.generator and facts.calibration:
        fusion = facts.calibration["fusion"]
        rows.append(("fusion", ", ".join([fusion["plugin"].replace("_", " "), *_settings(fusion["config"])])))
    for one in facts.states:
        made = f"{one['images']} of {facts.images} images, {one['dtype']}, by {one['fingerprint']}"
        rows.append(("image features", f"{made}, {human_size(one['bytes_on_disk'])}"))
    for style in facts.questions:
        found = f"{style['questions']} for {style['images']} images, {style['kept']} kept"
        rows.append((f"questions: {style['style']}", f"{found}, {style['answered']} answered"))
    rows += [
        (f"{part} on disk", human_size(sizes[part]))
        for part in ("catalog", "index", "images")
        if sizes[part] or part != "images"
    ]
    more = f", and {len(facts.fields) - _FIELDS} more" if len(facts.fields) > _FIELDS else ""
    rows.append(("fields", ", ".join(facts.fields[:_FIELDS]) + more))
    if facts.indexed_fields:
        rows.append(("indexed fields", ", ".join(facts.indexed_fields)))
    show(("album", facts.album), rows)
    if not facts.images:
        say("It is empty; add some images: zsq index FOLDER --out ALBUM")
    elif not saved["up_to_date"]:
        say("The next search updates the index; `zsq index` also saves it.")


def index_fields(
    album: Album,
    fields: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD...", help="Fields, as `zsq info` lists them.")
    ] = None,
) -> None:
    """Sort the values of exactly these fields, or of none, for faster filters. Loads no model."""
    from zsqretrieval.album.catalog import Catalog
    from zsqretrieval.album.info import find_catalog

    with Catalog.open(find_catalog(album)) as catalog:
        catalog.fields.index(fields or [])
        say(f"{album}: {', '.join(catalog.fields.indexed()) or 'no fields'} indexed.")


def _generator(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return "none"
    cached = {"disk": ["features kept on adding"], "lazy": ["features kept when a search needs them"]}.get(
        facts["states"], []
    )
    return ", ".join([facts["plugin"], *_settings(facts["config"]), *cached])


def _settings(config: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in config.items()]


def remove(
    album: Album,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, as `zsq search` prints them.")],
    trust_parts: TrustParts = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Remove images from an album, all of them or, when an id is unknown, none. Files are not touched."""
    with open_album(album, trust_parts=trust_parts) as retriever:
        before = len(retriever)
        retriever.remove(ids)
        retriever.save()
        removed, left = before - len(retriever), len(retriever)
    if as_json:
        emit_json({"album": str(album.absolute()), "removed": removed, "images": left})
    else:
        say(f"{removed} removed; {left} images in {album}.")

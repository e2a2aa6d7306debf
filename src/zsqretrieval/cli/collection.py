"""``zsq sync``, ``merge``, ``reencode``, ``add-embeddings`` and ``export``: an album as a whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsqretrieval.cli.console import (
    continued,
    counts_text,
    emit_json,
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
    MaxPixels,
    Safe,
    TrustParts,
    album_path,
    given_location,
    given_path,
    open_album,
    preset_with,
    read_lines,
)

if TYPE_CHECKING:
    from zsqretrieval.retriever import Retriever


def _report(album: Path, retriever: Retriever, report: Any, as_json: bool) -> None:
    if as_json:
        emit_json({"album": str(album.absolute()), "images": len(retriever), **asdict(report)})
        return
    would = "would be: " if getattr(report, "dry_run", False) else ""
    counts = counts_text(report) or "nothing to do"
    say(f"{would}{counts} in {report.seconds:.1f} s; {len(retriever)} images in {album}.")
    for name in ("skipped", "mended", "dropped"):
        name_skipped(getattr(report, name, ()), say, name)
    denied = getattr(report, "denied", None)
    say_denied(denied if isinstance(denied, dict) else {})


def sync(
    album: Album,
    folders: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="Folders to be in step with.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what would be added and removed.")
    ] = False,
    copy: Copy = False,
    exif: Exif = True,
    safety: Safe = True,
    trust_parts: TrustParts = False,
    device: Device = None,
    batch_size: BatchSize = 32,
    max_pixels: MaxPixels = 200_000_000,
    as_json: AsJson = False,
) -> None:
    """Bring an album in step with folders: add what is new, follow what moved, remove what is gone.

    A folder that is missing or unreadable is an error, and so is an empty one that the album has images from;
    then nothing is removed.
    """
    with open_album(album, trust_parts=trust_parts) as retriever:
        with continued("finished batches are on disk, nothing was removed"), progress_bars() as bars:
            report = retriever.sync(
                folders,
                dry_run=dry_run,
                copy=copy,
                exif=exif,
                safety="auto" if safety else None,
                batch_size=batch_size,
                max_pixels=max_pixels,
                progress=bars,
            )
            if not dry_run:
                retriever.save()
        if dry_run and not as_json:
            for name in ("added", "replaced", "moved", "updated", "removed"):
                for id in getattr(report, name):
                    say(f"{name}: {id}")
        _report(album, retriever, report, as_json)


def merge(
    album: Album,
    other: Annotated[Path, typer.Argument(metavar="OTHER", parser=album_path, help="Album to take over.")],
    trust_parts: TrustParts = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Take over the images of another album with the same encoder, without encoding them."""
    with open_album(album, trust_parts=trust_parts) as retriever:
        with continued("finished batches are on disk"), progress_bars() as bars:
            report = retriever.merge(other, progress=bars)
            retriever.save()
        _report(album, retriever, report, as_json)


def reencode(
    album: Album,
    preset: Annotated[str, typer.Option(help="Use this preset's encoder.")],
    encoder_weights: EncoderWeights = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove images that cannot be opened or encoded.")
    ] = False,
    trust_parts: TrustParts = False,
    device: Device = None,
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
) -> None:
    """Encode all images and stored questions of an album with another encoder.

    The album works as before until all is ready.
    """
    from zsqretrieval.album.info import describe_album
    from zsqretrieval.presets import Calibration

    chosen = preset_with(preset, encoder_weights=encoder_weights)
    generator = describe_album(album).generator
    pair = generator is None or generator["plugin"] == chosen.generator
    with open_album(album, trust_parts=trust_parts) as retriever:
        with continued("the album is as it was"), progress_bars() as bars:
            report = retriever.reencode(
                chosen.make_encoder(),
                calibration=chosen.calibration if pair else Calibration(),
                drop=drop,
                batch_size=batch_size,
                progress=bars,
            )
            retriever.save()
        _report(album, retriever, report, as_json)


def add_embeddings(
    album: Album,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            parser=given_location,
            help="Folder of clip-retrieval or zsq export; a path or a URL such as s3://bucket/folder.",
        ),
    ],
    preset: Annotated[
        str | None, typer.Option(help="Parts of a new album; its encoder made the vectors.")
    ] = None,
    safety: Safe = True,
    trust_parts: TrustParts = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Add vectors that the album's encoder made elsewhere (img_emb/*.npy, metadata/*.parquet).

    Images are not needed: rows without one take part in the first stage only.
    """
    from zsqretrieval.laion.embeddings import open_embeddings
    from zsqretrieval.retriever import Retriever

    open_embeddings(folder)  # a wrong folder makes no album
    with Retriever.open(album, preset, trust_parts=trust_parts) as retriever:
        with continued("finished batches are on disk"), progress_bars() as bars:
            report = retriever.add_embeddings(folder, safety="auto" if safety else None, progress=bars)
            retriever.save()
        _report(album, retriever, report, as_json)


def tune(
    album: Album,
    recall: Annotated[float, typer.Option(help="Share of the true nearest images to be found.")] = 0.95,
    k: Annotated[int, typer.Option("-k", min=1, help="Results per question.")] = 10,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="File of questions to measure with, one a line.",
            show_default="the album's questions, or captions",
        ),
    ] = None,
    trust_parts: TrustParts = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Choose the settings of a compressed index that reach a recall in the least time, by measuring."""
    texts = None if questions is None else read_lines(questions)
    with open_album(album, trust_parts=trust_parts) as retriever:
        tuning = retriever.tune(texts, recall=recall, k=k)
        retriever.save()
    if as_json:
        emit_json({"album": str(album.absolute()), **asdict(tuning)})
        return
    if tuning.chosen is None:
        say("few images: all are compared, so there is nothing to choose.")
        return
    columns = ("recall", "us a question", "components", "lists", "candidates a result")
    show(
        columns,
        (
            (f"{one.recall:.3f}", f"{1e6 * one.seconds:.0f}", *map(str, (one.reduced, one.probe, one.refine)))
            for one in tuning.curve
        ),
        numbers=columns,
    )
    one = tuning.chosen
    say(
        f"{'chosen' if tuning.reached else 'not reached; the best is'}: recall {one.recall:.3f} with "
        f"{one.probe} lists and {one.refine} candidates a result, {1e6 * one.seconds:.0f} us a question; "
        f"comparing all takes {1e6 * tuning.exact_seconds:.0f}."
    )


def export(
    album: Album,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", parser=given_path, help="New folder.")
    ],
    float32: Annotated[bool, typer.Option("--float32", help="Keep full precision.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the vectors and records of an album as numpy and parquet files, as clip-retrieval does.

    Loads no model.
    """
    from zsqretrieval.album.catalog import Catalog
    from zsqretrieval.album.embeddings import export as write
    from zsqretrieval.album.info import find_catalog
    from zsqretrieval.album.settings import AlbumSettings

    with Catalog.open(find_catalog(album)) as catalog, progress_bars() as bars:
        report = write(
            catalog, AlbumSettings.read(catalog).encoder, out.absolute(),
            dtype="float32" if float32 else "float16", shard_size=100_000, progress=bars,
        )  # fmt: skip
    if as_json:
        emit_json({"album": str(album.absolute()), "out": str(out.absolute()), **asdict(report)})
    else:
        say(f"{report.rows} vectors in {out}, in {report.seconds:.1f} s.")

"""``zsq laion``: metadata and embeddings of LAION and DataComp. Nothing here fetches a URL."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from zsqretrieval.cli.console import (
    continued,
    counts_text,
    emit_json,
    human_size,
    progress_bars,
    say,
    say_denied,
    show,
)
from zsqretrieval.cli.options import (
    Album,
    AsJson,
    Device,
    Safe,
    TrustParts,
    given_path,
    open_album,
    parse_where,
    preset_with,
)
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.laion.filter import Pool, Rules
    from zsqretrieval.laion.safety import Safety


Unknown: TypeAlias = Literal["drop", "keep"]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Parquet file, folder, pattern or URL.")]
MaxPunsafe = Annotated[float, typer.Option(min=0, max=1, help="Deny rows whose punsafe is above.")]
OnUnknown = Annotated[Unknown, typer.Option("--unknown", help="Rows without punsafe: deny them, or not.")]
Nsfw = Annotated[
    list[str] | None,
    typer.Option("--nsfw", metavar="TAG", help="Tag of the NSFW column that is allowed; may be repeated.",
                 show_default="UNLIKELY"),
]  # fmt: skip
MaxPwatermark = Annotated[float, typer.Option(min=0, max=1, help="Deny rows whose pwatermark is above.")]
Allow = Annotated[
    Path | None,
    typer.Option(
        metavar="LIST", parser=given_path, help="Deny rows that are not on this list of allow-list."
    ),
]
AllowBy = Annotated[
    str, typer.Option(metavar="COLUMN", help="Column of the list: url, md5, sha256, hash or uid.")
]


def _safety(
    max_punsafe: float,
    unknown: Unknown,
    nsfw: list[str] | None,
    max_pwatermark: float,
    allow: Path | None,
    allow_by: str,
) -> Safety:
    from zsqretrieval.laion.hashes import HashList
    from zsqretrieval.laion.safety import Safety

    return Safety(
        max_punsafe=max_punsafe, unknown=unknown, nsfw=tuple(nsfw or ("UNLIKELY",)),
        max_pwatermark=max_pwatermark, allow=None if allow is None else HashList.open(allow),
        allow_by=allow_by,
    )  # fmt: skip


def ingest(
    album: Album,
    embeddings: Annotated[
        str, typer.Option("--embeddings", metavar="FOLDER", help="Folder of clip-retrieval, or its URL.")
    ],
    metadata: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Folder of its metadata_*.parquet.", show_default="metadata in it"
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Parts of a new album; its encoder made the vectors.")
    ] = None,
    max_punsafe: MaxPunsafe = 0.45,
    unknown: OnUnknown = "drop",
    nsfw: Nsfw = None,
    max_pwatermark: MaxPwatermark = 0.8,
    allow: Allow = None,
    allow_by: AllowBy = "url",
    dedup: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="COSINE", help="Then remove near-duplicates: images at least that similar."
        ),
    ] = None,
    trust_parts: TrustParts = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Add published embeddings and their metadata to an album, without images.

    Rows that are not known to be safe, and those of the album's removal list, are left out.
    """
    from zsqretrieval.laion.embeddings import open_embeddings
    from zsqretrieval.retriever import Retriever

    safety = _safety(max_punsafe, unknown, nsfw, max_pwatermark, allow, allow_by)
    open_embeddings(embeddings, metadata=metadata)  # a wrong folder makes no album
    with Retriever.open(album, preset, trust_parts=trust_parts) as retriever:
        with continued("finished batches are on disk"), progress_bars() as bars:
            report = retriever.add_embeddings(embeddings, metadata=metadata, safety=safety, progress=bars)
            removed = 0 if dedup is None else retriever.remove_duplicates(dedup, progress=bars)
            retriever.save()
        if as_json:
            counts = {
                name: len(one) if isinstance(one, tuple) else one for name, one in asdict(report).items()
            }
            facts = {"album": str(album.absolute()), "images": len(retriever), "near_duplicates": removed}
            emit_json({**facts, **counts})
            return
        said = counts_text(report) or "nothing to do"
        say(f"{said} in {report.seconds:.1f} s; {len(retriever)} images in {album}.")
        say_denied(report.denied)
        if removed:
            say(f"{removed} near-duplicates removed.")


def search(
    album: Album,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of rows.")] = 10,
    where: Annotated[
        str | None, typer.Option(metavar="FILTER", help='Only rows of a filter: "width >= 512".')
    ] = None,
    trust_parts: TrustParts = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find rows of an album by a question, and print their URL and caption.

    Only the encoder compares them: rows without images have nothing that a generator could look at. `zsq
    search` has all other options.
    """
    selected = parse_where(where)
    with open_album(album, trust_parts=trust_parts) as retriever:
        ranking = retriever.search(question, k, where=selected, rerank=None)
    if as_json:
        emit_json({"album": str(album.absolute()), "query": ranking.query, "hits": ranking.to_dicts()})
    elif not len(ranking):
        say("Nothing found.")
    else:
        rows = [
            [str(n), f"{hit.score:.3f}", str(hit.metadata.get("url", hit.source)), hit.caption or ""]
            for n, hit in enumerate(ranking, start=1)
        ]
        show(("", "score", "url", "caption"), rows, numbers=("", "score"))


def stats(
    source: Source,
    max_punsafe: MaxPunsafe = 0.45,
    unknown: OnUnknown = "drop",
    nsfw: Nsfw = None,
    max_pwatermark: MaxPwatermark = 0.8,
    allow: Allow = None,
    allow_by: AllowBy = "url",
    as_json: AsJson = False,
) -> None:
    """Count rows, NULLs and values above thresholds in metadata, and what the rules would deny."""
    from zsqretrieval.laion.stats import describe

    safety = _safety(max_punsafe, unknown, nsfw, max_pwatermark, allow, allow_by)
    with progress_bars() as bars:
        found = describe(source, safety, bars)
    if as_json:
        emit_json({"source": source, **asdict(found)})
        return
    rows = [("files", f"{found.files}, {human_size(found.bytes)}"), ("rows", str(found.rows))]
    for name, filled in found.filled.items():
        parts = [f"{found.rows - filled} NULL"]
        if name in found.unreadable:
            parts[0] += f" ({found.unreadable[name]} unreadable)"
        parts += [f"{count} above {value}" for value, count in found.above.get(name, {}).items()]
        parts += [f"{count} {tag}" for tag, count in (found.nsfw if name == "nsfw" else {}).items()]
        rows.append((name, ", ".join(parts)))
    rows.append(("allowed", str(found.allowed)))
    rows += [(f"denied: {reason}", str(count)) for reason, count in found.denied.items()]
    show(("metadata", source), rows)


def allow_list(
    source: Source,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="LIST", parser=given_path, help="Folder of the list.")
    ],
    by: Annotated[str, typer.Option(help="Column: url, md5, sha256, hash or uid.")] = "url",
) -> None:
    """Make a list of rows that may be used of metadata, such as those of Re-LAION."""
    from zsqretrieval.laion.hashes import HashList

    say(f"{len(HashList.of_metadata(out, source, by))} rows in {out}.")


def remove(
    album: Album,
    hashes: Annotated[
        Path,
        typer.Option(
            "--hashes",
            metavar="FILE",
            parser=given_path,
            help="Text with a URL, MD5, SHA-256, uid or LAION hash a line; or .npy or .parquet of these.",
        ),
    ],
    embeddings: Annotated[
        list[Path] | None,
        typer.Option("--embeddings", metavar="FOLDER", parser=given_path, help="Also from these folders."),
    ] = None,
    trust_parts: TrustParts = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Remove the images that a list names, for good: they cannot be added to the album again.

    A search for each removed vector shows that it is gone.
    """
    from zsqretrieval.album.removal import removal_list
    from zsqretrieval.laion.cleanup import remove_from_folder

    with open_album(album, trust_parts=trust_parts) as retriever:
        with continued("the list is on disk, and nothing on it can be added"), progress_bars() as bars:
            report = retriever.remove_listed(hashes, progress=bars)
        removed = removal_list(album)
        assert removed is not None
        rows = {str(folder): remove_from_folder(folder, removed) for folder in embeddings or ()}
    if as_json:
        emit_json({"album": str(album.absolute()), **asdict(report), "folders": rows})
        return
    say(f"{report.removed} removed in {report.seconds:.1f} s; {report.images} images in {album}.")
    say(
        f"Searches for the removed vectors found {report.found_before} of them before, {report.found_after} "
        f"afterwards. The removal list has {report.listed} entries."
    )
    for folder, count in rows.items():
        say(f"{count} rows removed from {folder}.")


def filter_rows(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Tables; a folder of embeddings (img_emb and text_emb); or tars of images."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", parser=given_path, help="Folder of the results.")
    ],
    rules: Annotated[
        bool, typer.Option("--rules/--no-rules", help="Also filter by size and caption.")
    ] = True,
    min_side: Annotated[int, typer.Option(min=0, help="Pixels of the shorter side.")] = 200,
    max_aspect: Annotated[float, typer.Option(min=1, help="Longer side over shorter side.")] = 3.0,
    min_words: Annotated[int, typer.Option(min=0, help="Words of the caption.")] = 3,
    min_chars: Annotated[int, typer.Option(min=0, help="Characters of the caption.")] = 6,
    language: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Value of the column language; may be repeated.")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Smallest CLIP score.")] = None,
    clip_share: Annotated[float | None, typer.Option(help="Keep this share by CLIP score.")] = None,
    likelihood: Annotated[
        float | None, typer.Option(help="Smallest likelihood of the caption, in nats per token.")
    ] = None,
    likelihood_share: Annotated[
        float | None, typer.Option(help="Keep this share by likelihood of the caption.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Parts that score tars.")] = "mini",
    safety: Safe = True,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Choose rows of a pool by rules, CLIP score and likelihood; write a DataComp subset file for each.

    intersection.npy has the rows that pass all of them, report.json the numbers.
    """
    from zsqretrieval.laion.filter import Rules, choose, write_choice

    least = {"clip": clip, "likelihood": likelihood}
    share = {"clip": clip_share, "likelihood": likelihood_share}
    used = {name for limits in (least, share) for name, limit in limits.items() if limit is not None}
    limits = Rules(min_side, max_aspect, min_words, min_chars, tuple(language or ())) if rules else None
    pool = _pool(source, limits, used, preset, safety)
    masks, report = choose(
        pool,
        {name: one for name, one in least.items() if one is not None},
        {name: one for name, one in share.items() if one is not None},
    )
    write_choice(out, pool, masks, report)
    if as_json:
        emit_json({"out": str(out.absolute()), **asdict(report)})
        return
    say(f"{report.rows} rows in the pool.")
    say_denied(report.denied)
    rows = [
        [name, str(count), f"{report.thresholds[name]:.4g}" if name in report.thresholds else ""]
        for name, count in report.kept.items()
    ]
    show(("filter", "kept", "threshold"), rows, numbers=("kept", "threshold"))
    if report.agreement:
        pairs = [
            [f"{one['a']}, {one['b']}", *(str(one[name]) for name in ("both", "only_a", "only_b", "neither")),
             f"{one['jaccard']:.3f}", f"{one['kappa']:.3f}"]
            for one in report.agreement
        ]  # fmt: skip
        columns = ("both", "only first", "only second", "neither", "Jaccard", "kappa")
        show(("filters", *columns), pairs, numbers=columns)
    say(f"Subset files and report.json in {out}.")


def _pool(source: str, rules: Rules | None, used: set[str], preset: str, safety: bool) -> Pool:
    """The pool of a source, with the scores that are used."""
    from zsqretrieval.data.tars import TAR_SUFFIXES
    from zsqretrieval.laion.filter import embedding_parts, image_parts, metadata_parts, pool_of
    from zsqretrieval.laion.image_shards import open_image_shards
    from zsqretrieval.laion.safety import unaltered
    from zsqretrieval.laion.storage import list_files

    how: Any = "auto" if safety else None
    if (Path(source) / "img_emb").is_dir():
        return pool_of(embedding_parts(source), rules, how)
    try:
        tars = list_files(source, TAR_SUFFIXES)
    except InvalidInputError:
        tars = []
    if not tars:
        return pool_of(metadata_parts(source), rules, how)
    denied: dict[str, int] = {}
    images = (image for shard in open_image_shards(source) for image in unaltered(shard.images(), denied))
    parts = preset_with(preset)
    encoder = parts.make_encoder() if "clip" in used else None
    lazy = parts.make_generator() if "likelihood" in used else None
    with progress_bars() as bars:
        if lazy is None:
            return pool_of(image_parts(images, encoder, None, progress=bars), rules, how, denied)
        with lazy.using() as generator:
            return pool_of(image_parts(images, encoder, generator, progress=bars), rules, how, denied)

"""Images with text in WebDataset shards, as img2dataset and LAION have them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zsqretrieval.data.sources import read_webdataset
from zsqretrieval.errors import IntegrityError, InvalidInputError, MissingDependencyError
from zsqretrieval.evaluation.datasets._files import found
from zsqretrieval.evaluation.datasets.dataset import ALT_TEXT, CAPTION, Dataset, Query
from zsqretrieval.evaluation.encoder_bench import read_captioned
from zsqretrieval.types import Image

__all__ = ["read_laion", "read_shards"]

_LAION = "LAION's metadata by img2dataset (--output_format webdataset or parquet)"
_PUNSAFE = 0.45  # what LAION's own release "research-safe" leaves out


def read_shards(folder: Path, split: str = "test") -> Dataset:
    """Read captioned WebDataset shards, ``{split}-*.tar``.

    Captions are the list ``captions`` of a sample's ``{key}.json``, or its ``{key}.txt`` alone
    (:func:`~zsqretrieval.evaluation.encoder_bench.read_captioned`). Layout of img2dataset's output.

    Args:
        folder: where the shards are.
        split: what their names begin with.

    Returns:
        Images named ``{shard}/{key}`` and held in memory, captions ``{shard}/{key}#{n}``.

    Raises:
        InvalidInputError: there are no such shards, or a sample has no caption.
        IntegrityError: a shard is damaged.
    """
    gallery, queries, qrels = [], [], {}
    for sample in read_captioned(found(Path(folder), "WebDataset shards", "whoever made them"), split):
        gallery.append(sample.image)
        for n, caption in enumerate(sample.captions):
            query = Query(f"{sample.image.id}#{n}", caption, CAPTION, sample.image.source)
            queries.append(query)
            qrels[query.id] = {str(sample.image.id): 1}
    return Dataset(f"{Path(folder).absolute().name} {split}", tuple(gallery), tuple(queries), qrels)


def read_laion(folder: Path, *, max_punsafe: float | None = _PUNSAFE) -> Dataset:
    """Read a slice of LAION for known-item search: an alt text looks for its own image.

    The slice is what img2dataset wrote: shards ``*.tar`` with ``{key}.jpg`` and ``{key}.json`` (``caption``,
    ``url``, and the columns kept, such as ``punsafe`` and ``similarity``), or ``*.parquet`` with the encoded
    image as the column ``jpg`` (the other columns alike; rows without an image are passed over). Names of
    columns: rom1504/img2dataset and the blog post of LAION-5B.

    An alt text that several images have counts as found with any of them. Images without one stay in the
    gallery. What LAION's filter kept has a cosine of at least 0.28 by CLIP ViT-B/32, so every number measured
    here favours CLIP; the data set says so in its notes.

    Args:
        folder: where the shards or tables are. Where there are both, the tables are the metadata of the
            shards, and the shards are read.
        max_punsafe: images whose ``punsafe`` is higher, or unknown, are left out unread; None keeps all.

    Returns:
        Images named ``{file}/{key}`` and held in memory.

    Raises:
        InvalidInputError: there is neither, a column is missing, or nothing is left.
        MissingDependencyError: parquet without pyarrow.
        IntegrityError: a file is damaged.
    """
    folder = found(Path(folder), "a slice of LAION", _LAION)
    shards, tables = sorted(folder.glob("*.tar")), sorted(folder.glob("*.parquet"))
    if shards:  # img2dataset writes a table of metadata beside every shard
        images: Iterable[Image] = read_webdataset(shards)
    elif tables:
        images = _read_parquet(tables)
    else:
        raise InvalidInputError(f"{folder} holds neither *.tar nor *.parquet; make them from {_LAION}")
    gallery: list[Image] = []
    texts: dict[str, dict[str, int]] = {}
    places: dict[str, str] = {}
    unsafe = 0
    for image in images:
        if max_punsafe is not None and not _punsafe(image.metadata) <= max_punsafe:
            unsafe += 1
            continue
        gallery.append(image)
        text = (image.caption or "").strip()
        if text:
            texts.setdefault(text, {})[str(image.id)] = 1
            places.setdefault(text, image.source)
    notes = ["LAION kept pairs that CLIP ViT-B/32 gave a cosine of at least 0.28: the numbers favour CLIP"]
    if unsafe:
        notes.append(f"{unsafe} images left out: punsafe above {max_punsafe} or unknown")
    if unsafe and not gallery:
        raise InvalidInputError(
            f"{folder}: all {unsafe} images have a punsafe above {max_punsafe}, or none at all; keep that "
            "column when fetching, or pass max_punsafe=None knowing what LAION contains"
        )
    queries = [Query(f"alt-{n}", text, ALT_TEXT, places[text]) for n, text in enumerate(texts)]
    qrels = {query.id: texts[query.text] for query in queries}
    return Dataset(
        f"LAION slice {folder.absolute().name}", tuple(gallery), tuple(queries), qrels, tuple(notes)
    )


def _punsafe(metadata: Mapping[str, Any]) -> float:
    value = next((value for name, value in metadata.items() if name.lower() == "punsafe"), None)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _read_parquet(tables: Iterable[Path]) -> Iterator[Image]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingDependencyError(
            "pyarrow", "reading parquet", "pip install 'zsqretrieval[parquet]'"
        ) from error
    for path in tables:
        try:
            table = parquet.ParquetFile(path)
            if missing := {"jpg", "caption"} - set(table.schema_arrow.names):
                raise InvalidInputError(
                    f"{path.name}: has no column {min(missing)!r}, only {table.schema_arrow.names}; metadata "
                    "alone is not enough, the images must be in the table"
                )
            row = -1
            for batch in table.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    row += 1
                    if isinstance(record["jpg"], bytes):
                        yield _image(path, row, record)
        except (ArrowException, OSError) as error:  # pyarrow's own complaints about damage are of both
            raise IntegrityError(f"{path}: not a whole parquet file: {error}; fetch it again") from error


def _image(path: Path, row: int, record: dict[str, Any]) -> Image:
    content, caption = record.pop("jpg"), record.pop("caption")
    key = record.get("key")
    return Image(
        content=content,
        source=f"{path.name}, row {row}",
        id=f"{path.stem}/{key if isinstance(key, str) else row}",
        caption=caption if isinstance(caption, str) else None,
        metadata=record,
    )

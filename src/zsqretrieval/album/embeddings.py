"""Vectors that were encoded elsewhere: added without their images, and exported.

A row whose source names an image that can be read now has the SHA-256 of that image, like any other image of
the album. Any other row has the SHA-256 of its id and vector, and ``-vector`` behind it: no image has such a
digest, so nothing is ever opened for it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.batches import batched, tell
from zsqretrieval._util.checks import check_counts, check_sequence
from zsqretrieval._util.untrusted import mended_json
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.ingest import Adder, AddReport, Tally, names_of
from zsqretrieval.data.images import decode, digest, in_threads, path_text
from zsqretrieval.data.loader import NewImage, Skipped
from zsqretrieval.data.sources import VECTOR, Reopener
from zsqretrieval.encoders.checked import TOLERANCE
from zsqretrieval.errors import ImageError, InvalidInputError, MismatchError
from zsqretrieval.indexes.checks import as_array
from zsqretrieval.laion.arrays import StoredArray
from zsqretrieval.laion.embeddings import VectorRow, open_embeddings, writing_embeddings
from zsqretrieval.laion.hashes import HashList
from zsqretrieval.laion.safety import NO_RULES, Denied, Safety, SafetyLike, safety_for
from zsqretrieval.laion.storage import File, Location, opened_parquet
from zsqretrieval.protocols import Encoder
from zsqretrieval.types import Image, Progress

_IMAGES_AT_ONCE = 16  # opened to learn their digests
_URL = re.compile(r"(https?|s3|gs)://")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some vectors, float [n, dim], with a row each."""

    vectors: NDArray[np.floating[Any]] | StoredArray
    rows: Iterable[VectorRow]
    name: str  # in errors
    mapped: bool  # whether the vectors are in a file, which is checked as it is read
    kept: NDArray[np.int64] | None = None  # positions of the vectors that the rows describe; all when None

    def __len__(self) -> int:
        return len(self.vectors if self.kept is None else self.kept)


def given_block(
    vectors: ArrayLike,
    ids: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any] | None] | None,
    sources: Sequence[str | os.PathLike[str]] | None,
    captions: Sequence[str | None] | None,
    safety: SafetyLike,
    removed: HashList | None,
    denied: Denied,
) -> Block:
    """One block of vectors and what comes with each; all but the lengths of the vectors is checked.

    Without denied rows, which are counted by reason.
    """
    array = as_array(vectors, "vectors")
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InvalidInputError(f"vectors must be float [n, dim], not {array.dtype} {list(array.shape)}")
    given = {"ids": ids, "metadata": metadata, "sources": sources, "captions": captions}
    kinds = {"ids": str, "metadata": Mapping, "sources": (str, os.PathLike), "captions": str}
    for name, values in given.items():
        if values is None:
            continue
        values = values.tolist() if hasattr(values, "tolist") else values  # of NumPy and pandas
        check_sequence(values, name)
        if len(values) != len(array):
            raise InvalidInputError(f"there are {len(array)} vectors, but {len(values)} {name}")
        for n, one in enumerate(values):
            optional = name in ("metadata", "captions") and one is None
            if not optional and not isinstance(one, cast(Any, kinds[name])):
                raise InvalidInputError(f"{name}[{n}] must not be {one!r}; nothing was added")
        given[name] = values
    columns: Any = [
        itertools.repeat(None, len(array)) if values is None else values for values in given.values()
    ]
    rows = [
        VectorRow(id, None if source is None else path_text(source), caption, facts or {})
        for id, facts, source, caption in zip(*columns, strict=True)
    ]
    names = Counter(row.source if row.id is None else row.id for row in rows)
    if repeated := [name for name, n in names.items() if n > 1 and name is not None]:
        raise InvalidInputError(f"{repeated[0]!r} names several vectors; give each an id; nothing was added")
    mapped = isinstance(vectors, np.memmap)
    rules = _rules(safety, {key for row in rows for key in row.metadata}, removed)
    if rules is None:
        return Block(array, rows, "vectors", mapped)
    facts = [_named_by_source(row) for row in rows]
    mask = rules.mask_rows(facts, denied)
    return Block(array, itertools.compress(rows, mask), "vectors", mapped, np.flatnonzero(mask))


def _named_by_source(row: VectorRow) -> Mapping[str, Any]:
    """The metadata of a row, and its source where that is a URL."""
    if "://" not in (row.source or ""):
        return row.metadata
    others = {key: value for key, value in row.metadata.items() if str(key).lower() != "image_path"}
    named = any(str(key).lower() == "url" and value is not None for key, value in others.items())
    return {**({} if named else {"url": row.source}), **others, "image_path": row.source}


def _rules(safety: SafetyLike, names: Collection[str], removed: HashList | None) -> Safety | None:
    """The rules for rows with columns of these names, and the album's removal list."""
    rules = safety_for(safety, names)
    return rules if removed is None else replace(rules or NO_RULES, removed=removed)


def folder_blocks(
    folder: Location,
    metadata: Location | None,
    encoder: Encoder,
    safety: SafetyLike,
    removed: HashList | None,
    denied: Denied,
) -> list[Block]:
    """The shards of a folder of embeddings, without denied rows, which are counted by reason.

    A MismatchError if the folder states another encoder.
    """
    found = open_embeddings(folder, metadata=metadata)
    if found.encoder is not None:
        check_fingerprint(found.encoder, encoder, str(folder))
    tables = [one.table for one in found.shards]
    rules = _rules(safety, {name for table in tables for name in _column_names(table)}, removed)
    if rules is None:
        return [Block(one.vectors, one.rows(), str(one.file), True) for one in found.shards]
    masks = [rules.mask_table(table, denied) for table in tables]
    return [
        Block(one.vectors, one.rows(mask), str(one.file), True, np.flatnonzero(mask))
        for one, mask in zip(found.shards, masks, strict=True)
    ]


def _column_names(table: File) -> list[str]:
    with opened_parquet(table) as opened:
        return list(opened.schema_arrow.names)


def check_fingerprint(stated: str, encoder: Encoder, where: str) -> None:
    """Check that vectors are of an encoder, by its fingerprint.

    Raises:
        MismatchError: they are not; names both.
    """
    if stated != encoder.fingerprint:
        raise MismatchError(
            f"{where}: of the encoder {stated!r}, but the album's is {encoder.fingerprint!r}, so they cannot "
            "be compared; use an album of that encoder"
        )


Write: TypeAlias = Callable[[list[NewImage], "np.dtype[Any]", Reopener, Tally], None]
"""Writes and counts a batch of images with vectors; the dtype is that in which the vectors were given."""


def add_blocks(
    blocks: Sequence[Block],
    encoder: Encoder,
    write: Write,
    *,
    denied: Denied,
    batch_size: int,
    progress: Progress | None,
) -> AddReport:
    """As :meth:`Retriever.add_embeddings <zsqretrieval.retriever.Retriever.add_embeddings>`."""
    tally = Tally(denied)
    _check_blocks(blocks, encoder, batch_size)
    done, total = 0, sum(map(len, blocks))
    with Reopener() as files:
        for block in blocks:
            for n, rows in enumerate(batched(block.rows, batch_size)):
                vectors = _checked_rows(block, n * batch_size, batch_size)
                images = [new_image(vector, row) for vector, row in zip(vectors, rows, strict=True)]
                tally.mended += [Skipped(one.source, "; ".join(one.notes)) for one in images if one.notes]
                write(images, block.vectors.dtype, files, tally)
                done += len(rows)
                tell(progress, "adding vectors", done, total)
    return tally.report()


def write_rows(
    adder: Adder, images: list[NewImage], dtype: np.dtype[Any], files: Reopener, tally: Tally
) -> None:
    """Write a batch into an album; see :data:`Write`."""
    batch = _Batch(adder.catalog, files, dtype)
    distinct = batch.distinct(images)
    tally.repeated += len(images) - len(distinct)
    tally.count(adder.write(distinct, batch.known, files))


def _check_blocks(blocks: Sequence[Block], encoder: Encoder, batch_size: int) -> None:
    """Check the dim of vectors, and the length of those in memory; errors as :func:`add_blocks`."""
    check_counts(batch_size=batch_size)
    for block in blocks:
        if block.vectors.shape[1] != encoder.dim:
            raise MismatchError(
                f"{block.name}: of dim {block.vectors.shape[1]}, but the album's encoder "
                f"{encoder.fingerprint!r} makes vectors of dim {encoder.dim}; use an album of their encoder"
            )
        for first in () if block.mapped else range(0, len(block), batch_size):
            _checked_rows(block, first, batch_size)


def _checked_rows(block: Block, first: int, count: int) -> NDArray[np.float32]:
    """Some vectors as float32; an InvalidInputError names the first row that is no unit vector."""
    begin, end, within = first, first + count, slice(None)
    if block.kept is not None:
        places = block.kept[first : first + count]
        begin, end, within = int(places[0]), int(places[-1]) + 1, places - places[0]
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused
        vectors = np.asarray(block.vectors[begin:end])[within].astype(np.float32)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    bad = ~(np.abs(lengths - 1) <= TOLERANCE)  # also for NaN
    if bad.any():
        row = int(bad.argmax())
        place = first + row if block.kept is None else block.kept[first + row]
        found = "not finite" if not np.isfinite(lengths[row]) else f"of length {lengths[row]:.4g}"
        kept = "batches before it were added" if block.mapped and first else "nothing was added"
        raise InvalidInputError(
            f"{block.name}: row {place} is {found}, not of length 1; {kept}. Divide every vector by "
            "its length, and leave out those that are zero or not finite"
        )
    return vectors


class _Batch:
    """Rows on their way into an album; ``known`` has the records of those that are in it, by digest."""

    def __init__(self, catalog: Catalog, files: Reopener, dtype: np.dtype[Any]) -> None:
        self._catalog, self._files, self._dtype = catalog, files, dtype
        self.known: dict[str, Record] = {}

    def distinct(self, found: Sequence[NewImage]) -> list[NewImage]:
        """The rows, each digest once; known ones without a vector.

        A row is known by its id and vector, which is compared at the precision it has here.
        """
        present = self._present(found)
        unseen: list[NewImage] = []
        for one in found:
            alike = [
                record
                for record, vector in present.get(one.id, ())
                if np.array_equal(vector.astype(self._dtype), cast(Any, one.vector).astype(self._dtype))
            ]
            record = min(alike, key=lambda record: record.source != one.source, default=None)
            if record is None or record.digest.endswith(VECTOR):
                unseen.append(one)
            if record is not None:
                one.digest = record.digest
                self.known[record.digest] = record
        look(self._files, unseen)
        self.known |= self._catalog.by_digest(one.digest for one in found if one.digest not in self.known)
        for one in found:
            if one.digest in self.known:
                one.vector = None
        return list({one.digest: one for one in reversed(found)}.values())[::-1]

    def _present(self, images: Sequence[NewImage]) -> dict[str, list[tuple[Record, NDArray[np.float32]]]]:
        """The images of the album that may have one of the ids, with their vectors."""
        found: dict[str, list[tuple[Record, NDArray[np.float32]]]] = {}
        with self._catalog.reading():
            records = self._catalog.namesakes(one.id for one in images)
            vectors = self._catalog.log.get([record.key for record in records])
        for record, vector in zip(records, vectors, strict=True):
            for name in names_of(record.id):
                found.setdefault(name, []).append((record, vector))
        return found


def look(files: Reopener, images: Sequence[NewImage]) -> None:
    """Give those whose source is an image its digest and size."""
    for some in batched(images, _IMAGES_AT_ONCE):
        opened = [(one, image) for one in some if (image := _open(files, one.source)) is not None]
        for (one, _), facts in zip(opened, in_threads(_facts, [image for _, image in opened]), strict=True):
            if facts is not None:
                one.digest, one.width, one.height, one.bytes = facts


def new_image(vector: NDArray[np.float32], row: VectorRow) -> NewImage:
    """A row as an image of the album, without its image."""
    source = row.source
    if source is not None and not os.path.isabs(source) and os.path.isfile(source):  # noqa: PTH113, PTH117
        source = path_text(Path(source).absolute())
    named = row.id or source or ""
    sha256 = hashlib.sha256(f"{len(named)} {named}".encode(errors="surrogatepass"))
    sha256.update(vector.astype("<f4").tobytes())
    id = named or sha256.hexdigest()[:16]
    (texts, metadata), notes = mended_json([[id, source or id, row.caption or None], dict(row.metadata)])
    return NewImage(
        id=texts[0], source=texts[1], bytes=0, digest=sha256.hexdigest() + VECTOR, caption=texts[2],
        metadata=metadata, vector=vector, notes=notes,
        width=_pixels(metadata, "width"), height=_pixels(metadata, "height"),
    )  # fmt: skip


def _pixels(metadata: Mapping[str, Any], side: str) -> int:
    """A side of an image that is not at hand, by its metadata, so that filters find it; else 0."""
    names = (side, side.upper(), f"original_{side}")
    given = next((metadata[name] for name in names if metadata.get(name) is not None), 0)
    return int(given) if isinstance(given, int | float) and 0 < given < 2**31 else 0


def _open(files: Reopener, source: str) -> Image | None:
    if _URL.match(source):
        return None  # never fetched
    try:
        return files.open(source)
    except ImageError:
        return None


def _facts(image: Image) -> tuple[str, int, int, int] | None:
    """Digest, width, height and bytes of an image; None if it is none."""
    try:
        width, height = decode(image).size
    except ImageError:
        return None
    assert isinstance(image.content, bytes)
    return digest(image), width, height, len(image.content)


# --- export -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Number of exported vectors, and the time taken in seconds."""

    rows: int
    seconds: float


def export(
    catalog: Catalog,
    encoder: str,
    folder: Path,
    *,
    dtype: Literal["float16", "float32"],
    shard_size: int,
    progress: Progress | None,
) -> ExportReport:
    """Write all vectors and records of a catalog to a folder of embeddings."""
    begin = time.perf_counter()
    check_counts(shard_size=shard_size)
    if dtype not in ("float16", "float32"):
        raise InvalidInputError(f"dtype must be 'float16' or 'float32', not {dtype!r}")
    rows, total = 0, len(catalog)
    with writing_embeddings(
        folder, encoder=encoder, dim=catalog.dim, dtype=dtype, shard_size=shard_size
    ) as write:
        for batch in batched(catalog.iter_records(), 4096):
            records, vectors = catalog.present([one.key for one in batch])
            write(vectors, [VectorRow(one.id, one.source, one.caption, one.metadata) for one in records])
            rows += len(records)
            tell(progress, "exporting vectors", rows, total)
    return ExportReport(rows, time.perf_counter() - begin)

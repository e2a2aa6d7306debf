"""Numbers about metadata of LAION, from one pass over the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zsqretrieval._util.batches import tell
from zsqretrieval.laion.metadata import COLUMNS, read_metadata
from zsqretrieval.laion.safety import Denied, Safety
from zsqretrieval.laion.storage import Location, list_files, parquet_module
from zsqretrieval.types import Progress

ABOVE: Mapping[str, tuple[float, ...]] = {
    "punsafe": (0.45, 0.5, 0.95),  # Re-LAION's research-safe, LAION's statistics, Re-LAION's research
    "pwatermark": (0.5, 0.8),
    "similarity": (0.26, 0.28, 0.3),  # the first two are LAION's own
    "width": (199, 255, 511, 1023),
    "height": (199, 255, 511, 1023),
}
"""Values of which the rows above are counted, by column."""


@dataclass(frozen=True, slots=True)
class MetadataStats:
    """Numbers about some tables; all values are JSON.

    Attributes:
        files: number of tables.
        bytes: their size.
        rows: of all tables.
        filled: cells that are neither NULL nor unreadable, by canonical column; a column that is in no table
            is absent.
        unreadable: cells that could not be read as the type of their column.
        above: rows above some values (:data:`ABOVE`), by column and value.
        nsfw: rows by tag.
        allowed: rows that the rules allow.
        denied: rows that they deny, by reason.
    """

    files: int
    bytes: int
    rows: int
    filled: Mapping[str, int]
    unreadable: Mapping[str, int]
    above: Mapping[str, Mapping[str, int]]
    nsfw: Mapping[str, int]
    allowed: int
    denied: Mapping[str, int]


def describe(source: Location, safety: Safety, progress: Progress | None = None) -> MetadataStats:
    """Read metadata once; arguments and errors as for :func:`~zsqretrieval.laion.metadata.read_metadata`."""
    parquet_module()  # or says what to install
    import pyarrow as pa
    from pyarrow import compute as pc

    files = list_files(source, ".parquet")
    filled, unreadable, nsfw = Counter[str](), Counter[str](), Counter[str]()
    above: dict[str, Counter[str]] = {}
    denied: Denied = {}
    rows = allowed = 0
    for one in read_metadata(source):
        batch: Any = one.batch
        rows += batch.num_rows
        unreadable.update(one.unreadable)
        for name in (name for name in COLUMNS if name in batch.schema.names):
            column = batch.column(name)
            filled[name] += len(column) - column.null_count
            for value in ABOVE.get(name, ()):
                hits = pc.sum(pc.greater(column, pa.scalar(value).cast(column.type))).as_py() or 0
                above.setdefault(name, Counter())[f"{value:g}"] += hits
        if "nsfw" in batch.schema.names:
            counts = pc.value_counts(batch.column("nsfw")).to_pylist()
            nsfw.update({str(tag["values"]): tag["counts"] for tag in counts})
        allowed += int(safety.mask(batch, denied).sum())
        tell(progress, "reading metadata", rows, None)
    size = sum(file.size for file in files)
    return MetadataStats(
        len(files), size, rows, dict(filled), dict(unreadable), {k: dict(v) for k, v in above.items()},
        dict(nsfw.most_common(20)), allowed, denied,
    )  # fmt: skip

"""Embedding of tars: one tar in, one file of vectors and one table out, as clip-retrieval writes them.

tar -> samples -> pixels -> vectors -> img_emb/img_emb_0003.npy, metadata/metadata_0003.parquet
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts
from zsqretrieval._util.files import atomic_write
from zsqretrieval.data.loader import Skipped
from zsqretrieval.encoders.checked import encode_each
from zsqretrieval.errors import ImageError
from zsqretrieval.laion.embeddings import FACTS, VectorRow, table_of
from zsqretrieval.laion.shards import Run
from zsqretrieval.laion.storage import parquet_module
from zsqretrieval.protocols import Encoder

_AHEAD = 4  # batches of a group, so that an encoder can prepare one while it computes another


@final
class Embed:
    """The task of embedding: float16 unit vectors [n, dim], and a table whose row i describes vector i.

    Args:
        encoder: makes the vectors.
        batch_size: images encoded together; another one may change the last bit of a vector.
        size_hint: the encoder shrinks the shorter side to this many pixels, so JPEGs of twice as many may be
            decoded smaller: faster, with slightly other vectors than an album's. None decodes in full.
    """

    name = "embed"

    def __init__(self, encoder: Encoder, *, batch_size: int = 64, size_hint: int | None = None) -> None:
        check_counts(batch_size=batch_size)
        check_counts(or_none=True, size_hint=size_hint)
        parquet_module()
        self._encoder, self._together = encoder, batch_size
        self.batch_size, self.size_hint = _AHEAD * batch_size, size_hint
        self.facts: Mapping[str, Any] = {
            "encoder": encoder.fingerprint,
            "dim": encoder.dim,
            "dtype": "float16",
            **({} if size_hint is None else {"size_hint": size_hint}),
        }

    def files(self, number: str) -> Sequence[str]:
        """Vectors and table."""
        return f"img_emb/img_emb_{number}.npy", f"metadata/metadata_{number}.parquet"

    def run(self, run: Run, files: Sequence[Path]) -> int:
        """Embed the samples of a shard; those that the encoder cannot take are refused."""
        vectors: list[NDArray[np.float16]] = []
        rows: list[VectorRow] = []
        for pictures, samples in run.groups:
            with run.stage("encode"):
                encoded = encode_each(self._encoder, list(pictures.values()), batch_size=self._together)
            by_digest = dict(zip(pictures, encoded, strict=True))
            for one in samples:
                vector = by_digest[one.digest]
                if isinstance(vector, ImageError):
                    run.refused.append(Skipped(one.source, vector.reason))
                    continue
                vectors.append(vector.astype(np.float16))
                rows.append(VectorRow(one.id, one.source, one.caption, one.metadata))
        with run.stage("write"):
            with files[0].open("wb") as file:
                stacked = np.stack(vectors) if vectors else np.empty((0, self._encoder.dim), np.float16)
                np.save(file, stacked, allow_pickle=False)
            parquet_module().write_table(table_of(rows), files[1])
        return len(rows)

    def finish(self, out: Path, stats: Sequence[Mapping[str, Any]]) -> None:
        """State encoder and number of rows, as :mod:`zsqretrieval.laion.embeddings` does."""
        facts = {**self.facts, "rows": sum(one["images"] for one in stats)}
        with atomic_write(out / FACTS) as temporary:
            temporary.write_text(json.dumps(facts, indent=2), encoding="ascii")

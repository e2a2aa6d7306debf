"""Cost of a batch of questions over its raw cost, encoder and index alone; or re-ranked, over one by one.

python -m benchmarks.batches --images 100000 --questions 1000 --json
python -m benchmarks.batches --tar FLICKR8K/dev-00000.tar --images 1000 --questions 100 --candidates 50 --json
python -m benchmarks.batches --tar FLICKR8K/dev-00000.tar --images 200 --questions 20 --kosmos-layers 4 --json
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.output import command_line, run, write_results
from benchmarks.random_models import random_kosmos
from benchmarks.synthetic import CliplikeVectors, cliplike
from zsqretrieval.data.tars import read_webdataset
from zsqretrieval.encoders.checked import encode_texts
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.presets import PRESETS
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.types import Image

_K = 10
_BATCH = 4096
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Batches:
    """Medians of interleaved rounds."""

    raw_s: float  # encoder and index
    batch_s: float  # Retriever.search of the list
    single_s: float  # Retriever.search, one by one
    ratio: float  # median of the rounds' batch over raw


class Lookup:
    """An encoder that costs nothing: question "n" has vector n of the queries."""

    fingerprint = "lookup"

    def __init__(self, data: CliplikeVectors) -> None:
        self.dim = data.gallery.shape[1]
        self._vectors = data.text_queries

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Look up vectors: float32 [n, dim]."""
        return self._vectors[[int(text) % len(self._vectors) for text in texts]]

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Refuse images: the gallery is added by its vectors."""
        raise NotImplementedError


def bench_batches(
    encoder: Encoder, gallery: NDArray[np.float32], folder: Path, questions: int, rounds: int = _ROUNDS
) -> Batches:
    """Measure in an album in an empty folder, without a generator."""
    texts = [str(n) for n in range(questions)]
    with Retriever(
        encoder, HNSWIndex(encoder.dim, fingerprint=encoder.fingerprint), path=folder
    ) as retriever:
        retriever.add_embeddings(gallery, ids=[f"{n}.jpg" for n in range(len(gallery))], batch_size=_BATCH)
        ways: list[Callable[[], Any]] = [
            lambda: retriever.index.search(encode_texts(encoder, texts), _K),
            lambda: retriever.search(texts, _K),
            lambda: [retriever.search(text, _K) for text in texts],
        ]
        seconds = np.array([[_seconds(way) for way in ways] for _ in range(rounds + 1)])[1:]
    raw, batch, single = np.median(seconds, axis=0).tolist()
    return Batches(raw, batch, single, float(np.median(seconds[:, 1] / seconds[:, 0])))


def bench_reranked(
    images: Sequence[Image], questions: int, candidates: int, rounds: int, generator: Generator | None = None
) -> dict[str, Any]:
    """Search for captions, all at once and one by one in turns, in CPU seconds.

    Encoder and generator are the mini models, or another generator re-ranks. Features of all images are
    computed before. ``images_scored`` of the batch are distinct.
    """
    texts = [image.caption or "" for image in images[:questions]]
    how = Rerank(candidates=candidates)
    encoder, part = PRESETS["mini"].make_encoder(), generator or PRESETS["mini"].make_generator()
    index = ExactIndex(encoder.dim, fingerprint=encoder.fingerprint)
    with Retriever(encoder, index, part, states="disk") as retriever:
        retriever.add(images)
        found = [retriever.search(text, candidates, rerank=None).ids for text in texts]
        seconds: dict[str, list[float]] = {"batch": [], "single": []}
        for _ in range(rounds):
            begin = time.process_time()
            together = retriever.search(texts, rerank=how)
            seconds["batch"].append(time.process_time() - begin)
            begin = time.process_time()
            alone = [retriever.search(text, rerank=how) for text in texts]
            seconds["single"].append(time.process_time() - begin)
    return {
        "images": len(images),
        "questions": questions,
        "candidates": candidates,
        "images_scored": len({one for ids in found for one in ids}),
        "batch_cpu_s": float(np.median(seconds["batch"])),
        "single_cpu_s": float(np.median(seconds["single"])),
        "rate_ratio": float(np.median(np.divide(seconds["single"], seconds["batch"]))),
        "same_pages": sum(one.ids == other.ids for one, other in zip(together, alone, strict=True)),
    }


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "batches",
        "Measure a batch of questions against the raw cost of encoder and index.",
        images=(20_000, "Images in the album."),
        questions=(1000, "Questions."),
    )
    parser.add_argument("--encoder", default="lookup", help="lookup, which costs nothing, or a plugin.")
    parser.add_argument(
        "--tar", type=Path, help="captioned photographs (WebDataset): re-rank with mini models."
    )
    parser.add_argument(
        "--candidates", type=int, default=50, help="of each question, with --tar [default: 50]"
    )
    parser.add_argument(
        "--kosmos-layers", type=int, help="with --tar: re-rank with Kosmos of random weights, so many layers."
    )
    parser.add_argument("--rounds", type=int, default=1, help="timings, with --tar [default: 1]")
    given = parser.parse_args(arguments)
    if given.tar:
        photographs = (one for one in read_webdataset([given.tar]) if isinstance(one, Image) and one.caption)
        some = list(islice(photographs, given.images))
        kosmos = random_kosmos(1, given.kosmos_layers, dtype="float32") if given.kosmos_layers else None
        facts = bench_reranked(some, given.questions, given.candidates, given.rounds, kosmos)
        write_results(facts, tuple(facts), [tuple(map(str, facts.values()))], [], as_json=given.json)
        return
    dim = 512
    if given.encoder == "lookup":
        data = cliplike(given.images, dim=dim, queries=given.questions)
        encoder: Encoder = Lookup(data)
    else:
        from zsqretrieval.plugins import create

        encoder = create("encoder", given.encoder, {})
        data = cliplike(given.images, dim=encoder.dim)
    with tempfile.TemporaryDirectory() as folder:
        found = bench_batches(encoder, data.gallery, Path(folder) / "album", given.questions)
    write_results(
        {
            "images": given.images,
            "questions": given.questions,
            "encoder": given.encoder,
            "raw_s": found.raw_s,
            "batch_s": found.batch_s,
            "single_s": found.single_s,
            "ratio": found.ratio,
        },
        ("encoder", "raw, s", "batch, s", "one by one, s", "batch / raw"),
        [
            (
                given.encoder,
                *(f"{one:.2f}" for one in (found.raw_s, found.batch_s, found.single_s)),
                f"{found.ratio:.2f}",
            )
        ],
        [f"{given.questions} questions to {given.images} images, k = {_K}, HNSW, no generator"],
        as_json=given.json,
    )


if __name__ == "__main__":
    run(main)

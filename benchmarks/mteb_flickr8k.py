"""Evaluate the mini models with mteb, and compare its numbers with the library's own; prints a table.

    pip install "zsqretrieval[mini,evaluation,integrations]"
    python -m benchmarks.mteb_flickr8k --data flickr8k:FOLDER --split dev --images 200 --queries 100

``--data`` takes any data set of ``zsq evaluate`` (docs/evaluation.md). ``results`` gets the predictions of
every system as ``{system}/{task}_predictions.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mteb
import numpy as np

from zsqretrieval import PRESETS, Retriever
from zsqretrieval.encoders.cached import CachedEncoder
from zsqretrieval.evaluation.datasets import Dataset
from zsqretrieval.evaluation.datasets.open import open_dataset
from zsqretrieval.evaluation.metrics import measure
from zsqretrieval.evaluation.run import Run
from zsqretrieval.integrations.mteb import ZsqCrossEncoder, ZsqEncoder, ZsqSearch, as_task

NAMES = {"R@1": "hit_rate_at_1", "R@5": "hit_rate_at_5", "R@10": "hit_rate_at_10", "nDCG@10": "ndcg_at_10"}
"""Names of the same measure here and in mteb."""


def main() -> None:
    """Print the measures of every system by mteb and by the library."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--split")
    parser.add_argument("--images", type=int, help="the first of the data set; all by default")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    dataset = first_images(open_dataset(given.data, given.split), given.images).sample(given.queries)
    preset = PRESETS["mini"]
    encoder = CachedEncoder(preset.make_encoder())  # for all systems
    generator = preset.make_generator()
    with Retriever(encoder, generator=generator, calibration=preset.calibration) as retriever:
        rows = evaluate(retriever, dataset, given.out)
    print(f"{len(dataset.queries)} queries, {len(dataset.gallery)} images\n")  # noqa: T201
    print("| system |", " | ".join(NAMES), "|\n|---|" + "---|" * len(NAMES))  # noqa: T201
    for system, values in rows.items():
        print(f"| {system} |", " | ".join(f"{values[name]:.3f}" for name in NAMES), "|")  # noqa: T201


def first_images(dataset: Dataset, count: int | None) -> Dataset:
    """The first images of a data set, and the queries whose relevant images are all among them."""
    gallery = dataset.gallery[:count]
    ids = {str(image.id) for image in gallery}
    queries = tuple(query for query in dataset.queries if ids.issuperset(dataset.qrels[query.id]))
    qrels = {query.id: dataset.qrels[query.id] for query in queries}
    return replace(dataset, gallery=gallery, queries=queries, qrels=qrels)


def evaluate(retriever: Retriever, dataset: Dataset, out: Path) -> dict[str, Mapping[str, float]]:
    """Measures by system; those of mteb, and of the library on an album with the same images."""
    models: dict[str, ZsqEncoder | ZsqSearch] = {
        "encoder": ZsqEncoder(retriever.encoder),
        "first stage": ZsqSearch(retriever, rerank=None),
        "pipeline": ZsqSearch(retriever),
    }
    rows: dict[str, Mapping[str, float]] = {}
    for system, model in models.items():
        rows[f"{system}, mteb"] = by_mteb(model, as_task(dataset), out / system)
    reranking = as_task(dataset).convert_to_reranking(out / "encoder", top_k=100)
    assert retriever.generator is not None
    rows["re-ranker alone, mteb"] = by_mteb(
        ZsqCrossEncoder(retriever.generator), reranking, out / "re-ranker"
    )
    retriever.add(dataset.gallery)
    rows["first stage, library"] = by_library(retriever, dataset, rerank=False)
    rows["pipeline, library"] = by_library(retriever, dataset, rerank=True)
    return rows


def by_mteb(
    model: ZsqEncoder | ZsqSearch | ZsqCrossEncoder, task: mteb.AbsTask, out: Path
) -> dict[str, float]:
    """Measure by mteb; writes the predictions."""
    result = mteb.evaluate(model, task, cache=None, prediction_folder=out, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    return {ours: scores[theirs] for ours, theirs in NAMES.items()}


def by_library(retriever: Retriever, dataset: Dataset, *, rerank: bool) -> dict[str, float]:
    """Measure the searches of a retriever by ir-measures."""
    texts = [query.text for query in dataset.queries]
    rankings = retriever.search(texts, 100, rerank="auto" if rerank else None)
    candidates = np.stack([dataset.positions(hit.id for hit in ranking) for ranking in rankings])
    scores = np.array([[hit.score for hit in ranking] for ranking in rankings], np.float64)
    run = Run("retriever", dataset.text_to_image(), candidates, scores)
    return {name: float(values.mean()) for name, values in measure(run, list(NAMES)).items()}


if __name__ == "__main__":
    main()

"""mteb: encoder, re-ranker and pipeline on a task of photographs, and its numbers beside the library's."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from seeing import Seeing
from zsqretrieval.data.samples import QUESTIONS, photographs
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset
from zsqretrieval.evaluation.datasets.dataset import HUMAN_QUESTION, Query
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.scoring import Likelihood, score_pairs
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator

pytest.importorskip("mteb")

import datasets
import mteb
from mteb.models import CrossEncoderProtocol, EncoderProtocol, SearchProtocol

from zsqretrieval.integrations.mteb import ZsqCrossEncoder, ZsqEncoder, ZsqSearch, as_task

MEASURES = ("hit_rate_at_1", "hit_rate_at_5", "ndcg_at_10", "mrr_at_10")


def small_photographs(folder: Path) -> Dataset:
    """The photographs of scikit-image and scikit-learn, small, with the questions of the demo."""
    for image in photographs():
        with PILImage.open(image.source) as picture:
            small = picture.convert("RGB")
        small.thumbnail((32, 32))
        small.save(folder / f"{image.id}.png")
    asked = [one for one in QUESTIONS if one.expected]
    queries = tuple(Query(f"q{n}", one.text, HUMAN_QUESTION, "demo") for n, one in enumerate(asked))
    relevant = {f"q{n}": {f"{one.expected}.png": 1} for n, one in enumerate(asked)}
    from zsqretrieval.data.sources import walk

    return Dataset("photographs, small", tuple(walk(folder)), queries, relevant)


@pytest.fixture
def photos(tmp_path: Path) -> Dataset:
    folder = tmp_path / "photographs"
    folder.mkdir()
    return small_photographs(folder)


def made(generator: Any = None) -> Retriever:
    encoder = ToyEncoder()
    return Retriever(encoder, ExactIndex(encoder.dim, fingerprint=encoder.fingerprint), generator)


def evaluated(model: Any, task: Any, folder: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Measures and predictions."""
    result = mteb.evaluate(model, task, cache=None, prediction_folder=folder, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    found = json.loads((folder / f"{task.metadata.name}_predictions.json").read_text())
    assert found["mteb_model_meta"]["revision"] == model.mteb_model_meta.revision
    return {name: scores[name] for name in MEASURES}, found["default"]["test"]


def ranked(predictions: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    return {query: sorted(of, key=lambda id: -of[id]) for query, of in predictions.items()}


def test_models_have_the_protocols_of_mteb() -> None:
    generator = ToyGenerator()
    assert isinstance(ZsqEncoder(ToyEncoder()), EncoderProtocol)
    assert isinstance(ZsqCrossEncoder(generator), CrossEncoderProtocol)
    assert isinstance(ZsqSearch(made(generator)), SearchProtocol)


@pytest.mark.parametrize("generator", [ToyGenerator(), Seeing()], ids=["images", "features"])
def test_all_models_run_a_task_and_agree_with_the_library(
    photos: Dataset, tmp_path: Path, generator: Any
) -> None:
    spec = importlib.util.spec_from_file_location(
        "mteb_flickr8k", Path(__file__).parents[2] / "examples/mteb_flickr8k.py"
    )
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    retriever = made(generator)
    rows = example.evaluate(retriever, photos, tmp_path)
    assert rows["encoder, mteb"] == rows["first stage, mteb"] == rows["first stage, library"]
    assert rows["pipeline, mteb"] == rows["pipeline, library"] != rows["first stage, library"]

    texts = {query.id: query.text for query in photos.queries}
    images = {str(image.id): image for image in photos.gallery}
    path = tmp_path / "re-ranker" / "photographssmall_predictions.json"
    for query, scores in json.loads(path.read_text())["default"]["test"].items():
        alone = score_pairs(
            generator, Likelihood(), [texts[query]] * len(scores), [images[one] for one in scores]
        )
        assert [*scores.values()] == pytest.approx(alone.tolist())

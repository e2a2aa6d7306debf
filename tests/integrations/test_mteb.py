"""mteb: encoder, re-ranker and pipeline on a task of photographs, and its numbers beside the library's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image as PILImage

from picky import Picky, strip
from plain import png
from seeing import Seeing
from zsqretrieval._util.batches import batched
from zsqretrieval.data.images import as_image
from zsqretrieval.data.samples import QUESTIONS, photographs
from zsqretrieval.data.sources import walk
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset
from zsqretrieval.evaluation.datasets.dataset import HUMAN_QUESTION, Query
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.search.scoring import Likelihood, YesNo, score_pairs
from zsqretrieval.testing.pictures import encoded
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator

pytest.importorskip("mteb")

import datasets
from mteb.models import CrossEncoderProtocol, EncoderProtocol, SearchProtocol

from zsqretrieval.integrations.mteb import ZsqCrossEncoder, ZsqEncoder, ZsqSearch


def small_photographs(folder: Path) -> Dataset:
    """The photographs and questions of the demo, small."""
    for image in photographs():
        with PILImage.open(image.source) as picture:
            small = picture.convert("RGB")
        small.thumbnail((32, 32))
        small.save(folder / f"{image.id}.png")
    asked = [one for one in QUESTIONS if one.expected]
    queries = tuple(Query(f"q{n}", one.text, HUMAN_QUESTION, "demo") for n, one in enumerate(asked))
    relevant = {f"q{n}": {f"{one.expected}.png": 1} for n, one in enumerate(asked)}
    return Dataset("photographs, small", tuple(walk(folder)), queries, relevant)


@pytest.fixture
def photos(tmp_path: Path) -> Dataset:
    folder = tmp_path / "photographs"
    folder.mkdir()
    return small_photographs(folder)


def made(generator: Any = None) -> Retriever:
    encoder = ToyEncoder()
    return Retriever(encoder, ExactIndex(encoder.dim, fingerprint=encoder.fingerprint), generator)


def predictions(folder: Path) -> dict[str, dict[str, float]]:
    """Scores by query and image, of the file that mteb writes."""
    found = json.loads((folder / "photographssmall_predictions.json").read_text())
    assert list(found) == ["mteb_model_meta", "default"]
    scores: dict[str, dict[str, float]] = found["default"]["test"]
    return scores


def test_models_have_the_protocols_of_mteb() -> None:
    generator = ToyGenerator()
    assert isinstance(ZsqEncoder(ToyEncoder()), EncoderProtocol)
    assert isinstance(ZsqCrossEncoder(generator), CrossEncoderProtocol)
    assert isinstance(ZsqSearch(made(generator)), SearchProtocol)


def test_revision_depends_on_all_that_changes_a_result() -> None:
    generator = ToyGenerator()
    models = [
        ZsqEncoder(ToyEncoder()),
        ZsqCrossEncoder(generator),
        ZsqCrossEncoder(generator, YesNo()),
        ZsqSearch(made(generator)),
        ZsqSearch(made(generator), rerank=None),
        ZsqSearch(made(generator), rerank="yes_no"),
        ZsqSearch(made(generator), rerank=Rerank(candidates=20)),
        ZsqSearch(made(generator), k=20),
        ZsqSearch(made(Seeing())),
    ]
    revisions = [model.mteb_model_meta.revision for model in models]
    assert len(set(revisions)) == len(models)
    same = ZsqSearch(made(ToyGenerator()), name="me/mine").mteb_model_meta
    assert (same.name, same.revision) == ("me/mine", revisions[3])


def test_all_models_run_a_task_and_agree_with_the_library(photos: Dataset, tmp_path: Path) -> None:
    from benchmarks import mteb_flickr8k as example  # imports mteb

    generator = Seeing()
    rows = example.evaluate(made(generator), photos, tmp_path)
    first, fused = (pytest.approx(rows[f"{name}, library"], abs=1e-5) for name in ("first stage", "pipeline"))
    assert rows["encoder, mteb"] == first and rows["first stage, mteb"] == first  # mteb rounds
    assert rows["pipeline, mteb"] == fused and rows["pipeline, mteb"] != first

    texts = {query.id: query.text for query in photos.queries}
    images = {str(image.id): image for image in photos.gallery}
    for query, scores in predictions(tmp_path / "re-ranker").items():
        pictures = [images[id] for id in scores]
        alone = score_pairs(generator, Likelihood(), [texts[query]] * len(scores), pictures)
        assert [*scores.values()] == pytest.approx(alone.tolist())


# --- what a benchmark may hold ------------------------------------------------------------------------------

TEXT_TO_IMAGE = SimpleNamespace(get_modalities=lambda _: ["text"])
IMAGE_TO_IMAGE = SimpleNamespace(get_modalities=lambda _: ["image"])


def rows(**images: Any) -> Any:
    content = {
        id: {"bytes": one, "path": None} if isinstance(one, bytes) else one for id, one in images.items()
    }
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    return datasets.Dataset.from_list([{"id": k, "image": v} for k, v in content.items()], features=features)


def queries(**texts: str) -> Any:
    return datasets.Dataset.from_dict({"id": [*texts], "text": [*texts.values()]})


def test_every_id_of_an_image_is_found_and_unusable_images_are_counted() -> None:
    model = ZsqSearch(made(ToyGenerator()))
    corpus = rows(a=png("red"), b=png("green"), copy=png("red"), none=None, broken=b"no image")
    with pytest.warns(RuntimeWarning, match="2 of 5 images are unusable"):
        model.index(corpus)
    found = model.search(queries(q="red"), task_metadata=TEXT_TO_IMAGE, top_k=1000)
    assert set(found["q"]) == {"a", "b", "copy"} and found["q"]["a"] == found["q"]["copy"] > found["q"]["b"]
    by_image = model.search(rows(q=png("green")), task_metadata=IMAGE_TO_IMAGE, top_k=1)
    assert list(by_image["q"]) == ["b"]
    model.index(rows(other=png("blue")))
    assert list(model.search(queries(q="red"), task_metadata=TEXT_TO_IMAGE, top_k=9)["q"]) == ["other"]


def test_hits_without_a_score_come_last_in_their_order() -> None:
    model = ZsqSearch(made(Picky()), k=5)
    model.index(rows(strip=encoded(strip(), "PNG"), red=png("red"), green=png("green")))
    with pytest.warns(RuntimeWarning, match="1 of 3 candidates"):
        found = model.search(queries(q="red"), task_metadata=TEXT_TO_IMAGE, top_k=1000)["q"]
    assert min(found, key=lambda id: found[id]) == "strip" and len(found) == 3


@pytest.mark.parametrize("generator", [ToyGenerator(), Seeing()], ids=["images", "features"])
def test_pairs_get_their_scores_whatever_the_batches(generator: Any) -> None:
    red, green = PILImage.new("RGB", (8, 6), "red"), PILImage.new("RGB", (8, 6), "green")
    pairs = [("red", red), ("green", red), ("green", green), ("red", red), ("green", red)]
    expected = score_pairs(
        generator, Likelihood(), [text for text, _ in pairs], [as_image(one) for _, one in pairs]
    )
    for size in (1, 2, 5):
        batches = [*batched(pairs, size)]
        texts = [{"text": [text for text, _ in some]} for some in batches]
        images = [{"image": [image for _, image in some]} for some in batches]
        found = ZsqCrossEncoder(generator).predict(texts, images)
        assert found.tolist() == pytest.approx(expected.tolist())


def test_pair_with_an_image_that_cannot_be_scored_ranks_last() -> None:
    texts, images = [{"text": ["red"] * 3}], [{"image": [PILImage.new("RGB", (8, 6)), strip(), strip()]}]
    with pytest.warns(RuntimeWarning, match="2 of 3 pairs"):
        found = ZsqCrossEncoder(Picky()).predict(texts, images)
    assert found[1] == found[2] < found[0]
    assert ZsqCrossEncoder(Picky()).predict([], []).shape == (0,)


def test_wrong_task_is_refused() -> None:
    model, one = ZsqSearch(made()), queries(q="red")
    with pytest.raises(InvalidInputError, match="call index first"):
        model.search(one, task_metadata=TEXT_TO_IMAGE, top_k=1)
    with pytest.raises(InvalidInputError, match="no images among the columns id, text"):
        model.index(one)
    model.index(rows(a=png("red")))
    with pytest.raises(InvalidInputError, match="use ZsqCrossEncoder"):
        model.search(one, task_metadata=TEXT_TO_IMAGE, top_k=1, top_ranked={"q": ["a"]})
    both = SimpleNamespace(get_modalities=lambda _: ["image", "text"])
    with pytest.raises(InvalidInputError, match="must be texts or images, not image and text"):
        model.search(one, task_metadata=both, top_k=1)
    with pytest.raises(InvalidInputError, match="texts given images, not image given text"):
        ZsqCrossEncoder(ToyGenerator()).predict([{"image": []}], [{"text": []}])
    for batch in ({"text": ["a"], "image": [None]}, {"audio": [None]}):
        with pytest.raises(InvalidInputError, match="must be a text or an image"):
            ZsqEncoder(ToyEncoder()).encode([batch])
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        ZsqSearch(made(), k=0)

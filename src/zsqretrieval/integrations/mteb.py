"""mteb: the whole pipeline, the encoder and the re-ranker as models, and data sets as tasks.

``mteb.evaluate(ZsqSearch(retriever), task)``; results are stored under a revision that depends on the weights
and settings.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType
from numpy.typing import NDArray

from zsqretrieval import __version__
from zsqretrieval._util.cache import cache_key
from zsqretrieval._util.checks import check_counts
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.data.documents import as_document_image
from zsqretrieval.data.images import as_image, digest, read_bytes
from zsqretrieval.encoders.checked import encode_images, encode_texts
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset
from zsqretrieval.generators.checked import read_images
from zsqretrieval.plugins import empty_like
from zsqretrieval.protocols import Encoder, Generator, ImageStates
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.rerank import CANDIDATES, Rerank, RerankLike
from zsqretrieval.search.scoring import Likelihood, Scoring, score_each
from zsqretrieval.types import Hit, Image, ImageState, Progress

if TYPE_CHECKING:
    from mteb.types import BatchedInput, CorpusDatasetType, QueryDatasetType
    from torch.utils.data import DataLoader

ensure_torchvision()  # mteb imports sentence-transformers when it evaluates


def _meta(name: str, kind: str, settings: Sequence[object], **facts: Any) -> ModelMeta:
    revision = cache_key(__version__, *map(str, settings)).hex()
    common = {"name": name, "revision": revision, "model_type": [kind], "modalities": ["text", "image"]}
    return ModelMeta.create_empty({**common, "framework": ["PyTorch"], **facts})


class ZsqEncoder(AbsEncoder):
    """An encoder as a model of mteb, which compares every query with every image.

    Args:
        encoder: the encoder.
        name: ``organisation/model``, under which results are stored.
    """

    def __init__(self, encoder: Encoder, *, name: str = "zsqretrieval/encoder") -> None:
        self._encoder = encoder
        facts = {"embed_dim": encoder.dim, "similarity_fn_name": ScoringFunction.COSINE}
        self.mteb_model_meta = _meta(name, "dense", [encoder.fingerprint], **facts)

    def encode(self, inputs: DataLoader[BatchedInput], **settings: Any) -> NDArray[np.float32]:
        """Encode n texts or images: float32 [n, dim], unit vectors.

        Raises:
            InvalidInputError: items have both a text and an image, or neither; or as the encoder.
        """
        parts = [np.empty((0, self._encoder.dim), np.float32)]
        for batch in inputs:
            texts, images = batch.get("text"), batch.get("image")
            if (texts is None) == (images is None):
                raise InvalidInputError(
                    f"an item must be a text or an image, but a batch has the fields {', '.join(batch)}"
                )
            if images is None:
                parts.append(encode_texts(self._encoder, texts))
            else:
                parts.append(encode_images(self._encoder, [as_image(one) for one in images]))
        return np.concatenate(parts)


class ZsqCrossEncoder:
    """A generator as a re-ranker of mteb: scores texts given images.

    mteb re-ranks the predictions of another model: ``task.convert_to_reranking(folder, top_k=100)``.

    Args:
        generator: the language model.
        scoring: the scoring rule.
        name: ``organisation/model``, under which results are stored.
    """

    def __init__(
        self,
        generator: Generator,
        scoring: Scoring = Likelihood(),  # noqa: B008  # frozen
        *,
        name: str = "zsqretrieval/re-ranker",
    ) -> None:
        self._generator, self._scoring = generator, scoring
        self.mteb_model_meta = _meta(name, "cross-encoder", [generator.fingerprint, scoring])

    def predict(
        self,
        inputs1: DataLoader[BatchedInput],
        inputs2: DataLoader[BatchedInput],
        *,
        batch_size: int = 32,
        **settings: Any,
    ) -> NDArray[np.float64]:
        """Score n pairs of a text and an image: float64 [n], higher is better.

        Cached features of all images are in memory, if the generator computes some. Images that the generator
        cannot take get a score below all others; a RuntimeWarning counts them.

        Raises:
            InvalidInputError: the first inputs are not texts, the second not images, or a text is too long.
        """
        known: dict[str, Image | ImageState | ImageError] = {}
        found: list[float | ImageError] = []
        for queries, documents in zip(inputs1, inputs2, strict=True):
            if "text" not in queries or "image" not in documents:
                raise InvalidInputError(
                    f"the re-ranker scores texts given images, not {', '.join(queries)} given "
                    f"{', '.join(documents)}"
                )
            if not isinstance(self._generator, ImageStates):
                known.clear()
            images = [as_image(one) for one in documents["image"]]
            digests = [digest(one) for one in images]
            new = {at: one for at, one in zip(digests, images, strict=True) if at not in known}
            known |= zip(new, read_images(self._generator, list(new.values())), strict=True)
            found += score_each(
                self._generator,
                self._scoring,
                queries["text"],
                [known[at] for at in digests],
                batch_size=batch_size,
            )
        scores = [one for one in found if not isinstance(one, ImageError)]
        if unavailable := len(found) - len(scores):
            warnings.warn(
                f"{unavailable} of {len(found)} pairs have an image that cannot be scored, and rank last",
                RuntimeWarning,
                stacklevel=2,
            )
        last = min([0.0, *scores]) - 1.0
        return np.array([last if isinstance(one, ImageError) else one for one in found], np.float64)


class ZsqSearch:
    """The pipeline of a retriever as a model of mteb, which gives it the corpus and the queries.

    The images are added to a new album in memory, which has the parts of the retriever.

    Args:
        retriever: its encoder, index, generator and calibration are used, its own images are not.
        k: most hits of a query, >= 1. mteb asks for 1,000, all of which would be re-ranked.
        rerank: as for :meth:`Retriever.search <zsqretrieval.retriever.Retriever.search>`.
        progress: called while images are added and candidates scored; may raise to stop.
        name: ``organisation/model``, under which results are stored.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        k: int = CANDIDATES,
        rerank: RerankLike = "auto",
        progress: Progress | None = None,
        name: str = "zsqretrieval/pipeline",
    ) -> None:
        check_counts(k=k)
        self._parts, self._k, self._progress = retriever, k, progress
        self._rerank = Rerank.of(rerank, generator=retriever.has_generator)
        generator = retriever.generator if self._rerank is not None else None
        fingerprints = retriever.encoder.fingerprint, generator and generator.fingerprint
        index = type(retriever.index).__qualname__, getattr(retriever.index, "config", None)
        settings = [*fingerprints, *index, retriever.calibration, self._rerank, k]
        self.mteb_model_meta = _meta(name, "dense", settings)
        self._album: Retriever | None = None
        self._copies: dict[str, list[str]] = {}  # ids of the corpus, by id of the album

    def index(self, corpus: CorpusDatasetType, **settings: Any) -> None:
        """Add the images of a corpus. Those that cannot be read are left out; a RuntimeWarning counts them.

        Raises:
            InvalidInputError: the corpus has no images.
        """
        parts = self._parts
        self._album = Retriever(
            parts.encoder, empty_like(parts.index), parts.generator, calibration=parts.calibration
        )
        by_digest: dict[str, list[str]] = {}
        unusable: list[ImageError] = []
        images = self._images(corpus, by_digest, unusable)
        report = self._album.add(images, progress=self._progress)
        self._copies = {ids[0]: ids for ids in by_digest.values()}
        unusable += [ImageError(one.source, one.reason) for one in report.skipped]
        if unusable:
            warnings.warn(
                f"{len(unusable)} of {len(corpus)} images are unusable and no candidates: {unusable[0]}",
                RuntimeWarning,
                stacklevel=2,
            )

    @staticmethod
    def _images(
        corpus: CorpusDatasetType, by_digest: dict[str, list[str]], unusable: list[ImageError]
    ) -> Iterator[Image]:
        """The images of a corpus, not decoded, each once: mteb may give one several ids."""
        for id, row in zip(corpus["id"], _undecoded(corpus), strict=True):
            try:
                image = as_document_image(row)
                ids = by_digest.setdefault(digest(image), [])
            except ImageError as error:
                unusable.append(ImageError(f"<{id}>", error.reason))
                continue
            ids.append(id)
            if len(ids) == 1:
                yield replace(image, id=id, source=f"<{id}>")

    def search(
        self,
        queries: QueryDatasetType,
        *,
        task_metadata: TaskMetadata,
        top_k: int,
        top_ranked: object = None,
        **settings: Any,
    ) -> dict[str, dict[str, float]]:
        """Search for each query: scores by id of the corpus, by id of the query.

        Hits that could not be scored get scores below all others, in their order.

        Raises:
            InvalidInputError: there is no corpus yet; queries have both a text and an image; or the task has
                candidates of its own, which :class:`ZsqCrossEncoder` re-ranks.
        """
        if self._album is None:
            raise InvalidInputError("there is no corpus to search; call index first")
        if top_ranked is not None:
            raise InvalidInputError(
                "this task re-ranks given candidates, which the pipeline does not take; use ZsqCrossEncoder"
            )
        modalities = task_metadata.get_modalities(PromptType.query)
        if modalities == ["text"]:
            asked: list[Any] = list(queries["text"])
        elif modalities == ["image"]:
            asked = [as_document_image(row) for row in _undecoded(queries)]
        else:
            raise InvalidInputError(f"queries must be texts or images, not {' and '.join(modalities)}")
        rankings = self._album.search(
            asked,
            min(top_k, self._k),
            rerank=self._rerank if modalities == ["text"] else None,
            progress=self._progress,
        )
        return {id: self._scores(hits) for id, hits in zip(queries["id"], rankings, strict=True)}

    def _scores(self, hits: Sequence[Hit]) -> dict[str, float]:
        scores: dict[str, float] = {}
        lowest = min((hit.score for hit in hits if hit.score is not None), default=0.0)
        for place, hit in enumerate(hits, 1):
            score = lowest - place if hit.score is None else hit.score
            scores |= dict.fromkeys(self._copies[hit.id], score)
        return scores


def _undecoded(rows: CorpusDatasetType | QueryDatasetType) -> Any:
    """The rows of a data set, whose encoded images are not decoded."""
    if "image" not in rows.column_names:
        raise InvalidInputError(f"there are no images among the columns {', '.join(rows.column_names)}")
    if isinstance(rows.features["image"], datasets.Image):
        return rows.cast_column("image", datasets.Image(decode=False))
    return rows


def as_task(dataset: Dataset, *, languages: Sequence[str] = ("eng-Latn",)) -> AbsTaskRetrieval:
    """Make a text-to-image task of mteb of a data set, such as one of your own images.

    Args:
        dataset: from :func:`zsqretrieval.evaluation.datasets.open.open_dataset`; its images are in memory.
        languages: of the queries: ISO 639-3 and script.

    Returns:
        A task with one split, ``test``, and the data set's name without spaces and marks.

    Raises:
        ImageError: a file cannot be read.
    """
    texts = [(query.id, query.text) for query in dataset.queries]
    images = [(str(image.id), read_bytes(image)) for image in dataset.gallery]
    revision = cache_key(*map(str, [texts, dataset.qrels, *(digest(content) for _, content in images)])).hex()
    image_rows = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    corpus = [{"id": id, "image": {"bytes": content, "path": None}} for id, content in images]
    split = {
        "corpus": datasets.Dataset.from_list(corpus, features=image_rows),
        "queries": datasets.Dataset.from_list([{"id": id, "text": text} for id, text in texts]),
        "relevant_docs": {query: dict(grades) for query, grades in dataset.qrels.items()},
        "top_ranked": None,
    }

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=re.sub(r"\W+", "", dataset.name),
            description=f"Find the images of {dataset.name} by their texts.",
            dataset={"path": dataset.name, "revision": revision},
            type="Any2AnyRetrieval",
            category="t2i",
            modalities=["text", "image"],
            eval_langs=list(languages),
            main_score="ndcg_at_10",
        )

        data_loaded = False

        def load_data(self, *_: object, **__: object) -> None:
            if not self.data_loaded:
                self.dataset = {"default": {"test": split}}
                self.data_loaded = True

    return Task()

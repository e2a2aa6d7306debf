"""A generator as a cross-encoder: ``predict`` and ``rank`` as in sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zsqretrieval._util.checks import check_counts, check_sequence, check_text
from zsqretrieval.data.documents import Fetch, as_document_image
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.protocols import Generator
from zsqretrieval.search.scoring import Scoring, rule_of, score_pairs
from zsqretrieval.types import Image


def as_cross_encoder(
    generator: Generator | LazyGenerator,
    *,
    scoring: Scoring | Literal["likelihood", "yes_no"] = "likelihood",
    fetch: Fetch = False,
) -> GeneratorCrossEncoder:
    """Make a generator usable where a ``CrossEncoder`` of sentence-transformers is expected.

    Args:
        generator: any generator, or one that loads on first use.
        scoring: a scoring rule or its name.
        fetch: whether URLs among the documents are downloaded; a function decides for each URL, and for each
            that it redirects to. URLs of strangers may lead into your own network.

    Raises:
        InvalidInputError: no generator, or no scoring rule.
    """
    return GeneratorCrossEncoder(LazyGenerator.of(generator), rule_of(scoring), fetch)


class GeneratorCrossEncoder:
    """Scores of questions and images with the methods of a ``CrossEncoder``; see :func:`as_cross_encoder`.

    A document is an image: a path, a URL (only with ``fetch``), a ``data:`` URI, encoded bytes, a PIL image,
    an :class:`~zsqretrieval.types.Image`, or ``{"image": one of these, "text": ...}``. Of such a mapping only
    the image is scored, so that every document has one score.
    """

    num_labels = 1

    def __init__(self, generator: LazyGenerator, scoring: Scoring, fetch: Fetch) -> None:
        self._generator, self._scoring, self._fetch = generator, scoring, fetch
        self.model_card_data = _ModelCard()

    def predict(
        self,
        inputs: Sequence[Any],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Score n pairs (question, document), or one pair.

        Args:
            inputs: n pairs, or one.
            prompt_name: must be None: the prompt belongs to the scoring rule.
            prompt: must be None, too.
            batch_size: pairs computed together; does not change the result.
            show_progress_bar: ignored.
            activation_fn: applied to the scores, a tensor of torch; None for the scores themselves.
            apply_softmax: ignored, as with one label.
            convert_to_numpy: False for a list of tensors.
            convert_to_tensor: True for a tensor.

        Returns:
            float64 [n], higher is better: log P(question | image) in nats, or what the rule says; for one
            pair a number.

        Raises:
            InvalidInputError: something is no pair, question or image, or a URL that may not be fetched.
            ImageError: an image cannot be fetched or decoded, or the generator cannot take it; names it.
        """
        if prompt is not None or prompt_name is not None:
            raise InvalidInputError(
                "the prompt belongs to the scoring rule: as_cross_encoder(generator, scoring=Likelihood(...))"
            )
        check_counts(batch_size=batch_size)
        check_sequence(inputs, "inputs")
        single = len(inputs) == 2 and isinstance(inputs[0], str | Mapping)
        pairs = [inputs] if single else list(inputs)
        for i, pair in enumerate(pairs):
            if isinstance(pair, str | bytes) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InvalidInputError(f"inputs[{i}] must be a pair (question, image), not {pair!r:.100}")
        questions = [_question(question, i) for i, (question, _) in enumerate(pairs)]
        known: dict[object, Image] = {}  # the generator computes each record once
        images = [self._image(document, known) for _, document in pairs]
        with self._generator.using() as generator:
            scores: Any = score_pairs(generator, self._scoring, questions, images, batch_size=batch_size)
        if activation_fn is not None or convert_to_tensor or not convert_to_numpy:
            import torch

            tensor = torch.from_numpy(scores)
            tensor = tensor if activation_fn is None else activation_fn(tensor)
            scores = tensor if convert_to_tensor else tensor.numpy() if convert_to_numpy else list(tensor)
        return scores[0] if single else scores

    def rank(
        self,
        query: Any,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Rank n documents for a question, best first; equal scores keep their order.

        Args and errors are those of :meth:`predict`.

        Returns:
            ``{"corpus_id": position, "score": score}`` for each document, or the first ``top_k``; with
            ``return_documents`` also the document itself under ``"text"``, as in sentence-transformers.
        """
        check_counts(or_none=True, top_k=top_k)
        check_sequence(documents, "documents")
        scores = self.predict(
            [(query, document) for document in documents], prompt_name, prompt, batch_size,
            show_progress_bar, activation_fn,
        )  # fmt: skip
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [
            {"corpus_id": n, "score": float(scores[n])} | ({"text": documents[n]} if return_documents else {})
            for n in order.tolist()
        ]

    def _image(self, document: Any, known: dict[object, Image]) -> Image:
        if isinstance(document, Mapping):
            if "image" not in document:
                raise InvalidInputError(
                    f"a document has {', '.join(map(repr, document)) or 'nothing'} and no 'image'; this "
                    "cross-encoder scores images"
                )
            document = document["image"]
        key = document if isinstance(document, str | bytes | Path) else id(document)
        if key not in known:
            known[key] = as_document_image(document, fetch=self._fetch)
        return known[key]


class _ModelCard:
    """Takes what an evaluator of sentence-transformers reports for a model card; there is none."""

    def set_evaluation_metrics(self, *report: object) -> None:
        """Ignore a report."""


def _question(question: Any, i: int) -> str:
    text = question.get("text") if isinstance(question, Mapping) else question
    check_text(text, f"the question of inputs[{i}]")
    return str(text)

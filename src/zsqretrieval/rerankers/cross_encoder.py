"""Cross-encoders of sentence-transformers that take images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import batched
from zsqretrieval._util.checks import check_counts, check_sequence, check_text
from zsqretrieval._util.letters import without_marks
from zsqretrieval._util.processes import Lock
from zsqretrieval._util.torch import import_sentence_transformers, loading, resolve_device
from zsqretrieval.data.images import decode, in_threads
from zsqretrieval.errors import InvalidInputError, PartError
from zsqretrieval.search.fusion import finite_numbers
from zsqretrieval.types import Image


class CrossEncoderReranker:
    """A ``CrossEncoder`` of sentence-transformers >= 5.4 that takes images, such as Qwen3-VL-Reranker.

    The score is the float32 output before the model's activation: for yes/no models the log-odds of yes.
    A sigmoid in float32 maps all log-odds above 17 to 1.0, so that the best candidates would tie. In 16 bits
    a logit is a multiple of 1/16 or coarser, so the last layer of such a model computes in float32 from then
    on.

    The question is never taken for the path or URL of an image, which sentence-transformers would open, and
    special tokens in it are broken by a space.

    Args:
        model: a ``CrossEncoder``, or its name on the Hugging Face hub or folder. Its own code is never run.
        prompt: instruction for the model, such as ``"Retrieve photographs that answer the question."``; None
            for the model's own.
        batch_size: images decoded and scored together; does not change a score by more than rounding.
        device: for a name: ``"cuda"``, ``"cpu"``, ...; None for that of ``ZSQ_DEVICE``, else the best.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        WeightsError: the model cannot be found, or its weights are damaged or need code of their own.
        InvalidInputError: the model takes no images, or gives several scores per pair.
    """

    name = "cross_encoder"

    def __init__(
        self,
        model: Any,
        *,
        prompt: str | None = None,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        check_counts(batch_size=batch_size)
        if prompt is not None:
            check_text(prompt, "the prompt")
        if isinstance(model, str | Path):
            package = import_sentence_transformers("CrossEncoderReranker")
            target = str(resolve_device(device))
            advice = "Give a folder, or a name on the Hugging Face hub that can be downloaded"
            with loading(f"the cross-encoder {model}", str(model), advice):
                model = package.CrossEncoder(str(model), device=target)
        elif not all(hasattr(model, member) for member in ("predict", "supports", "num_labels")):
            raise InvalidInputError(
                "a cross-encoder is a CrossEncoder of sentence-transformers, or its name or folder, not "
                f"{type(model).__name__}"
            )
        if not (model.supports("image") or model.supports(("text", "image"))):
            raise InvalidInputError(
                f"this cross-encoder takes {', '.join(map(str, model.modalities))} and no images; use one "
                "such as Qwen/Qwen3-VL-Reranker-2B"
            )
        if model.num_labels != 1:
            raise InvalidInputError(
                f"this cross-encoder gives {model.num_labels} scores per pair; re-ranking needs one"
            )
        _keep_head_exact(model)
        self._model = model
        self._prompt = prompt
        self._batch_size = batch_size
        self._lock = Lock()

    def score(self, question: str, images: Sequence[Image]) -> NDArray[np.float64]:
        """Score n images: float64 [n], outputs before the activation, in the order given.

        Only the pixels of one batch are in memory.

        Raises:
            InvalidInputError: the question is empty.
            ImageError: an image cannot be decoded; names it.
            PartError: the model failed, or gave something other than one finite number per image.
        """
        from torch.nn import Identity

        check_text(question, "the question")
        check_sequence(images, "images")
        tokenizer = self._model.tokenizer
        query = {"text": without_marks(tokenizer, question) if tokenizer else question}
        scores: list[float] = []
        for batch in batched(images, self._batch_size):
            pairs = [(query, picture) for picture in in_threads(decode, batch)]
            try:
                with self._lock:
                    found = self._model.predict(
                        pairs,
                        prompt=self._prompt,
                        activation_fn=Identity(),
                        batch_size=self._batch_size,
                        show_progress_bar=False,
                    )
            except Exception as error:  # of any type: templates, processors and models of many authors
                why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                named = ", ".join(image.source for image in batch[:3])
                raise PartError(
                    f"the cross-encoder cannot score {len(batch)} images ({named}): {why}"
                ) from error
            found = np.asarray(found)
            checked = finite_numbers(found, len(batch))
            if checked is None:
                raise PartError(
                    f"the cross-encoder gave {found.dtype} {list(found.shape)} with {found.flatten()[:3]} "
                    f"for {len(batch)} images, not one finite number each; its weights are damaged, or its "
                    "numbers overflow: try float32"
                )
            scores += checked.tolist()
        return np.array(scores, np.float64)


def _keep_head_exact(model: Any) -> None:
    """Compute the layer that gives the scores in float32, if the model computes in 16 bits."""
    import torch

    transformer = getattr(model[0], "auto_model", None)
    heads = [transformer and transformer.get_output_embeddings()]
    names = [
        name
        for name, layer in model.named_modules()
        if type(layer) is torch.nn.Linear
        and layer.weight.dtype in (torch.bfloat16, torch.float16)
        and (layer.out_features == 1 or any(layer is head for head in heads))
    ]
    if names:
        model.set_keep_in_fp32_modules([*(model.keep_in_fp32_modules or []), *names])

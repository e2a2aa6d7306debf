"""The embedded default generator: Kosmos-1's design in miniature, trained on captioned photographs.

The shipped weights, the training, the measured scores and the limits are in ``docs/mini-generator.md``.

Shapes: B images, T tokens, L = 32 latent tokens, D = 384 wide, S = 384 dimensions of a sentence vector.

    pixels [B, 3, 260, 260] --trunk--> grid [B, 208, 9, 9]
    grid --tuned top--> [B, 1280, 9, 9] --project--> [B, 81, D]
    grid --ImageNet's own top--> P(class) [B, C] --names--> [B, S] --project--> [B, 1, D]
    latent queries [L, D] --2 x (attend to those 82 tokens and to one another, MLP)--> image state [B, L, D]

    [CLS], image states and word pieces in reading order --6 causal layers--> [B, T, D] --head--> [B, T, V]

The resampler is Kosmos' (one set of latent queries that attend to image tokens and to themselves) in two
blocks with an MLP each. The language model is MiniLM made causal, as Rothe et al. (arXiv 1907.12461) make
decoders of BERT. Its word embeddings, tied to the head, are frozen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast, final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention
from typing_extensions import Self

from zsqretrieval._util.torch import DTYPES, FromPretrained, resolve_device, resolve_dtype
from zsqretrieval.errors import WeightsError
from zsqretrieval.generators.engine.interleaved import Frame, InterleavedGenerator
from zsqretrieval.generators.engine.likelihood import ENGINE, logits_in_parts, logits_of
from zsqretrieval.mini.bert import MAX_TOKENS, VOCABULARY, WIDTH, Bert, Cache, Head
from zsqretrieval.mini.efficientnet import EfficientNetLite2, likely_names, pictures, scale_pixels
from zsqretrieval.mini.weights import BaseWeights, read_base_weights, read_trained, without_values
from zsqretrieval.types import Image

LATENTS = 32

_SHIPPED = Path(__file__).with_name("generator.safetensors")
_VERSION = "1"  # changes with preprocessing, tokenisation, or the order of tokens
_HEADS = 12
_BLOCKS = 2
_CLASSES = 1000
_FROM_BASE = (
    "eyes.stem.",
    "eyes.lower.",
    "eyes.own_top.",
    "eyes.classifier.",
    "language.bert.embeddings.word_embeddings.",
)


# --- the model --------------------------------------------------------------------------------------------


class ResamplerBlock(nn.Module):
    """Attention of latent queries to image tokens and to one another, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Latents [B, L, D] and image tokens [B, N, D] to latents [B, L, D]."""
        queries = self.norm1(latents)
        seen = torch.cat([tokens, queries], dim=1)  # [B, N + L, D]
        attended = scaled_dot_product_attention(
            _split(self.query(queries)), _split(self.key(seen)), _split(self.value(seen))
        )  # [B, heads, L, D / heads]
        latents = latents + self.out(attended.transpose(1, 2).flatten(2))
        added: Tensor = latents + self.fc2(gelu(self.fc1(self.norm2(latents))))
        return added


class VisionModel(EfficientNetLite2):
    """Vision backbone and resampler: pixels to the image state."""

    def __init__(self, base: BaseWeights) -> None:
        super().__init__(base.efficientnet)
        self.norm = nn.LayerNorm(1280)
        self.project = nn.Linear(1280, WIDTH)
        self.position = nn.Parameter(torch.empty(81, WIDTH))
        nn.init.normal_(self.position, std=0.02)
        self.norm_names = nn.LayerNorm(WIDTH)
        self.project_names = nn.Linear(WIDTH, WIDTH)
        self.latents = nn.Parameter(torch.empty(LATENTS, WIDTH))
        nn.init.normal_(self.latents, std=0.5)
        self.blocks = nn.ModuleList(ResamplerBlock() for _ in range(_BLOCKS))
        self.norm_out = nn.LayerNorm(WIDTH)
        self.class_names = nn.Buffer(torch.zeros(_CLASSES, WIDTH))
        self.image_mean = nn.Buffer(torch.zeros(WIDTH))

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 [B, 260, 260, 3] to image states [B, L, D]."""
        pixels = scale_pixels(pictures).to(self.project.weight.dtype)
        grid = self.trunk(pixels)
        return self.resample(grid, self.names(self.class_probabilities(self.own(grid))))

    def names(self, probabilities: Tensor) -> Tensor:
        """P(class | image) [B, C] to the mean name of the likeliest classes (ConSE), unit vectors [B, S]."""
        named = likely_names(probabilities, self.class_names.float())
        return normalize(named - self.image_mean.float(), dim=-1)

    def resample(self, grid: Tensor, names: Tensor) -> Tensor:
        """Trunk output [B, 208, 9, 9] and names [B, S] to image states [B, L, D]."""
        features = self.tuned_top(grid).flatten(2).transpose(1, 2)  # [B, 81, 1280]
        tokens = self.project(self.norm(features)) + self.position
        known = self.project_names(self.norm_names(names.to(features.dtype)))[:, None]
        tokens = torch.cat([tokens, known.to(tokens.dtype)], dim=1)  # [B, 82, D]
        latents = self.latents.expand(len(grid), -1, -1).to(tokens.dtype)
        for block in self.blocks:
            latents = block(latents, tokens)
        states: Tensor = self.norm_out(latents)
        return states


class Language(nn.Module):
    """MiniLM as a causal language model. Its untrained head is tied to the word embeddings.

    It shares the tensors of ``base``.
    """

    def __init__(self, base: BaseWeights) -> None:
        super().__init__()
        with without_values():
            self.bert = Bert()
        self.bert.load_state_dict(base.minilm, assign=True)
        self.cls = nn.ModuleDict({"predictions": Head()})


class MiniModel(nn.Module):
    """Vision model and language model."""

    def __init__(self, base: BaseWeights) -> None:
        super().__init__()
        self.eyes = VisionModel(base)
        self.language = Language(base)

    def trained(self) -> dict[str, Tensor]:
        """The tensors that the package ships: all that differ from the base models."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(_FROM_BASE)}

    def load_trained(self, trained: Mapping[str, Tensor]) -> None:
        """Load the tensors of :meth:`trained`, in float32.

        Raises:
            RuntimeError: a tensor is missing, unknown, or of another shape.
        """
        untouched = {name: value for name, value in self.state_dict().items() if name.startswith(_FROM_BASE)}
        exact = {name: one.float() if one.is_floating_point() else one for name, one in trained.items()}
        self.load_state_dict({**untouched, **exact}, assign=True)


class _Decoder:
    """The language model as a :class:`~zsqretrieval.generators.engine.likelihood.LanguageModel`."""

    max_tokens = MAX_TOKENS

    def __init__(self, language: Language) -> None:
        self._bert = language.bert
        self._features: Any = language.cls["predictions"]
        self.embed = language.bert.embeddings.word_embeddings
        self._head = nn.Linear(WIDTH, VOCABULARY, device="meta")
        self._head.weight = cast(nn.Parameter, self.embed.weight)
        self._head.bias = cast(nn.Parameter, self._features.bias)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: Cache | None
    ) -> Tensor:
        return self._bert.causal(inputs_embeds, mask=attention_mask, positions=position_ids, cache=cache)

    def logits(self, hidden: Tensor) -> Iterator[Tensor]:
        return logits_in_parts(self._features(hidden), self._head)

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return logits_of(self._features(hidden), self._head, tokens)


def _split(x: Tensor) -> Tensor:
    """[B, N, D] to [B, heads, N, D / heads]."""
    B, N, D = x.shape
    return x.view(B, N, _HEADS, D // _HEADS).transpose(1, 2)


# --- the generator ----------------------------------------------------------------------------------------


@final
class MiniGenerator(FromPretrained, InterleavedGenerator):
    """A small multimodal generator of short English texts; made by :meth:`from_pretrained`.

    A context is ``[CLS]``, then word pieces and, for every image, 32 latent tokens, in reading order. All
    text is lower case. Image states (:class:`~zsqretrieval.protocols.ImageStates`) are 32 x 384, 24 KiB in
    16 bits.
    """

    _settings = ("weights", "dtype", "prefix_cache_bytes")
    safe_settings: ClassVar[Mapping[str, Any]] = {
        "weights": (None,),
        "dtype": (None, *DTYPES),
        "prefix_cache_bytes": range(2**30),
    }

    def __init__(
        self,
        model: MiniModel,
        tokenizer: Tokenizer,
        *,
        config: Mapping[str, Any],
        fingerprint: str,
        prefix_cache_bytes: int = 0,
    ) -> None:
        start, stop = tokenizer.encode("").ids  # [CLS] and [SEP]
        super().__init__(
            _Decoder(model.language),
            Frame(start=(start,), stop=frozenset({stop})),
            (LATENTS, WIDTH),
            prefix_cache_bytes=prefix_cache_bytes,
        )
        self._model = model
        self._tokenizer = tokenizer
        self._config = dict(config)
        self._fingerprint = fingerprint

    @classmethod
    def from_pretrained(
        cls,
        weights: str | os.PathLike[str] | None = None,
        *,
        dtype: str | None = None,
        device: str | None = None,
        prefix_cache_bytes: int = 0,
    ) -> Self:
        """Load the generator. Its base weights (116 MB) come with the extra ``zsqretrieval[mini]``.

        Args:
            weights: trained part written by ``examples/train_mini_generator.py``; None for the shipped one.
            dtype: ``"float32"`` or ``"bfloat16"``; None for bfloat16 where the device computes in it, else
                float32.
            device: a torch device; None for that of ``ZSQ_DEVICE``, else the best available.
            prefix_cache_bytes: memory for keys and values of contexts between calls; an image takes 300 KiB
                in 16 bits.

        Raises:
            InvalidInputError: unknown dtype or device.
            MissingDependencyError: the extra ``mini`` is not installed.
            WeightsError: base weights are altered, or ``weights`` is not a trained part of this generator.
        """
        path = _SHIPPED if weights is None else Path(weights).absolute()
        target = resolve_device(device)
        name, kind = resolve_dtype(dtype, target)
        trained, digest = read_trained(path, "generator")
        base = read_base_weights()
        with without_values():  # what is not of ``base`` is in ``trained``
            model = MiniModel(base)
        try:
            model.load_trained(trained)
        except RuntimeError as error:
            raise WeightsError(f"{path} does not fit the mini generator: {error}") from error
        model.eval().eyes.fold()
        config: dict[str, Any] = {"dtype": name, "prefix_cache_bytes": prefix_cache_bytes}
        if weights is not None:
            config["weights"] = str(path)
        return cls(
            model.requires_grad_(False).to(target, kind),
            base.tokenizer,
            config=config,
            fingerprint=f"mini-{_VERSION}.{ENGINE}-{digest[:16]}-{name}",
            prefix_cache_bytes=prefix_cache_bytes,
        )

    @property
    def fingerprint(self) -> str:
        """Versions, digest of the trained part, and dtype. The base weights are fixed in the source."""
        return self._fingerprint

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
        states: Tensor = self._model.eyes(pictures(images).to(self._language.device))  # [n, 32, 384]
        return states

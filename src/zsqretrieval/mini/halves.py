"""The mini generator's two halves, and how they are put together from downloaded and trained weights.

Shapes: B images, T tokens, L = 32 latent tokens, D = 384 wide, S = 384 dimensions of a sentence vector.

    pixels [B, 3, 260, 260] --trunk--> grid [B, 208, 9, 9]
    grid --tuned top--> [B, 1280, 9, 9] --project--> [B, 81, D]
    grid --ImageNet's own top--> P(class) [B, C] --names--> [B, S] --project--> [B, 1, D]
    latent queries [L, D] --2 x (attend to those 82 tokens and to one another, MLP)--> image state [B, L, D]

    [CLS], image states and word pieces in reading order --6 causal layers--> [B, T, D] --head--> [B, T, V]

The resampler is Kosmos' (one set of latent queries that attend to image tokens and to themselves) in two
blocks with an MLP each. The language model is MiniLM made causal, as Rothe et al. (arXiv 1907.12461) make
decoders of BERT; its word embeddings, which are also those of the head, stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention
from transformers import BertConfig, BertLMHeadModel

from zsqretrieval.mini.efficientnet import EfficientNetLite2, another_top, likely_names, scale_pixels

__all__ = ["LATENTS", "WIDTH", "Eyes", "MiniModel"]

WIDTH = 384
LATENTS = 32
_HEADS = 12
_BLOCKS = 2
_CLASSES = 1000


class ResamplerBlock(nn.Module):
    """Latent queries attend to image tokens and to one another, and think about it."""

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


class Eyes(EfficientNetLite2):
    """From pixels to the image state."""

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        super().__init__(base)
        self.tuned_top = another_top(base)
        self.norm = nn.LayerNorm(1280)
        self.project = nn.Linear(1280, WIDTH)
        self.position = nn.Parameter(torch.randn(81, WIDTH) * 0.02)
        self.norm_names = nn.LayerNorm(WIDTH)
        self.project_names = nn.Linear(WIDTH, WIDTH)
        self.latents = nn.Parameter(torch.randn(LATENTS, WIDTH) * 0.5)
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
        """P(class | image) [B, C] to what is known of it by name (ConSE), unit vectors [B, S]."""
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


class MiniModel(nn.Module):
    """Both halves."""

    def __init__(
        self,
        cnn: Mapping[str, Tensor],
        config: Path,
        minilm: Mapping[str, Tensor],
        *,
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        self.eyes = Eyes(cnn)
        self.language = _language_model(config, minilm, attention)

    def trained(self) -> dict[str, Tensor]:
        """What the package ships, by name: everything that is not as the base models brought it."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(_FROM_BASE)}

    def load_trained(self, trained: Mapping[str, Tensor]) -> None:
        """Put what :meth:`trained` gave in its place.

        Raises:
            RuntimeError: a tensor is missing, unknown, or of another shape.
        """
        untouched = {name: value for name, value in self.state_dict().items() if name.startswith(_FROM_BASE)}
        self.load_state_dict({**untouched, **trained})


_FROM_BASE = (
    "eyes.stem.",
    "eyes.lower.",
    "eyes.own_top.",
    "eyes.classifier.",
    "language.bert.embeddings.word_embeddings.",
    "language.cls.predictions.decoder.",  # the word embeddings again, and a bias that is stored once already
)


def _language_model(config: Path, base: Mapping[str, Tensor], attention: str) -> Any:
    """MiniLM as a causal language model whose head, but for the tied word embeddings, is untrained."""
    settings = BertConfig.from_json_file(config)
    settings.is_decoder = True
    settings.use_cache = False
    settings._attn_implementation = attention
    settings.hidden_dropout_prob = settings.attention_probs_dropout_prob = 0.0
    model: Any = BertLMHeadModel(settings)
    unused = ("pooler.", "embeddings.position_ids")
    weights = {f"bert.{name}": value for name, value in base.items() if not name.startswith(unused)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith("cls.") for name in missing)
    model.tie_weights()
    return model


def _split(x: Tensor) -> Tensor:
    """[B, N, D] to [B, heads, N, D / heads]."""
    B, N, D = x.shape
    return x.view(B, N, _HEADS, D // _HEADS).transpose(1, 2)

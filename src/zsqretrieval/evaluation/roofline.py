"""What reading candidates costs on a large accelerator: computed from the architecture, not measured.

FLOPs are counted by the usual rule, two for a multiplication with its addition, of matrix products alone.
Kosmos-2's sizes are those of its released configuration (microsoft/kosmos-2-patch14-224): a CLIP ViT-L/14
at 224 pixels, a resampler to 64 latents, a decoder of 24 layers of width 2048 over 65,037 words. The
accelerator is an H100 SXM at 989 TFLOP/s, its data sheet's dense bfloat16 peak, of which a share is assumed
to be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zsqretrieval.errors import InvalidInputError

__all__ = ["H100_TFLOPS", "LAION_5B", "ReadingCost", "kosmos2_cost", "laion_cost"]

H100_TFLOPS = 989.0
"""Dense bfloat16 peak of NVIDIA's H100 SXM data sheet."""

LAION_5B = 5_850_000_000
"""Pairs of LAION-5B (laion.ai/blog/laion-5b)."""

_PATCHES, _VISION_WIDTH, _VISION_LAYERS = 256, 1024, 24
_LATENTS, _WIDTH, _LAYERS, _WORDS = 64, 2048, 24, 65_037
_FRAME = 3  # <s>, <image> and </image> around the latents
_VECTOR_BYTES = 2 * 768  # a ViT-L/14 embedding in 16 bits
_QUESTION = 30  # tokens


@dataclass(frozen=True, slots=True)
class ReadingCost:
    """One candidate read for one question, by what is kept of the image.

    Attributes:
        flops: ``pixels``: nothing is kept; ``states``: what the resampler made of it; ``prefixes``: the
            keys and values of all that stands before the question.
        bytes_kept: the same -> bytes per image in 16 bits.
        vision_flops: of the image tower alone: what one ViT-L/14 embedding costs.
        utilisation: share of the peak that is assumed to be used.
    """

    flops: Mapping[str, float]
    bytes_kept: Mapping[str, int]
    vision_flops: float
    utilisation: float

    def seconds(self, candidates: int, kept: str) -> float:
        """Time of one H100 for that many candidates."""
        return candidates * self.flops[kept] / (self.utilisation * H100_TFLOPS * 1e12)

    def gallery_days(self, images: int) -> float:
        """Days of one H100 to encode a gallery once."""
        return images * self.vision_flops / (self.utilisation * H100_TFLOPS * 1e12) / 86_400


def kosmos2_cost(*, question_tokens: int = _QUESTION, utilisation: float = 0.4) -> ReadingCost:
    """Count Kosmos-2's work for a question after an image.

    Args:
        question_tokens: of prompt and question together.
        utilisation: share of the peak that is used; 0.4 is an assumption, of large batches that are
            well fed.

    Raises:
        InvalidInputError: no tokens, or a utilisation outside (0, 1].
    """
    if question_tokens < 1 or not 0 < utilisation <= 1:
        raise InvalidInputError(
            f"{question_tokens} tokens at a utilisation of {utilisation}: give at least one, and a share"
        )
    tokens = _PATCHES + 1
    patches = 2 * _PATCHES * (3 * 14 * 14) * _VISION_WIDTH
    vision = patches + _VISION_LAYERS * _layer(tokens, tokens, _VISION_WIDTH)
    seen = tokens + _LATENTS  # the latents attend to the image and to themselves
    projections = 2 * tokens * _VISION_WIDTH * _WIDTH + 2 * 2 * (seen + _LATENTS) * _WIDTH**2
    resampler = projections + 4 * _LATENTS * seen * _WIDTH
    prefix = _LATENTS + _FRAME
    length = prefix + question_tokens
    head = 2 * question_tokens * _WIDTH * _WORDS
    from_states = _LAYERS * _layer(length, length, _WIDTH) + head
    from_prefix = _LAYERS * _layer(question_tokens, length, _WIDTH) + head
    return ReadingCost(
        {"pixels": vision + resampler + from_states, "states": from_states, "prefixes": from_prefix},
        {"pixels": 0, "states": 2 * _LATENTS * _WIDTH, "prefixes": 2 * 2 * _LAYERS * prefix * _WIDTH},
        vision,
        utilisation,
    )


def laion_cost(depths: Sequence[int], needed: Mapping[str, int]) -> dict[str, Any]:
    """What a query over LAION-5B costs on one H100, as JSON.

    Args:
        depths: numbers of candidates.
        needed: by model, how many candidates it says keep the ceiling.
    """
    cost = kosmos2_cost()

    def reading(candidates: int, **what: str) -> dict[str, Any]:
        spent = {kept: float(f"{cost.seconds(candidates, kept):.3g}") for kept in cost.flops}
        return {"candidates": candidates, "seconds": spent, **what}

    return {
        "model": "Kosmos-2 reads what CLIP ViT-L/14 finds; computed, not measured",
        "accelerator": f"one H100: {H100_TFLOPS:g} TFLOP/s dense bfloat16, used to {cost.utilisation:.0%}",
        "question_tokens": _QUESTION,
        "gflop_per_candidate": {kept: round(flops / 1e9, 1) for kept, flops in cost.flops.items()},
        "bytes_kept_per_image": dict(cost.bytes_kept),
        "per_query": [
            *(reading(k) for k in depths),
            *(reading(k, keeps_the_ceiling_by=model) for model, k in needed.items()),
        ],
        "laion_5b": {
            "images": LAION_5B,
            "days_to_encode_once": round(cost.gallery_days(LAION_5B), 1),
            "vectors_tb": round(LAION_5B * _VECTOR_BYTES / 1e12, 2),
            "states_tb": round(LAION_5B * cost.bytes_kept["states"] / 1e12, 1),
        },
        "left_out": "embedding the question (milliseconds), the index search, fetching images or states",
    }


def _layer(queries: int, keys: int, width: int) -> float:
    """One transformer layer with a feed-forward part four times as wide."""
    return 2 * queries * 12 * width**2 + 4 * queries * keys * width

"""Table of vision-language model families: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from zsqretrieval.errors import InvalidInputError

Rows: TypeAlias = dict[str, list[int]]
"""One integer per token: ``input_ids``, ``attention_mask`` and other inputs of the model."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Prompt layout for a family whose processor takes only one image before the text.

    For a context of one image and one text, the prompt equals the processor's.
    """

    # (processor, config) -> placeholder tokens of one image, as text
    image: Callable[[Any, Any], str]
    # (tokenizer, leading images, following text and images) -> the prompt's rows
    write: Callable[[Any, str, str], Rows]
    # config -> shapes, by name, of the zeros that replace pixels when no prompt of a batch has an image
    without_images: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}


@dataclass(frozen=True, slots=True)
class Family:
    """Input format of one family."""

    name: str
    image: str | None = None  # text of an image in a plain prompt; None for the processor's image token
    layout: Layout | None = None  # None where the processor accepts images anywhere
    lead: str = " "  # text between a plain prompt and its continuation
    # value of a continuation's tokens in per-token tensors, by the tensor's name; 0 elsewhere
    following: Mapping[str, int] = field(default_factory=dict)
    batched: bool = True  # whether several prompts may share a batch
    pads_to_generate: bool = True  # whether prompts of different lengths may share a batch in generation


def _rows(ids: list[int]) -> Rows:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _write_blip2(tokenizer: Any, leading: str, rest: str) -> Rows:
    # the tokenizer adds OPT's start token or T5's end token; images come before either
    return _rows(_plain(tokenizer, leading) + list(tokenizer(rest).input_ids))


def _write_paligemma(tokenizer: Any, leading: str, rest: str) -> Rows:
    rows = _rows(_plain(tokenizer, f"{leading}{tokenizer.bos_token}{rest}\n"))
    return {**rows, "token_type_ids": [0] * len(rows["input_ids"])}


def _write_florence2(tokenizer: Any, leading: str, rest: str) -> Rows:
    return _rows(_plain(tokenizer, f"{leading}{tokenizer.bos_token}{rest}{tokenizer.eos_token}"))


def _write_kosmos2(tokenizer: Any, leading: str, rest: str) -> Rows:
    space = " " if leading and rest else ""
    ids = _plain(tokenizer, f"{tokenizer.bos_token}{leading}{space}{rest}")
    image = tokenizer.convert_tokens_to_ids("<image>")
    # the first of a run of <image> opens the image, the others are its placeholders
    slots = [int(before == here == image) for before, here in zip([-1, *ids], ids, strict=False)]
    return {**_rows(ids), "image_embeds_position_mask": slots}


def _image_tokens(processor: Any, n: int) -> str:
    return str(processor.image_token) * n


_BLIP2 = Layout(
    lambda processor, config: _image_tokens(processor, config.num_query_tokens),
    _write_blip2,
    lambda config: {"pixel_values": (1, 3, config.vision_config.image_size, config.vision_config.image_size)},
)
_PALIGEMMA = Layout(
    lambda processor, config: _image_tokens(processor, processor.image_seq_length), _write_paligemma
)
_FLORENCE2 = Layout(
    lambda processor, config: _image_tokens(processor, processor.num_image_tokens), _write_florence2
)
_KOSMOS2 = Layout(
    lambda processor, config: "<image>" * (1 + config.latent_query_num) + "</image>",
    _write_kosmos2,
    lambda config: {"image_embeds": (0, config.latent_query_num, config.text_config.embed_dim)},
)
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

FAMILIES: Mapping[str, Family] = {
    "blip-2": Family("BLIP-2", layout=_BLIP2),
    "florence2": Family("Florence-2", layout=_FLORENCE2),
    "gemma3": Family("Gemma 3"),  # its token types mark images, so text stays 0
    "idefics3": Family("Idefics3"),
    "internvl": Family("InternVL"),
    # with a cache, transformers counts padding as positions
    "kosmos-2": Family("Kosmos-2", layout=_KOSMOS2, pads_to_generate=False),
    "llava": Family("LLaVA"),
    "mllama": Family("Llama 3.2 Vision"),
    # tokens of type 0 belong to the prefix, which has bidirectional attention
    "paligemma": Family("PaliGemma", layout=_PALIGEMMA, lead="", following={"token_type_ids": 1}),
    "qwen2_5_vl": Family("Qwen2.5-VL", image=_QWEN_IMAGE),
    "qwen2_vl": Family("Qwen2-VL", image=_QWEN_IMAGE),
    "qwen3_vl": Family("Qwen3-VL", image=_QWEN_IMAGE),
    "smolvlm": Family("SmolVLM"),
}
"""Tested families, by the ``model_type`` of their configuration."""

_ONE_IMAGE = "it takes exactly one image beside the text, so it cannot read an interleaved context"
_NO_PROMPT = "its prompt is rendered or classified, not read as tokens that a continuation could follow"
_NOT_CAUSAL = "it does not generate from left to right, so tokens have no conditional log-probabilities"

REFUSED: Mapping[str, str] = {
    "blip": _ONE_IMAGE,
    "diffusion_gemma": _NOT_CAUSAL,
    "evolla": "it reads proteins",
    "git": _ONE_IMAGE,
    "instructblip": "its query transformer reads the question too, apart from the language model",
    "instructblipvideo": "its query transformer reads the question too, apart from the language model",
    "pi0": "it moves robots",
    "pix2struct": _NO_PROMPT,
    "pp_formulanet": _NO_PROMPT,
    "udop": "it wants the places of the words on a page",
    "vision-encoder-decoder": _NO_PROMPT,
}
"""Families that cannot be scored, with the reason."""


def family_of(model_type: str) -> Family:
    """The family of a configuration's ``model_type``; an untested one is scored one pair at a time."""
    if model_type in REFUSED:
        raise InvalidInputError(
            f"{model_type} models cannot be scored by VLMGenerator: {REFUSED[model_type]}; use one of "
            f"{', '.join(family.name for family in FAMILIES.values())}"
        )
    return FAMILIES.get(model_type) or Family(model_type, batched=False)

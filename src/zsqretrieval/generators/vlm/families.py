"""What a family of vision-language models needs to be known about it: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from zsqretrieval.errors import InvalidInputError

__all__ = ["FAMILIES", "REFUSED", "Family", "Layout", "family_of"]

Rows: TypeAlias = dict[str, list[int]]
"""One integer per token: ``input_ids``, ``attention_mask`` and what else the model wants of each token."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A prompt written token by token, for a family whose processor takes one image before the text only.

    Where a context is one image and then a text, the prompt is exactly the processor's own.

    Attributes:
        image: the placeholder tokens of one image, as text; given the processor and the model's config.
        write: the prompt's rows; given the tokenizer, the images that lead, and the text and images after.
        without_images: the shapes of the tensors of zeros, by name, that the model wants in place of pixels
            when no prompt of a batch has an image; given the model's config.
    """

    image: Callable[[Any, Any], str]
    write: Callable[[Any, str, str], Rows]
    without_images: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}


@dataclass(frozen=True, slots=True)
class Family:
    """How one family reads contexts.

    Attributes:
        name: what people call it.
        image: how a plain prompt writes an image; None where the processor's image token is enough.
        layout: None where the processor puts images wherever their placeholders stand.
        lead: what stands between a plain prompt and the text that follows it.
        following: what the tokens of a continuation have in tensors that say something of each token,
            by the tensor's name; 0 in those not named.
        batched: whether prompts may share a batch.
        pads_to_generate: whether prompts of different lengths may share a batch when text is generated.
    """

    name: str
    image: str | None = None
    layout: Layout | None = None
    lead: str = " "
    following: Mapping[str, int] = field(default_factory=dict)
    batched: bool = True
    pads_to_generate: bool = True


def _rows(ids: list[int]) -> Rows:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _write_blip2(tokenizer: Any, leading: str, rest: str) -> Rows:
    # the tokenizer adds OPT's beginning or T5's end; images stand before either
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
    # the first of a run of <image> opens the image, the others hold its place
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
    # transformers counts padding among the positions once the cache is in use
    "kosmos-2": Family("Kosmos-2", layout=_KOSMOS2, pads_to_generate=False),
    "llava": Family("LLaVA"),
    "mllama": Family("Llama 3.2 Vision"),
    # with type 0 a token joins the prefix, where every token sees every other
    "paligemma": Family("PaliGemma", layout=_PALIGEMMA, lead="", following={"token_type_ids": 1}),
    "qwen2_5_vl": Family("Qwen2.5-VL", image=_QWEN_IMAGE),
    "qwen2_vl": Family("Qwen2-VL", image=_QWEN_IMAGE),
    "qwen3_vl": Family("Qwen3-VL", image=_QWEN_IMAGE),
    "smolvlm": Family("SmolVLM"),
}
"""Families that are tested, by the ``model_type`` of their configuration."""

_ONE_IMAGE = "it reads exactly one image and keeps it beside the text, so a context has no place in it"
_NO_PROMPT = "its prompt is drawn or classified, not read as tokens that a continuation could follow"
_NOT_CAUSAL = "it does not write from left to right, so a text has no log-probability token by token"

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
"""Families that cannot be scored this way, with the reason."""


def family_of(model_type: str) -> Family:
    """The family of a configuration's ``model_type``; any that is not tested is taken one pair at a time.

    Raises:
        InvalidInputError: models of this family cannot be scored; says why.
    """
    if model_type in REFUSED:
        raise InvalidInputError(
            f"{model_type} models cannot be scored by VLMGenerator: {REFUSED[model_type]}; use one of "
            f"{', '.join(family.name for family in FAMILIES.values())}"
        )
    return FAMILIES.get(model_type) or Family(model_type, batched=False)

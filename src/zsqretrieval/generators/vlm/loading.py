"""Loading a vision-language model with its processor, and preparing it for scoring."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from zsqretrieval._util.torch import check_complete, import_transformers, loading
from zsqretrieval.errors import InvalidInputError, WeightsError
from zsqretrieval.generators.vlm.families import FAMILIES, family_of


def resolve(name_or_path: str | Path) -> str:
    """A hub name unchanged; a folder as an absolute path."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    if isinstance(name_or_path, Path) or str(name_or_path).startswith((".", "/", "~")):
        raise WeightsError(f"there is no folder {folder.absolute()}; give a folder of save_pretrained")
    return str(name_or_path)


def load(name: str, dtype: str | None, revision: str | None) -> tuple[Any, Any]:
    """The model, on the CPU, and its processor; errors as in :meth:`VLMGenerator.from_pretrained`."""
    hf = import_transformers()
    own = {"revision": revision or "main", "trust_remote_code": False}
    with _reading(name, "configuration"):
        config = hf.AutoConfig.from_pretrained(name, **own)
    family_of(config.model_type)
    if type(config) not in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        known = ", ".join(family.name for family in FAMILIES.values())
        raise InvalidInputError(
            f"{name} is a {config.model_type} model, which is not image-text-to-text; tested are {known}"
        )
    with _reading(name, "processor"):
        processor = hf.AutoProcessor.from_pretrained(name, **own)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise WeightsError(
            f"{name} has no processor for images and text, only a {type(processor).__name__}; save the whole "
            "processor beside the weights"
        )
    with _reading(name, "weights"):
        model, report = hf.AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype or "auto", output_loading_info=True, **own
        )
    check_complete(name, report)
    _complete(processor, model)
    return model, processor


def _complete(processor: Any, model: Any) -> None:
    """Give a processor saved before ``patch_size`` existed what it needs to count an image's tokens."""
    if getattr(processor, "patch_size", 0) is None:
        vision = model.config.vision_config
        processor.patch_size = vision.patch_size
        processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
        # the token of the whole image, before those of its patches
        whole = ("class_embedding", "cls_token")
        processor.num_additional_image_tokens = int(
            any(weight.endswith(whole) for weight in model.state_dict() if "vision" in weight)
        )


def _reading(name: str, what: str) -> AbstractContextManager[None]:
    advice = (
        "It is not a folder, not in the cache, and cannot be downloaded: on a machine with network, run "
        f"`hf download {name} --local-dir FOLDER`, and give that folder instead of the name"
    )
    return loading(f"the {what} of {name}", name, advice)


def is_encoder_decoder(config: Any) -> bool:
    """Whether contexts go to an encoder and continuations to a decoder."""
    return any(getattr(one, "is_encoder_decoder", False) for one in (config, config.get_text_config()))


def special_tokens(model: Any, tokenizer: Any) -> tuple[int, int | None, frozenset[int]]:
    """The padding token, the decoder's start token, and the end tokens."""
    text, generation = model.config.get_text_config(), getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None) or getattr(text, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    ends = {end for end in [*ends, tokenizer.eos_token_id] if end is not None}
    pads = (getattr(text, "pad_token_id", None), tokenizer.pad_token_id, *sorted(ends), 0)
    starts = (getattr(one, "decoder_start_token_id", None) for one in (text, model.config, generation))
    start = next((start for start in starts if start is not None), None)
    if start is None and is_encoder_decoder(model.config):
        raise InvalidInputError("this encoder-decoder's configuration has no decoder_start_token_id; set it")
    return next(pad for pad in pads if pad is not None and pad >= 0), start, frozenset(ends)


def forward_options(model: Any) -> dict[str, Any]:
    """Options for a small forward pass, if the model has them: no cache, logits of the last tokens only."""
    parameters = inspect.signature(model.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    options: dict[str, Any] = {"use_cache": False} if anything or "use_cache" in parameters else {}
    return {**options, "logits_to_keep": 0} if "logits_to_keep" in parameters else options


def prepare(model: Any) -> None:
    """Ignore the checkpoint's generation settings, and give the head contiguous inputs.

    transformers adds a checkpoint's penalties and forbidden repeats to the settings of a call. For a strided
    view of hidden states, torch copies the vocabulary matrix once per row: 17.6 s against 0.3 s for 8 rows of
    31 positions and Kosmos-2's head in bfloat16 on one CPU core.
    """
    settings = import_transformers().GenerationConfig
    for module in model.modules():
        if getattr(module, "generation_config", None) is not None:
            module.generation_config = settings()
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))


# -- unrounded logits
#
# hidden states --head, in 16 bits--> logits --further layers of some models--> the model's logits
#               --one row of the head, in float32--> the logit of one token


@contextmanager
def watched_head(model: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Record inputs and outputs of a head that computes in 16 bits.

    Yields:
        Pairs of hidden states [..., D] and logits [..., V], one per call; none when the model computes in
        more than 16 bits, or its head is not a linear layer.
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.weight.dtype not in (torch.bfloat16, torch.float16):
        yield seen
        return
    hook = head.register_forward_hook(lambda module, args, logits: seen.append((args[0], logits)))
    try:
        yield seen
    finally:
        hook.remove()


def hidden_behind(logits: torch.Tensor, seen: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor | None:
    """The hidden states from which the head computed these logits; None if further layers changed them."""
    return next((hidden for hidden, made in seen if made is logits), None)

"""Loading a vision-language model with its processor, and setting it up to be scored."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zsqretrieval._util.torchvision import ensure_importable
from zsqretrieval.errors import InvalidInputError, WeightsError
from zsqretrieval.generators.loading import check_complete, missing_package
from zsqretrieval.generators.vlm.families import FAMILIES, family_of

__all__ = [
    "forget_generation_settings",
    "forward_options",
    "import_transformers",
    "is_encoder_decoder",
    "load",
    "resolve",
    "special_tokens",
]


def import_transformers() -> Any:
    """The package, untyped: most of what is wanted of it has no annotations."""
    ensure_importable()
    return importlib.import_module("transformers")


def resolve(name_or_path: str | Path) -> str:
    """A hub name as it is; a folder as an absolute path."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    if isinstance(name_or_path, Path) or str(name_or_path).startswith((".", "/", "~")):
        raise WeightsError(f"there is no folder {folder.absolute()}; give one that save_pretrained wrote")
    return str(name_or_path)


def load(name: str, dtype: str | None, revision: str | None) -> tuple[Any, Any]:
    """The model, on the CPU, and its processor; errors as :meth:`VLMGenerator.from_pretrained` says."""
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
    return model, processor


@contextmanager
def _reading(name: str, what: str) -> Iterator[None]:
    """Say what could not be read, whatever transformers, huggingface_hub, json and safetensors raise."""
    try:
        yield
    except MemoryError:
        raise
    except ImportError as error:
        raise missing_package(error, f"the {what} of {name}") from error
    except Exception as error:
        cause = f"{type(error).__name__}: {str(error).strip()[:300].rstrip('.')}"
        advice = (
            "It has to be a whole folder that save_pretrained wrote"
            if Path(name).is_dir()
            else "It is neither a folder here, nor in the cache, nor can it be fetched: where there is "
            f"network, run `hf download {name} --local-dir FOLDER`, and give that folder in place of the name"
        )
        raise WeightsError(f"cannot load the {what} of {name}: {cause}. {advice}") from error


def is_encoder_decoder(config: Any) -> bool:
    """Whether contexts go to an encoder and continuations to a decoder of their own."""
    return any(getattr(one, "is_encoder_decoder", False) for one in (config, config.get_text_config()))


def special_tokens(model: Any, tokenizer: Any) -> tuple[int, int | None, frozenset[int]]:
    """The tokens that pad, that a decoder starts with, and that end a text.

    Raises:
        InvalidInputError: nothing says what the decoder of an encoder-decoder starts with.
    """
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
    """What keeps a forward pass small, where the model knows it: no cache, logits of the last tokens only."""
    parameters = inspect.signature(model.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    options: dict[str, Any] = {"use_cache": False} if anything or "use_cache" in parameters else {}
    return {**options, "logits_to_keep": 0} if "logits_to_keep" in parameters else options


def forget_generation_settings(model: Any) -> None:
    """Checkpoints carry penalties and forbidden repeats, and transformers adds them to what a call asks."""
    settings = import_transformers().GenerationConfig
    for module in model.modules():
        if getattr(module, "generation_config", None) is not None:
            module.generation_config = settings()

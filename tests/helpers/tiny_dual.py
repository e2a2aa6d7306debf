"""Tiny random dual encoders of transformers, saved as their authors save the real ones."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from tiny_vlms import LAYERS, SIZE, VISION, hf, text_ids, widen, words_tokenizer

TEXT = {**LAYERS, "max_position_embeddings": 24}


def _saved(folder: Path, model: Any, processor: Any) -> Path:
    widen(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _ending(limit: int, **tokens: str) -> Any:
    """A tokenizer that puts an end token behind every text, and a beginning before it."""
    tokenizer = words_tokenizer(model_max_length=limit, **tokens)
    ends = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<s>", "</s>")}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[*ends.items()]
    )
    return tokenizer


def _clip(folder: Path, family: str) -> Path:
    tokenizer = _ending(24)
    ids = text_ids(tokenizer)
    config = getattr(hf, f"{family}Config")(
        text_config={**TEXT, **ids}, vision_config=VISION, projection_dim=16
    )
    processor = hf.CLIPProcessor(hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE), tokenizer)
    return _saved(folder, getattr(hf, f"{family}Model")(config), processor)


def clip(folder: Path) -> Path:
    return _clip(folder, "CLIP")


def metaclip2(folder: Path) -> Path:
    return _clip(folder, "MetaClip2")


def siglip(folder: Path) -> Path:
    """SigLIP, and SigLIP 2 at a fixed resolution, whose Gemma tokenizer keeps capitals."""
    tokenizer = words_tokenizer(model_max_length=64)
    text = {**LAYERS, "max_position_embeddings": 64, **text_ids(tokenizer)}
    config = hf.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=VISION)
    return _saved(
        folder, hf.SiglipModel(config), hf.SiglipProcessor(hf.SiglipImageProcessor(size=SIZE), tokenizer)
    )


def siglip2(folder: Path) -> Path:
    """SigLIP 2 that keeps the shape of images (NaFlex), with its own tokenizer, of letters here."""
    marks = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    letters = {piece: n for n, piece in enumerate([*marks, "▁", *string.ascii_lowercase, *"?,.0123456789"])}
    tokenizer = hf.Siglip2Tokenizer(letters, [], padding_side="right", model_max_length=64)
    text = {**LAYERS, "max_position_embeddings": 64, **text_ids(tokenizer), "projection_size": 32}
    vision = {**LAYERS, "num_patches": 16, "patch_size": 16}
    processor = hf.Siglip2Processor(hf.Siglip2ImageProcessor(), tokenizer)
    return _saved(
        folder, hf.Siglip2Model(hf.Siglip2Config(text_config=text, vision_config=vision)), processor
    )


FAMILIES = {builder.__name__: builder for builder in (clip, metaclip2, siglip, siglip2)}

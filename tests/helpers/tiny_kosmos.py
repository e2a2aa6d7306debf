"""A Kosmos small enough for tests: the real architecture and processor, random weights, few words."""

from __future__ import annotations

import re

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.generators.kosmos import Kosmos1Generator
from zsqretrieval.testing.generator_case import QUESTIONS, WORDS

ensure_torchvision()
from transformers import (  # noqa: E402
    CLIPImageProcessorPil,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
TEXT = " ".join(
    [
        *QUESTIONS,
        *WORDS,
        "The picture: A question about the picture is: then Only text. Question: An image of",
    ]
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words and punctuation marks, spaces marked as SentencePiece marks them."""
    words = dict.fromkeys(
        ["\u2581" + word for word in re.findall(r"\w+", TEXT)] + re.findall(r"[^\w\s]", TEXT)
    )
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=256,
    )


def tiny_processor() -> Kosmos2Processor:
    size = {"height": 28, "width": 28}
    image_processor = CLIPImageProcessorPil(size=size, crop_size=size)
    return Kosmos2Processor(image_processor, tiny_tokenizer(), num_patch_index_tokens=4)


def tiny_model(vocab_size: int, *, seed: int = 0) -> Kosmos2ForConditionalGeneration:
    """Two layers each; weights scaled so that text and image matter, which by default they do not."""
    config = Kosmos2Config(
        text_config={
            "vocab_size": vocab_size,
            "max_position_embeddings": 256,
            "embed_dim": 32,
            "layers": 2,
            "ffn_dim": 64,
            "attention_heads": 4,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
        },
        latent_query_num=6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Kosmos2ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.text_model.parameters():
            if parameter.ndim == 2:
                parameter *= 8
        for parameter in model.vision_model.parameters():
            parameter *= 3 if parameter.ndim > 1 else 1
        model.image_to_text_projection.dense.weight *= 400
        for layer in ("v_proj", "out_proj"):
            getattr(model.image_to_text_projection.x_attn, layer).weight *= 6
    return model.eval()


def tiny_kosmos(dtype: torch.dtype = torch.float32, **settings) -> Kosmos1Generator:
    processor = tiny_processor()
    model = tiny_model(len(processor.tokenizer))
    return Kosmos1Generator(model.to(dtype), processor, config={}, **settings)

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


# Standard deviations of the weights by the start of their names. They are large, since with those of
# transformers neither text nor image matters; the layers' above all, or each token predicts itself.
SPREAD = {
    "text_model.model.embed_tokens": 0.16,
    "text_model.model.layers": 0.5,
    "vision_model.model.embeddings": 0.06,
    "vision_model.model.encoder": 0.3,
    "image_to_text_projection.latent_query": 1,
    "image_to_text_projection.dense": 8,
    "image_to_text_projection.x_attn": 0.1,
}


def tiny_model(vocab_size: int, *, seed: int = 3) -> Kosmos2ForConditionalGeneration:
    """Two layers each, and the same weights with every version of transformers, whose own differ."""
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
        model = Kosmos2ForConditionalGeneration(config)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1 or name.endswith("embedding"):
                spread = next(SPREAD[start] for start in SPREAD if name.startswith(start))
                parameter.normal_(std=spread, generator=drawn)
        words = model.text_model.model.embed_tokens
        words.weight[words.padding_idx] = 0
    return model.eval()


def tiny_kosmos(dtype: torch.dtype = torch.float32, **settings) -> Kosmos1Generator:
    processor = tiny_processor()
    model = tiny_model(len(processor.tokenizer))
    return Kosmos1Generator(model.to(dtype), processor, config={}, **settings)

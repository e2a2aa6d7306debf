"""Tiny random models of many families, saved the way their authors save the real ones.

Every one is 32 wide, two layers deep, and has the real processor of its family and a tokenizer trained on
the spot. The weights are drawn as wide as a trained model's: at the usual initial width the image would
hardly move a probability, and a dropped image would go unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.testing.generator_case import QUESTIONS, WORDS

ensure_torchvision()
import transformers as hf  # noqa: E402
from transformers.models.smolvlm import processing_smolvlm  # noqa: E402

CORPUS = [
    *QUESTIONS,
    " ".join(WORDS),
    "The picture: A question about the picture is: Only text. Question: then Question: Answer:",
    "what is the colour of the red house what is the colour of the dog is the red thing in the picture?",
    "the green house: the red house: user assistant User: Assistant: USER: ASSISTANT: caption en",
]
POSITIONS = 512
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**LAYERS, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
VISION = {**LAYERS, "image_size": 32, "patch_size": 8}
SIZE = {"height": 32, "width": 32}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""After Qwen's: the assistant's words begin on a new line."""
COLON_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""After Idefics3's: the assistant's words follow a colon and a space."""


def words_tokenizer(*special: str, named: dict[str, str] | None = None, **tokens: str) -> Any:
    """Whole words that carry the space before them, as sentencepiece models write it."""
    words = dict.fromkeys(word for text in CORPUS for word in text.split())
    splits = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace()]
    return _tokenizer(
        [f"▁{word}" for word in (*words, "\n")],
        pre_tokenizers.Sequence(splits),
        decoders.Metaspace(),
        special,
        named,
        tokens,
    )


def bytes_tokenizer(*special: str, named: dict[str, str] | None = None, **tokens: str) -> Any:
    """Whole words with and without a space in front, as the tokenizers of GPT-2 and Qwen write them."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = {piece.lstrip("Ġ") for text in CORPUS for piece, _ in splitter.pre_tokenize_str(text)}
    words = [mark + piece for piece in sorted(pieces) for mark in ("", "Ġ")]
    return _tokenizer([*words, "Ċ"], splitter, decoders.ByteLevel(), special, named, tokens)


def _tokenizer(words: list[str], splitter: Any, decoder: Any, special: Any, named: Any, tokens: Any) -> Any:
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([*special, *(named or {}).values()])
    usual = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    extra = {"extra_special_tokens": named} if named else {}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**usual, **tokens}, **extra)


def widen(model: Any, seed: int = 0) -> Any:
    """Redraw the weights as wide as trained ones, so that images, texts and their order all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(1.5 * noise / math.sqrt(weight[0].numel()))
            elif "gate" in name:
                weight.fill_(1.0)
            else:
                ones = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
                weight.copy_(ones + 0.1 * noise)
    return model


def save(folder: Path, model: Any, processor: Any) -> Path:
    """Write a folder that ``from_pretrained`` reads, with a generation config that must not be obeyed."""
    widen(model)
    model.generation_config.no_repeat_ngram_size = 1
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def ids(tokenizer: Any, **names: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def text_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def llava(folder: Path, chat_template: str | None = None) -> Path:
    tokenizer = words_tokenizer("<image>", "<|im_start|>", "<|im_end|>")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=hf.LlamaConfig(**TEXT, **text_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size=SIZE, crop_size=SIZE),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
    return save(folder, hf.LlavaForConditionalGeneration(config), processor)


def _blip2(folder: Path, tokenizer: Any, text_config: Any, **settings: Any) -> Path:
    processor = hf.Blip2Processor(hf.BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=4)
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(**VISION),
        qformer_config=hf.Blip2QFormerConfig(**LAYERS, vocab_size=32, encoder_hidden_size=32),
        text_config=text_config(**settings, **text_ids(tokenizer)),  # the processor added a token
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return save(folder, hf.Blip2ForConditionalGeneration(config), processor)


def blip2_opt(folder: Path) -> Path:
    tokenizer = words_tokenizer(bos_token="</s>", eos_token="</s>")
    begin = ("</s>", tokenizer.convert_tokens_to_ids("</s>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[begin])
    return _blip2(
        folder,
        tokenizer,
        hf.OPTConfig,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=POSITIONS,
    )


def blip2_t5(folder: Path) -> Path:
    tokenizer = words_tokenizer()
    end = ("</s>", tokenizer.convert_tokens_to_ids("</s>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[end])
    return _blip2(
        folder,
        tokenizer,
        hf.T5Config,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=tokenizer.pad_token_id,
    )


def paligemma(folder: Path) -> Path:
    tokenizer = words_tokenizer(named={"image_token": "<image>"})
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=hf.GemmaConfig(**TEXT, head_dim=16, **text_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    image_processor = hf.SiglipImageProcessor(size=SIZE)
    image_processor.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(image_processor, tokenizer)
    config.text_config.vocab_size = len(tokenizer)
    return save(folder, hf.PaliGemmaForConditionalGeneration(config), processor)


QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def _qwen(
    folder: Path, family: str, vision: dict[str, Any], rope: dict[str, Any] | None = None, **text: Any
) -> Path:
    tokenizer = bytes_tokenizer(*QWEN, eos_token="<|im_end|>")
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0, **(rope or {})}
    config = getattr(hf, f"{family}Config")(
        text_config={
            **TEXT,
            **text_ids(tokenizer),
            "rope_parameters": rope,
            **text,
        },
        vision_config={"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, **vision},
        **ids(
            tokenizer,
            image_token_id="<|image_pad|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        ),
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    processor = getattr(hf, f"{family}Processor")(
        hf.Qwen2VLImageProcessor(patch_size=8, size=size),
        tokenizer,
        hf.Qwen3VLVideoProcessor() if family == "Qwen3VL" else hf.Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return save(folder, getattr(hf, f"{family}ForConditionalGeneration")(config), processor)


def qwen2_vl(folder: Path) -> Path:
    return _qwen(folder, "Qwen2VL", {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2})


QWEN_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_heads": 2}


def qwen2_5_vl(folder: Path) -> Path:
    return _qwen(folder, "Qwen2_5_VL", {**QWEN_VISION, "window_size": 32, "fullatt_block_indexes": [1]})


def qwen3_vl(folder: Path) -> Path:
    vision = {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return _qwen(folder, "Qwen3VL", vision, {"mrope_interleaved": True}, head_dim=16)


def _idefics3(folder: Path, family: str, *video_processor: Any) -> Path:
    """Images up to 64 pixels long are cut into tiles of 32, and shown once as a whole."""
    tokenizer = words_tokenizer(
        "<image>",
        "<fake_token_around_image>",
        "<end_of_utterance>",
        "<|im_start|>",
        "<global-img>",
        *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)),
    )
    config = getattr(hf, f"{family}Config")(
        # transformers 5.20 needs a multiple of patch_size tokens an image
        vision_config={**VISION, "patch_size": 4},
        text_config=hf.LlamaConfig(**TEXT, **text_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    edges = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = getattr(hf, f"{family}Processor")(
        getattr(hf, f"{family}ImageProcessor")(**edges),
        tokenizer,
        *video_processor,
        image_seq_len=4,
        chat_template=COLON_TEMPLATE.replace("IMAGE", "<image>"),
    )
    return save(folder, getattr(hf, f"{family}ForConditionalGeneration")(config), processor)


def idefics3(folder: Path) -> Path:
    return _idefics3(folder, "Idefics3")


def smolvlm(folder: Path) -> Path:
    # its processor demands num2words, and uses it in prompts of videos only
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    return _idefics3(folder, "SmolVLM", hf.SmolVLMVideoProcessor())


def internvl(folder: Path) -> Path:
    tokenizer = bytes_tokenizer(
        "<|im_start|>",
        "<|im_end|>",
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        eos_token="<|im_end|>",
    )
    config = hf.InternVLConfig(
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config=hf.Qwen2Config(**TEXT, **text_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=SIZE, crop_to_patches=True, max_patches=3),
        tokenizer,
        hf.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return save(folder, hf.InternVLForConditionalGeneration(config), processor)


def gemma3(folder: Path) -> Path:
    tokenizer = words_tokenizer(
        "<|im_start|>",
        "<|im_end|>",
        named={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(
            **TEXT,
            head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            **text_ids(tokenizer),
        ),
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        mm_tokens_per_image=4,
        **ids(
            tokenizer,
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
            image_token_index="<image_soft_token>",
        ),
    )
    processor = hf.Gemma3Processor(hf.Gemma3ImageProcessor(size=SIZE), tokenizer, image_seq_length=4)
    return save(folder, hf.Gemma3ForConditionalGeneration(config), processor)


def kosmos2(folder: Path) -> Path:
    tokenizer = words_tokenizer()
    processor = hf.Kosmos2Processor(
        hf.CLIPImageProcessor(size=SIZE, crop_size=SIZE),
        tokenizer,
        num_patch_index_tokens=32,  # the processor writes ids up to 67 where images stand
    )
    config = hf.Kosmos2Config(
        text_config={
            "embed_dim": 32,
            "layers": 2,
            "ffn_dim": 64,
            "attention_heads": 2,
            "max_position_embeddings": POSITIONS,
            **text_ids(tokenizer),
        },
        vision_config=VISION,
        latent_query_num=64,
    )
    return save(folder, hf.Kosmos2ForConditionalGeneration(config), processor)


def florence2(folder: Path) -> Path:
    tokenizer = words_tokenizer(named={"image_token": "<image>"})
    config = hf.Florence2Config(
        text_config=hf.BartConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_position_embeddings=POSITIONS,
            decoder_start_token_id=tokenizer.eos_token_id,
            **text_ids(tokenizer),
        ),
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 4,
            "projection_dim": 32,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    image_processor = hf.CLIPImageProcessor(size=SIZE, crop_size=SIZE)
    image_processor.image_seq_length = 17  # 4 x 4 places and their mean
    processor = hf.Florence2Processor(image_processor, tokenizer)
    return save(folder, hf.Florence2ForConditionalGeneration(config), processor)


def mllama(folder: Path) -> Path:
    tokenizer = words_tokenizer("<|image|>", "<|python_tag|>")
    config = hf.MllamaConfig(
        text_config=hf.models.mllama.configuration_mllama.MllamaTextConfig(
            **{**TEXT, "num_hidden_layers": 3}, cross_attention_layers=[1], **text_ids(tokenizer)
        ),
        vision_config=hf.models.mllama.configuration_mllama.MllamaVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=2,
            intermediate_size=64,
            vision_output_dim=64,
            image_size=32,
            patch_size=8,
            max_num_tiles=2,
            intermediate_layers_indices=[0],
            supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    processor = hf.MllamaProcessor(hf.MllamaImageProcessor(size=SIZE, max_image_tiles=2), tokenizer)
    return save(folder, hf.MllamaForConditionalGeneration(config), processor)


def cross_encoder(folder: Path, family: Callable[[Path], Path] = qwen3_vl) -> Path:
    """A yes/no re-ranker of sentence-transformers."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules.logit_score import LogitScore

    transformer = Transformer(str(family(folder / "vlm")), transformer_task="any-to-any")
    words = ids(transformer.tokenizer, yes="Ġyes", no="Ġno")
    model = CrossEncoder(modules=[transformer, LogitScore(words["yes"], words["no"])], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


_BUILDERS = (
    llava, blip2_opt, blip2_t5, paligemma, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3, smolvlm, internvl,
    gemma3, kosmos2, florence2, mllama,
)  # fmt: skip
FAMILIES: dict[str, Callable[[Path], Path]] = {builder.__name__: builder for builder in _BUILDERS}

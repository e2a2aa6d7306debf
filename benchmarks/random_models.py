"""Kosmos and CLIP with random weights, for timing without downloads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from zsqretrieval._util.torch import ensure_torchvision, resolve_device, resolve_dtype
from zsqretrieval.generators.kosmos import Kosmos1Generator

PROMPT = "question:"
"""The prompt after every image, one token of the random Kosmos."""

WORDS = tuple(f"w{n}" for n in range(1000))
"""The other words of its vocabulary."""


def random_kosmos(
    vision_layers: int, text_layers: int, *, dtype: str = "bfloat16", device: str = "cpu"
) -> Kosmos1Generator:
    """Kosmos at full width with random weights, fewer layers, and a vocabulary of made-up words.

    The connector's weights are scaled up, because at their initial scale all images score almost alike. The
    published model has 24 layers in the vision tower and 24 in the decoder.

    Raises:
        InvalidInputError: ``dtype`` is not float32, bfloat16 or float16, or there is no such device.
    """
    target = resolve_device(device)
    _, torch_dtype = resolve_dtype(dtype, target)
    ensure_torchvision()
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    library: Any = transformers  # its stubs are incomplete
    names = ["<s>", "<pad>", "</s>", "<unk>", PROMPT, *WORDS]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = library.Kosmos2Config(
        text_config={"layers": text_layers}, vision_config={"num_hidden_layers": vision_layers}
    )
    own = [target] if target.type == "cuda" else []
    with torch.random.fork_rng(devices=own), target:
        torch.manual_seed(0)
        model = library.Kosmos2ForConditionalGeneration._from_config(config, dtype=torch_dtype)
    with torch.no_grad():
        model.image_to_text_projection.dense.weight *= 400
    processor = library.Kosmos2Processor(library.CLIPImageProcessorPil(), tokenizer)
    return Kosmos1Generator(model, processor, config={})


def random_clip(folder: Path, *, layers: int, width: int) -> Path:
    """Write one CLIP with random weights into a folder that transformers and open_clip can both load.

    Both towers have ``layers``, 12 in ViT-B/32. The image tower has ``width``, a multiple of 192, 768 in
    ViT-B/32; the text tower and the vectors have two thirds of it. The tokenizer is CLIP's own. Returns the
    folder.
    """
    ensure_torchvision()
    import open_clip
    import transformers

    library: Any = transformers  # its stubs are incomplete
    narrow = width * 2 // 3
    words = open_clip.get_tokenizer("ViT-B-32")
    begin, end = (words.encoder[name] for name in ("<start_of_text>", "<end_of_text>"))
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    tokenizer = library.CLIPTokenizer(
        vocab={names.get(name, name): id for name, id in words.encoder.items()},
        merges=[tuple(pair) for pair in words.bpe_ranks],
        model_max_length=77,
    )
    text = {"hidden_size": narrow, "intermediate_size": 4 * narrow, "num_attention_heads": narrow // 64}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    config = library.CLIPConfig(
        text_config={
            **text, "num_hidden_layers": layers, "projection_dim": narrow,
            "bos_token_id": begin, "eos_token_id": end,
        },
        vision_config={**vision, "num_hidden_layers": layers, "projection_dim": narrow},
        projection_dim=narrow,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = library.CLIPModel(config).eval()
    model.save_pretrained(folder)
    library.CLIPProcessor(library.CLIPImageProcessorPil(), tokenizer).save_pretrained(folder)
    save_file(_as_open_clip(model.state_dict()), folder / "open_clip_model.safetensors")
    preprocess = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    architecture = {
        "embed_dim": narrow,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "patch_size": 32, "width": width, "layers": layers},
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408,
            "width": narrow, "heads": narrow // 64, "layers": layers,
        },
    }  # fmt: skip
    facts = {"model_cfg": architecture, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


_TOWERS = {"vision_model.": "visual.", "text_model.": ""}
_PARTS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _as_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of open_clip, which has the three projections of attention in one."""
    renamed: dict[str, Tensor] = {
        "visual.proj": weights["visual_projection.weight"].T.contiguous(),
        "text_projection": weights["text_projection.weight"].T.contiguous(),
        "logit_scale": weights["logit_scale"].clone(),
    }
    for name, value in weights.items():
        tower = next((tower for tower in _TOWERS if name.startswith(tower)), None)
        if tower is None or name.endswith("position_ids") or ".k_proj." in name or ".v_proj." in name:
            continue
        new = _TOWERS[tower] + name.removeprefix(tower)
        for theirs, ours in _PARTS.items():
            new = new.replace(theirs, ours)
        if ".q_proj." in name:
            value = torch.cat([weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            new = new.replace("q_proj.", "in_proj_")
        renamed[new] = value.clone().contiguous()
    return renamed

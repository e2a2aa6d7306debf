"""A CLIP small enough for tests: the real architecture and tokenizer, random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from zsqretrieval._util.torch import ensure_torchvision

ensure_torchvision()
import open_clip  # noqa: E402

ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
# different from open_clip's defaults, so that a test fails if they are not used
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}


def tiny_clip(folder: Path) -> Path:
    """Write a folder for ``local-dir:``."""
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": PREPROCESS})
    )
    generator = torch.Generator().manual_seed(0)
    state = open_clip.CLIP(**ARCHITECTURE).state_dict()
    for name, value in state.items():
        if value.is_floating_point() and not name.endswith("attn_mask"):
            # as wide as a trained model's, so that images and texts change the vectors
            scale = 0.3 if value.ndim > 1 else 0.1
            norm = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            state[name] = norm + scale * torch.randn(value.shape, generator=generator)
    save_file(
        {name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors"
    )
    return folder

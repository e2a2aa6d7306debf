"""Loading weights never runs code that comes with them, and never asks whether to."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zsqretrieval._util.torch import no_remote_code
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.errors import WeightsError
from zsqretrieval.generators.kosmos import Kosmos1Generator
from zsqretrieval.generators.vlm.model import VLMGenerator

ARCHITECTURE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1},
}
AUTO = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoModelForImageTextToText": "evil.Evil",
    "AutoProcessor": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose code writes the file ``ran``; asking whether to run it is a failure."""
    marker = tmp_path / "ran"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    for name in ("config", "tokenizer_config", "processor_config", "preprocessor_config"):
        facts = {"model_type": "evil", "auto_map": AUTO, "tokenizer_class": "Evil"}
        (folder / f"{name}.json").write_text(json.dumps(facts))
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("it asked"))
    return folder


def clip_with(folder: Path, text: dict[str, Any], **other: Any) -> None:
    model = {**ARCHITECTURE, **other, "text_cfg": {**ARCHITECTURE["text_cfg"], **text}}  # type: ignore[dict-item]
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    CLIPEncoder.from_pretrained(f"local-dir:{folder}", "random", device="cpu")


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: clip_with(
            folder, {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
        ),
        lambda folder: clip_with(folder, {"hf_tokenizer_name": "x"}),
        lambda folder: clip_with(
            folder,
            {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": 1, "use_fast": 0}},
        ),
        lambda folder: clip_with(folder, {"hf_model_name": str(folder), "hf_model_pretrained": False}),
        Kosmos1Generator.from_pretrained,
        VLMGenerator.from_pretrained,
    ],
)
def test_code_beside_weights_is_never_run(folder: Path, load: Callable[[Path], object]) -> None:
    with pytest.raises(WeightsError, match="code"):
        load(folder)
    assert not (folder.parent / "ran").exists()


def test_code_that_a_user_asks_transformers_for_still_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    with no_remote_code():
        pass
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder.parent / "cache"))
    assert get_class_from_dynamic_module("evil.Evil", str(folder)).__name__ == "Evil"
    assert (folder.parent / "ran").exists()
    with pytest.raises(WeightsError, match="never run"), no_remote_code():
        get_class_from_dynamic_module("evil.Evil", str(folder))

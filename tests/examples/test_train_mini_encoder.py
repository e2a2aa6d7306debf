"""The training script from shards to file, at toy length: repeatable, and the encoder loads its file."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image as PILImage

from zsqretrieval.encoders.mini import MiniEncoder

SCRIPT = Path(__file__).parents[2] / "examples" / "train_mini_encoder.py"
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_mini_encoder", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    for split in ("train", "dev"):
        with tarfile.open(folder / f"{split}-00000.tar", "w") as tar:
            for number, colour in enumerate(COLOURS):
                picture = io.BytesIO()
                PILImage.new("RGB", (64, 48), colour).save(picture, "JPEG")
                captions = [
                    f"A {colour} square on a {place}." for place in ("wall", "table", "floor", "bed", "car")
                ]
                for suffix, content in (
                    ("jpg", picture.getvalue()),
                    ("json", json.dumps({"captions": captions}).encode()),
                ):
                    member = tarfile.TarInfo(f"{number:04}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def test_training_repeats_itself_and_the_encoder_loads_the_result(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "VIEWS", 2)
    monkeypatch.setattr(
        script,
        "PHASES",
        (
            script.Phase("heads", steps=4, batch=8, head_rate=1e-3, base_rate=0.0, reworded=0.4),
            script.Phase("tuned", steps=3, batch=8, head_rate=1e-3, base_rate=1e-4, reworded=0.4),
            script.Phase("own", steps=4, batch=8, head_rate=1e-3, base_rate=0.0, reworded=0.0, own=True),
        ),
    )
    written = []
    for run in ("first", "second"):
        out = tmp_path / f"{run}.safetensors"
        arguments = ["train", "--data", str(data), "--work", str(tmp_path / run), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", arguments)
        script.main()
        written.append(out.read_bytes())
    assert written[0] == written[1]
    encoder = MiniEncoder.from_pretrained(tmp_path / "first.safetensors")
    assert encoder.encode_text(["a red square"]).shape == (1, encoder.dim)


def test_rewording_keeps_the_caption(script: ModuleType) -> None:
    random = np.random.default_rng(0)
    made = {script.reworded("A dog runs on the beach .", random) for _ in range(60)}
    assert "dog runs beach" in made
    assert "where is a dog runs on the beach?" in made
    assert script.reworded("The .", random).strip()

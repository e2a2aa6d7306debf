"""The training script from shards to file, at toy length: repeatable, and the encoder loads its file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from zsqretrieval.mini.encoder import MiniEncoder


def test_training_repeats_itself_and_the_encoder_loads_the_result(
    train_mini_encoder: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_mini_encoder, "VIEWS", 2)
    monkeypatch.setattr(
        train_mini_encoder,
        "PHASES",
        (
            train_mini_encoder.Phase("heads", steps=2, batch=8, head_rate=1e-3, base_rate=0.0, reworded=0.4),
            train_mini_encoder.Phase("tuned", steps=2, batch=8, head_rate=1e-3, base_rate=1e-4, reworded=0.4),
            train_mini_encoder.Phase(
                "own", steps=2, batch=8, head_rate=1e-3, base_rate=0.0, reworded=0.0, own=True
            ),
        ),
    )
    written = []
    for run in ("first", "second"):
        out = tmp_path / f"{run}.safetensors"
        arguments = ["train", "--data", str(data), "--work", str(tmp_path / run), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", arguments)
        train_mini_encoder.main()
        written.append(out.read_bytes())
    assert written[0] == written[1]
    encoder = MiniEncoder.from_pretrained(tmp_path / "first.safetensors")
    assert encoder.encode_text(["a red square"]).shape == (1, encoder.dim)


def test_rewording_keeps_the_words_of_the_caption(train_mini_encoder: ModuleType) -> None:
    random = np.random.default_rng(0)
    made = {train_mini_encoder.reworded("A dog runs on the beach .", random) for _ in range(60)}
    assert "dog runs beach" in made
    assert "where is a dog runs on the beach?" in made
    assert train_mini_encoder.reworded("The .", random).strip()

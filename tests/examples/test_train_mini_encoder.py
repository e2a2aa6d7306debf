"""The training script with its default data: repeatable, and the encoder loads its file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from zsqretrieval.mini.encoder import MiniEncoder


def test_training_repeats_itself_and_the_encoder_loads_the_result(
    train_mini_encoder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for run in ("first", "second"):
        out = tmp_path / f"{run}.safetensors"
        monkeypatch.setattr(sys, "argv", ["train", "--work", str(tmp_path / run), "--out", str(out)])
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

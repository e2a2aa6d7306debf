"""The training script with its default data: repeatable, and the encoder loads its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from zsqretrieval.mini.encoder import MiniEncoder


def test_training_repeats_itself_and_the_encoder_loads_the_result(
    train_mini_encoder: ModuleType, trained: Callable[[ModuleType], Path]
) -> None:
    encoder = MiniEncoder.from_pretrained(trained(train_mini_encoder))
    assert encoder.encode_text(["a red square"]).shape == (1, encoder.dim)


def test_rewording_keeps_the_words_of_the_caption(train_mini_encoder: ModuleType) -> None:
    random = np.random.default_rng(0)
    made = {train_mini_encoder.reworded("A dog runs on the beach .", random) for _ in range(60)}
    assert "dog runs beach" in made
    assert "where is a dog runs on the beach?" in made
    assert train_mini_encoder.reworded("The .", random).strip()

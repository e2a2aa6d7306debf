"""The training script with its default data: repeatable, and the generator loads its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from zsqretrieval.mini import generator as mini
from zsqretrieval.mini.efficientnet import picture, scale_pixels
from zsqretrieval.mini.weights import read_base_weights
from zsqretrieval.types import Image

DOG = "A brown dog runs through the water ."
CAPTIONS = [DOG, "Two dogs are on the beach .", "A dog in the water .", "A wet dog runs .", "A dog plays ."]


def test_training_repeats_itself_and_the_generator_loads_the_result(
    train_mini_generator: ModuleType, trained: Callable[[ModuleType], Path]
) -> None:
    generator = mini.MiniGenerator.from_pretrained(trained(train_mini_generator))
    [found] = generator.log_likelihood([["An image of"]], [" a red square"])
    assert found.sum < 0


def test_answers_are_taken_from_the_captions(train_mini_generator: ModuleType) -> None:
    random = np.random.default_rng(0)
    pairs = {pair for _ in range(60) for pair in train_mini_generator.answered(CAPTIONS, random)}
    assert ("what color is the dog?", "brown") in pairs
    assert ("how many dogs are there?", "two") in pairs
    assert ("what is the dog doing?", "runs through the water") not in pairs
    assert ("is there a dog?", "yes") in pairs
    assert ("is there a dog?", "no") not in pairs
    assert ("is there a person?", "no") not in pairs  # captions do not prove that nobody is there


def test_training_and_generator_give_equal_scores(train_mini_generator: ModuleType) -> None:
    """Training batches texts by length; the sums are in the given order and equal the library's."""
    base = read_base_weights()
    model = mini.MiniModel(base).eval()
    model.load_trained(load_file(Path(mini.__file__).with_name("generator.safetensors")))
    writer = train_mini_generator.Writer(base.tokenizer, [CAPTIONS], np.random.default_rng(0))
    said = ["a dog", "two dogs on the beach", "water", DOG.lower(), "a wet dog", "dogs"]
    texts = [train_mini_generator.Text(writer.tokens("An image of"), writer.tokens(text)) for text in said]
    images = [Image(PILImage.new("RGB", (64, 48), colour), colour) for colour in ("red", "green", "blue")]
    with torch.no_grad():
        pixels = scale_pixels(torch.from_numpy(np.stack([picture(image) for image in images])))
        grid = model.eyes.trunk(pixels)
        names = model.eyes.names(model.eyes.class_probabilities(model.eyes.own(grid)))
        sums, _ = train_mini_generator.log_probs(model, train_mini_generator.look(model, grid, names), texts)
    generator = mini.MiniGenerator.from_pretrained(dtype="float32")
    shown = [images[n // 2] for n in range(len(said))]
    expected = generator.log_likelihood([[image, "An image of"] for image in shown], said)
    assert sums.tolist() == pytest.approx([one.sum for one in expected], abs=2e-2)

"""Toys as plugins of an installed package, and presets of them."""

from __future__ import annotations

from pathlib import Path

from zsqretrieval.presets import Preset

TOYS = """
import numpy as np
from zsqretrieval.data.images import decode
from zsqretrieval.testing import ToyEncoder, ToyGenerator

class Toy(ToyEncoder):
    config = {}
    @classmethod
    def from_config(cls, config):
        return cls()

class Reader(ToyGenerator):
    config = {}
    @classmethod
    def from_config(cls, config):
        return cls()

class Seer(Reader):
    "Sees the mean colour of an image, once."
    state_shape, state_dtype = (3,), np.dtype(np.uint8)
    def image_states(self, images, *, batch_size=16):
        return np.array([np.asarray(decode(image)).mean((0, 1)) for image in images]).astype(np.uint8)
    def _recall(self, state):
        return state.values / 255
"""

START = """
import sys
from zsqretrieval.presets import PRESETS, Preset
PRESETS["toy"] = Preset("toy", index="exact")
PRESETS["reading"] = Preset("toy", index="exact", generator="reader")
from zsqretrieval.cli import main
sys.argv[0] = "zsq"
main()
"""
"""Runs ``zsq`` in a process of its own; the folder must be on its path."""


def install(folder: Path) -> Path:
    """Make the package in a folder, which is to be put on the path."""
    info = folder / "cli_toys-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cli-toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[zsqretrieval.encoders]\ntoy = cli_toys:Toy\n"
        "[zsqretrieval.generators]\nreader = cli_toys:Reader\nseer = cli_toys:Seer\n"
    )
    (folder / "cli_toys.py").write_text(TOYS)
    return folder


def presets() -> dict[str, Preset]:
    """``toy`` has no generator; that of ``reading`` reads images, that of ``seeing`` makes states of them."""
    generators = {"toy": None, "reading": "reader", "seeing": "seer"}
    return {name: Preset("toy", index="exact", generator=one) for name, one in generators.items()}

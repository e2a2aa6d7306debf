"""Toys as plugins of an installed package, and presets of them."""

from __future__ import annotations

from pathlib import Path

from zsqretrieval.presets import Preset

TOYS = """
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyStatesGenerator

class Plugin:
    config = {}
    @classmethod
    def from_config(cls, config):
        return cls()

class Toy(Plugin, ToyEncoder): pass
class Twin(Plugin, ToyEncoder):
    fingerprint = "twin"
class Reader(Plugin, ToyGenerator): pass
class Seer(Plugin, ToyStatesGenerator): pass
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
        "[zsqretrieval.encoders]\ntoy = cli_toys:Toy\ntwin = cli_toys:Twin\n"
        "[zsqretrieval.generators]\nreader = cli_toys:Reader\nseer = cli_toys:Seer\n"
    )
    (folder / "cli_toys.py").write_text(TOYS)
    return folder


def presets() -> dict[str, Preset]:
    """``toy`` has no generator; that of ``reading`` reads images, that of ``seeing`` makes states of them."""
    generators = {"toy": None, "reading": "reader", "seeing": "seer"}
    made = {name: Preset("toy", index="exact", generator=one) for name, one in generators.items()}
    return made | {"twin": Preset("twin", index="exact")}

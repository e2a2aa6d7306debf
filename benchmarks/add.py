"""Adding a folder to an album, against the ceiling of its encoder.

The ceiling is the encoder fed with ready tensors, on the same images. Every round runs both, one after
another; an addition makes a new album on disk.

python -m benchmarks.add --tar photos/00000.tar --images 256
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.embed import crops
from benchmarks.output import command_line, run, write_results
from benchmarks.timing import timed
from zsqretrieval.data.tars import read_webdataset
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.encoders.rows import encode_batches
from zsqretrieval.mini.efficientnet import pictures
from zsqretrieval.mini.encoder import MiniEncoder
from zsqretrieval.retriever import Retriever
from zsqretrieval.types import Image


def mini(images: list[Image], batch_size: int) -> tuple[Any, Callable[[], object]]:
    """The mini encoder, and a call that encodes the prepared images."""
    encoder = MiniEncoder.from_pretrained()
    ready: Any = pictures(images)
    ready = ready.split(batch_size)
    return encoder, lambda: [encoder._encode_pictures(batch) for batch in ready]


def clip(images: list[Image], batch_size: int) -> tuple[Any, Callable[[], object]]:
    """ViT-B/32 with random weights, and a call that encodes the prepared images."""
    encoder: Any = CLIPEncoder.from_pretrained("ViT-B-32", "random")
    ready = [encoder._pixels(image) for image in images]
    return encoder, lambda: encode_batches(
        lambda batch: encoder._model.encode_image(encoder._stack(batch)),
        ready, batch_size=batch_size, dim=encoder.dim,
    )  # fmt: skip


def bench(folder: Path, given: Any) -> dict[str, Any]:
    """Measure in an empty folder."""
    listed = (one for one in read_webdataset([given.tar]) if isinstance(one, Image)) if given.tar else ()
    contents = [one.content for one in islice(listed, given.images) if isinstance(one.content, bytes)]
    photographs = folder / "photographs"
    photographs.mkdir()
    for n, content in enumerate(contents or crops(given.images)):
        (photographs / f"{n:06d}.jpg").write_bytes(content)
    images = [Image(path, str(path)) for path in sorted(photographs.iterdir())]
    encoder, ceiling = {"mini": mini, "clip": clip}[given.encoder](images, given.batch_size)
    rounds = []
    timed(ceiling)  # once before it counts
    for turn in range(given.rounds):
        with Retriever(encoder, path=folder / f"album{turn}") as retriever:
            adding = timed(lambda: retriever.add(photographs, batch_size=given.batch_size))
        rounds.append({"ceiling": timed(ceiling), "add": adding})
    facts: dict[str, Any] = {"images": len(images), "encoder": given.encoder, "of_ceiling": {}}
    for place, clock in enumerate(("wall", "cpu")):
        for name in ("ceiling", "add"):
            spent = float(np.median([one[name][place] for one in rounds]))
            facts[f"{name}_per_{clock}_s"] = len(images) / spent
        shares = [one["ceiling"][place] / one["add"][place] for one in rounds]
        facts["of_ceiling"][clock] = float(np.median(shares))
    return facts


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "add",
        "Measure the addition of a folder against the ceiling of the encoder.",
        images=(128, "Images."),
        rounds=(3, "Rounds, all of which count."),
        batch_size=(32, "Images encoded together."),
    )
    parser.add_argument("--tar", type=Path, help="Take the first images of this tar; else of the demo.")
    parser.add_argument("--encoder", choices=("mini", "clip"), default="mini", help="clip: random weights.")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        facts = bench(Path(folder), given)
    write_results(
        facts,
        ("", "images/s", "images per CPU second"),
        [
            (name, f"{facts[f'{name}_per_wall_s']:.1f}", f"{facts[f'{name}_per_cpu_s']:.1f}")
            for name in ("ceiling", "add")
        ],
        [
            f"{facts['images']} images, {given.encoder}, {torch.get_num_threads()} threads, medians of "
            f"{given.rounds} rounds; of the ceiling: {facts['of_ceiling']['wall']:.3f}, by CPU time "
            f"{facts['of_ceiling']['cpu']:.3f}"
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    run(main)

"""What features and weights of fewer bits cost and save, with the mini generator on captioned photographs.

python -m benchmarks.bits --tar FLICKR8K/dev-00000.tar --json
"""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.output import command_line, run, write_results
from zsqretrieval.data.tars import read_webdataset
from zsqretrieval.mini.generator import MiniGenerator
from zsqretrieval.search.scoring import Likelihood, score_pairs
from zsqretrieval.types import Image, ImageState


def as_float16(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features [n, tokens, D] that were stored as float16."""
    return states.astype(np.float16).astype(np.float32)


def as_int8(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features [n, tokens, D] that were stored as int8 with one scale for each token."""
    scale = np.maximum(np.abs(states).max(axis=2, keepdims=True), np.float32(1e-12)) / 127
    restored: NDArray[np.float32] = np.round(states / scale).astype(np.int8) * scale
    return restored


def dynamic_int8(model: torch.nn.Module) -> None:
    """Quantise the linear layers by PyTorch alone; activations become int8 while it runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantization: Any = torch.ao.quantization
        quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8, inplace=True)


def _torchao() -> dict[str, Callable[[torch.nn.Module], None]]:
    if importlib.util.find_spec("torchao") is None:
        return {}
    ao: Any = importlib.import_module("torchao.quantization")
    settings = {
        "torchao int8 weights": ao.Int8WeightOnlyConfig(),
        "torchao int8": ao.Int8DynamicActivationInt8WeightConfig(),
        "torchao 4 bits": ao.IntxWeightOnlyConfig(torch.int4),  # type: ignore[attr-defined]
    }
    return {name: partial(ao.quantize_, config=one) for name, one in settings.items()}


def bench_bits(images: list[Image], questions: int, rounds: int) -> dict[str, dict[str, float]]:
    """Score all images for the captions of the first ones, in every way, and compare with float32.

    Quantised weights are those of the layers; the vocabulary matrix stays float32.
    """
    captions = [image.caption or "" for image in images[:questions]]
    plain = MiniGenerator.from_pretrained(dtype="float32")
    states = plain.image_states(images)
    kinds: dict[str, tuple[MiniGenerator, NDArray[np.float32]]] = {
        "float32": (plain, states),
        "features float16": (plain, as_float16(states)),
        "features int8": (plain, as_int8(states)),
        "weights bfloat16": (MiniGenerator.from_pretrained(dtype="bfloat16"), states),
    }
    for name, quantise in {"weights int8": dynamic_int8, **_torchao()}.items():
        generator = MiniGenerator.from_pretrained(dtype="float32")
        quantise(generator._model.language.bert)
        kinds[name if name.startswith("weights") else f"weights {name}"] = generator, states
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    scores: dict[str, NDArray[np.float64]] = {}
    for _ in range(rounds):
        for name, (generator, values) in kinds.items():
            given = [
                ImageState(value, generator.fingerprint, image.source)
                for value, image in zip(values, images, strict=True)
            ]
            begin = time.process_time()
            scores[name] = score_pairs(
                generator,
                Likelihood(),
                [caption for _ in given for caption in captions],
                [state for state in given for _ in captions],
                batch_size=64,
            ).reshape(len(images), -1)
            seconds[name].append(time.process_time() - begin)
    exact = scores["float32"]
    order = np.argsort(-exact, axis=0)
    return {
        name: {
            "cpu_s": float(np.median(seconds[name])),
            "speed": float(np.median(np.array(seconds["float32"]) / seconds[name])),
            "largest_nats": float(np.abs(found - exact).max()),
            "mean_nats": float(np.abs(found - exact).mean()),
            "same_first": float((found.argmax(axis=0) == order[0]).mean()),
            "same_ten": float(
                np.mean(
                    [np.isin(np.argsort(-found[:, q])[:10], order[:10, q]).mean() for q in range(questions)]
                )
            ),
        }
        for name, found in scores.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "bits",
        "Measure features and weights of fewer bits against float32, with the mini generator.",
        images=(100, "Photographs."),
        questions=(20, "Captions that are scored for every photograph."),
        rounds=(1, "Timings of each way."),
    )
    parser.add_argument("--tar", type=Path, required=True, help="captioned photographs (WebDataset)")
    given = parser.parse_args(arguments)
    read = (one for one in read_webdataset([given.tar]) if isinstance(one, Image) and one.caption)
    found = bench_bits(list(islice(read, given.images)), given.questions, given.rounds)
    facts: dict[str, Any] = {"images": given.images, "questions": given.questions, "ways": found}
    write_results(
        facts,
        ("way", "CPU s", "speed", "largest, nats", "mean, nats", "same first", "same ten"),
        [
            (
                name,
                f"{one['cpu_s']:.1f}",
                f"{one['speed']:.2f}",
                f"{one['largest_nats']:.2g}",
                f"{one['mean_nats']:.2g}",
                f"{one['same_first']:.0%}",
                f"{one['same_ten']:.1%}",
            )
            for name, one in found.items()
        ],
        [f"{given.images} photographs, {given.questions} captions each, {torch.get_num_threads()} threads"],
        as_json=given.json,
    )


if __name__ == "__main__":
    run(main)

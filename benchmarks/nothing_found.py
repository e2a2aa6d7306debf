"""Calibrate and measure the probability that a hit is relevant (docs/searching.md).

    python -m benchmarks.nothing_found --data PATH/TO/flickr8k --work DIR --report docs/nothing-found

The images of a split are halved at random. On the first half the two constants are fitted: the margins of
captions for their own images, against the three best hits of captions that no image answers. On the second
half, with its own gallery, one caption per image has to be told from captions without an answer: those of
``--others``, and captions of images of the other half. Writes ``numbers.json`` and ``roc.svg``.

``--others`` is a text file of captions in the manner of other data sets (medicine, astronomy, art, food,
products, wild animals, screenshots) that no photograph of Flickr8k answers. The default was written for this.
With the mini encoder it takes five minutes; the vectors are kept in ``--work``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from zsqretrieval import plugins
from zsqretrieval.encoders.checked import encode_images, encode_texts
from zsqretrieval.evaluation.datasets import read_shards
from zsqretrieval.protocols import Encoder
from zsqretrieval.search.relevance import Relevance, fit

TOP = 10  # hits of a question that are considered
WORST = 3  # hits of a question without an answer that are fitted
RESAMPLES = 2000

Array = NDArray[np.float64]


def main() -> None:
    """Fit, measure and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of WebDataset shards")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--others", type=Path, default=Path(__file__).with_name("foreign_captions.txt"))
    parser.add_argument("--encoder", default="mini", help="plugin name")
    parser.add_argument("--work", type=Path, required=True, help="folder of the vectors")
    parser.add_argument("--report", type=Path, required=True)
    args = parser.parse_args()

    encoder: Encoder = plugins.create("encoder", args.encoder, {})
    images, captions, own = vectors_of(encoder, args.data, args.split, args.work)
    others = encode_texts(encoder, [line for line in args.others.read_text().splitlines() if line.strip()])
    places = np.array_split(np.random.default_rng(0).permutation(len(images)), 2)
    fitted, tested = (half_of(some, images, captions, own, others) for some in places)
    scale, margin = fit(*pairs(Relevance(encoder, 1.0, 0.0).margins, fitted))
    relevance = Relevance(encoder, scale, margin)
    questions = {
        "answered": first_captions(tested),
        "others": others,
        "elsewhere": first_captions(fitted),
    }
    found = {name: best(relevance, some, tested.gallery) for name, some in questions.items()}
    numbers = {
        "encoder": encoder.fingerprint,
        "images": [len(fitted.gallery), len(tested.gallery)],
        "questions": {name: len(one[0]) for name, one in found.items()},
        "relevance_scale": scale,
        "relevance_margin": margin,
        "measures": {
            kind: {name: measured(found["answered"][n], found[name][n]) for name in ("others", "elsewhere")}
            for n, kind in enumerate(("probability", "cosine"))
        },
        "found_at_one_half": {name: float((one[0] >= 0.5).mean()) for name, one in found.items()},
        "reliability": reliability(relevance, tested),
    }
    args.report.mkdir(parents=True, exist_ok=True)
    (args.report / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    with rc_context({"svg.hashsalt": "zsqretrieval"}):  # the same file every time
        draw(found).savefig(args.report / "roc.svg", metadata={"Date": None})
    print(json.dumps(numbers, indent=1))  # noqa: T201


def vectors_of(
    encoder: Encoder, data: Path, split: str, work: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Vectors of images [n, dim] and captions [m, dim], and the image of each caption [m]."""
    file = work / f"{split}-{encoder.fingerprint.replace('/', '_')}.npz"
    if not file.exists():
        dataset = read_shards(data, split)
        place = {image.id: n for n, image in enumerate(dataset.gallery)}
        own = [place[next(iter(dataset.qrels[query.id]))] for query in dataset.queries]
        work.mkdir(parents=True, exist_ok=True)
        np.savez(
            file,
            images=encode_images(encoder, dataset.gallery),
            captions=encode_texts(encoder, [query.text for query in dataset.queries]),
            own=np.array(own),
        )
    stored = np.load(file)
    return stored["images"], stored["captions"], stored["own"]


def hits(questions: NDArray[np.float32], gallery: NDArray[np.float32]) -> tuple[Array, NDArray[np.int64]]:
    """Cosine similarities and positions [q, TOP] of the best hits."""
    cosines = questions @ gallery.T
    order = np.argsort(-cosines, axis=1)[:, :TOP]
    return np.take_along_axis(cosines, order, 1).astype(np.float64), order


def each_of(method: Any, cosines: Array, order: NDArray[np.int64], gallery: NDArray[np.float32]) -> Array:
    """The values [q, TOP] of a method of :class:`Relevance` for the best hits."""
    return np.stack([method(row, gallery[places]) for row, places in zip(cosines, order, strict=True)])


def best(
    relevance: Relevance, questions: NDArray[np.float32], gallery: NDArray[np.float32]
) -> tuple[Array, Array]:
    """The largest probability and the largest cosine similarity of every question."""
    cosines, order = hits(questions, gallery)
    return each_of(relevance.probabilities, cosines, order, gallery).max(1), cosines.max(1)


@dataclass(frozen=True)
class Half:
    """The images of one half and their captions, with the captions that none of them answers."""

    gallery: NDArray[np.float32]  # [n, dim]
    captions: NDArray[np.float32]  # [m, dim]
    own: NDArray[np.int64]  # [m], the position of the image of each caption
    others: NDArray[np.float32]  # [o, dim]


def half_of(
    places: NDArray[np.int64],
    images: NDArray[np.float32],
    captions: NDArray[np.float32],
    own: NDArray[np.int64],
    others: NDArray[np.float32],
) -> Half:
    """The images at some places [n], and what belongs to them."""
    position = np.full(len(images), -1)
    position[places] = np.arange(len(places))
    mine = position[own] >= 0
    return Half(images[places], captions[mine], position[own][mine], others)


def pairs(method: Any, half: Half) -> tuple[Array, Array]:
    """Values of captions for their own images, where these are hits, and of the best hits of others."""
    cosines, order = hits(half.captions, half.gallery)
    right = each_of(method, cosines, order, half.gallery)[order == half.own[:, None]]
    return right, each_of(method, *hits(half.others, half.gallery), half.gallery)[:, :WORST].ravel()


def first_captions(half: Half) -> NDArray[np.float32]:
    """One caption per image, float32 [n, dim]."""
    _, first = np.unique(half.own, return_index=True)
    captions: NDArray[np.float32] = half.captions[first]
    return captions


def reliability(relevance: Relevance, half: Half) -> list[list[float]]:
    """Mean probability and share of relevant hits in five bins, as many relevant as irrelevant ones."""
    right, wrong = pairs(relevance.probabilities, half)
    values = np.concatenate([right, wrong])
    truth = np.repeat([1.0, 0.0], [len(right), len(wrong)])
    weights = np.repeat([1 / len(right), 1 / len(wrong)], [len(right), len(wrong)])
    bins = np.minimum((values * 5).astype(int), 4)
    return [
        [float(np.average(one[bins == n], weights=weights[bins == n])) for one in (values, truth)]
        for n in range(5)
    ]


def measured(positive: Array, negative: Array) -> dict[str, list[float] | float]:
    """Area under the ROC curve with its 95 % interval, and the false alarms at 90 % found."""
    larger = positive[:, None] > negative  # the area is the share of pairs in the right order
    generator = np.random.default_rng(0)
    areas = [
        larger[
            generator.integers(len(positive), size=(len(positive), 1)),
            generator.integers(len(negative), size=len(negative)),
        ].mean()
        for _ in range(RESAMPLES)
    ]
    return {
        "auc": float(larger.mean()),
        "interval": np.quantile(areas, [0.025, 0.975]).tolist(),
        "false_alarms_at_90": float((negative >= np.quantile(positive, 0.1)).mean()),
    }


def draw(found: dict[str, tuple[Array, Array]]) -> Figure:
    """The ROC curves of probability and cosine similarity."""
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, style in (("others", "-"), ("elsewhere", "--")):
        for n, kind in enumerate(("probability", "cosine similarity")):
            positive, negative = found["answered"][n], found[name][n]
            truth = np.repeat([1, 0], [len(positive), len(negative)])
            false, true, _ = roc_curve(truth, np.concatenate([positive, negative]))
            label = f"{kind}, {'foreign captions' if name == 'others' else 'image left out'}"
            axes.plot(false, true, style, color=f"C{n}", label=label)
    axes.set_xlabel("questions without an answer that find something")
    axes.set_ylabel("questions with an answer that find something")
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()

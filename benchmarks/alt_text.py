"""How well CLIP score and likelihood find alt texts that belong to another image.

    python -m benchmarks.alt_text PATH/TO/flickr8k/train-00000.tar --images 1000

A share of the captions of real photographs is exchanged among them. Both scores of every pair are those of
``zsq laion filter`` with the preset; the area under the ROC curve (AUC) is the probability that a right
caption scores higher than an exchanged one. Intervals are bootstraps over images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from zsqretrieval.data.tars import read_webdataset
from zsqretrieval.laion.filter import choose, image_parts, pool_of
from zsqretrieval.presets import PRESETS
from zsqretrieval.types import Image


def exchanged(images: Sequence[Image], share: float, seed: int) -> tuple[list[Image], NDArray[np.bool_]]:
    """The images, some with the caption of another one of these; and which, bool [n]."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(images))[: round(share * len(images))].tolist()
    found = list(images)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        found[here] = replace(images[here], caption=images[there].caption)
    return found, np.isin(np.arange(len(images)), order)


def area(scores: NDArray[np.floating[Any]], good: NDArray[np.bool_]) -> float:
    """The area under the ROC curve, ties counted half."""
    ranks = rankdata(scores)
    count = int(good.sum())
    return float((ranks[good].sum() - count * (count + 1) / 2) / (count * (len(good) - count)))


def interval(scores: NDArray[np.floating[Any]], good: NDArray[np.bool_], draws: int = 1000) -> list[float]:
    """The area, and its 95 % interval."""
    random = np.random.default_rng(0)
    drawn = [random.integers(len(good), size=len(good)) for _ in range(draws)]
    areas = [area(scores[some], good[some]) for some in drawn]
    return [round(float(one), 4) for one in (area(scores, good), *np.percentile(areas, (2.5, 97.5)))]


def measure(tars: Sequence[str], count: int, share: float, seed: int) -> dict[str, Any]:
    """Score the pairs, and compare the filters that keep as many pairs as are right."""
    images = [one for one in read_webdataset(tars) if isinstance(one, Image)]
    some, bad = exchanged(list(itertools.islice(images, count)), share, seed)
    preset = PRESETS["mini"]
    generator = preset.make_generator()
    assert generator is not None
    begin = time.perf_counter()
    with generator.using() as made:
        pool = pool_of(image_parts(some, preset.make_encoder(), made), None)
    clip, likelihood = pool.scores["clip"], pool.scores["likelihood"]
    both = sum((one - one.mean()) / one.std() for one in (clip, likelihood))
    right = 1 - float(bad.mean())
    masks, report = choose(pool, share={"clip": right, "likelihood": right})
    return {
        "images": len(some), "exchanged": int(bad.sum()), "seconds": round(time.perf_counter() - begin, 1),
        "auc": {
            "clip": interval(clip, ~bad), "likelihood": interval(likelihood, ~bad),
            "sum of both, each divided by its standard deviation": interval(both, ~bad),
        },
        "right among kept": {name: round(float((~bad)[mask].mean()), 4) for name, mask in masks.items()},
        "right that are kept": {name: round(float(mask[~bad].mean()), 4) for name, mask in masks.items()},
        "kept": report.kept, "agreement": report.agreement, "spearman": report.spearman,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tars", nargs="+")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.3, help="share of the captions that is exchanged")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = measure(given.tars, given.images, given.share, given.seed)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")

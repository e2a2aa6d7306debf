"""Rank correlation of scores with human ratings, computed exactly as CLIPScore does (arXiv 2104.08718).

CLIPScore itself, CLIP ViT-B/32 with "A photo depicts" before each caption, has 51.2 (Expert) and 34.4
(CrowdFlower) there, 100 times tau. Only the order of scores matters: its factor 2.5 and its cut at 0 change
nothing here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Judgments
from zsqretrieval.evaluation.results import row


def agreement_row(
    judgments: Judgments, system: str, scores: NDArray[np.float64], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Kendall's tau of scores and ratings, with a percentile bootstrap over images.

    Args:
        judgments: n pairs.
        system: name for the row.
        scores: float64 [n], higher is better; compared with every rating of its pair.
        resamples: draws of images, each with all of its pairs. A draw without a tau, because all scores or
            all ratings are equal, is left out of the interval.
        seed: of the draws.

    Returns:
        A row of the group ``agreement``: ``form`` is the name of the ratings, ``queries`` counts the pairs.

    Raises:
        InvalidInputError: all scores or all ratings are equal, or no draw has a tau.
    """
    raters = judgments.ratings.shape[1]
    order = np.argsort(judgments.images, kind="stable")
    by_image = np.split(order, np.flatnonzero(np.diff(judgments.images[order])) + 1)

    def tau(pairs: NDArray[np.int64]) -> float:
        repeated = np.repeat(scores[pairs], raters)
        return float(kendalltau(repeated, judgments.ratings[pairs].ravel(), variant=judgments.variant)[0])

    if np.isnan(value := tau(order)):
        raise InvalidInputError(
            f"{judgments.name}: all scores or all ratings are equal, so they rank nothing"
        )
    random = np.random.default_rng(seed)
    drawn = [
        tau(np.concatenate([by_image[n] for n in random.integers(len(by_image), size=len(by_image))]))
        for _ in range(resamples)
    ]
    if np.isnan(drawn).all():
        raise InvalidInputError(
            f"{judgments.name}: no draw of {len(by_image)} images has a rank correlation; there are too few"
        )
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return row(
        "agreement", system, f"tau-{judgments.variant}", value, low=float(low), high=float(high),
        form=judgments.name, queries=len(scores), unit="",
    )  # fmt: skip

"""Does a scorer rank captions as people do? Flickr8k's human ratings, by the conventions of CLIPScore.

M. Hodosh, P. Young, J. Hockenmaier (JAIR 47, 2013) had captions of other images of the test split rated for
each image. The rank correlation of a scorer with the ratings is computed exactly as CLIPScore does it
(Hessel et al., EMNLP 2021, arXiv 2104.08718, appendix A and the repository's ``flickr8k_example``), so that
the numbers stand beside its own:

- Expert: Kendall's tau-c between scores and the ratings, 1 to 4, of three experts, who are not averaged: each
  rating is an observation. Captions of the image itself are left out, as in the SPICE paper: 5,664 of 5,822
  pairs stay, 16,992 observations.
- CrowdFlower: tau-b between scores and the share of at least three people who said that the caption describes
  the image: 47,830 pairs, all of them.

CLIPScore itself, CLIP ViT-B/32 told "A photo depicts" before each caption, has 51.2 and 34.4 there (100 times
tau). Only the order of scores matters: neither its factor 2.5 nor a logarithm changes anything (that it cuts
cosines at 0 would, if CLIP gave negative ones here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts
from zsqretrieval.errors import InvalidInputError, MissingDependencyError
from zsqretrieval.evaluation.datasets import CAPTION, Dataset
from zsqretrieval.evaluation.datasets._files import found, lines
from zsqretrieval.evaluation.progress import Progress
from zsqretrieval.evaluation.score_matrix import score_matrix
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.search.scoring import Scoring
from zsqretrieval.types import Image, ImageState

__all__ = [
    "CLIPSCORE",
    "Correlation",
    "Judgments",
    "correlate",
    "encoder_scores",
    "generator_scores",
    "read_crowdflower",
    "read_expert",
    "read_judgments",
]

CLIPSCORE: Mapping[str, float] = {"Flickr8k-Expert": 51.2, "Flickr8k-CrowdFlower": 34.4}
"""What the paper reports of CLIPScore, 100 times tau, to be printed beside ours as published and not ours."""

_ORIGIN = "the makers of Flickr8k at the University of Illinois (Flickr8k_text.zip)"


@dataclass(frozen=True, slots=True, eq=False)
class Judgments:
    """Ratings of pairs of an image and a caption.

    Attributes:
        name: as reports should call them.
        images: int64 [n], positions in the gallery.
        captions: n texts.
        ratings: float64 [n, raters], higher is better; each is an observation of its own.
        variant: of Kendall's tau, ``"b"`` or ``"c"``.
    """

    name: str
    images: NDArray[np.int64]
    captions: tuple[str, ...]
    ratings: NDArray[np.float64]
    variant: Literal["b", "c"]


@dataclass(frozen=True, slots=True)
class Correlation:
    """How a scorer agrees with people.

    Attributes:
        name: of the judgments.
        tau: Kendall's tau in [-1, 1]; CLIPScore's paper prints 100 times that.
        interval: percentile bootstrap over images, each with all of its ratings.
        variant: of tau.
        pairs: of an image and a caption.
        images: how many there are.
    """

    name: str
    tau: float
    interval: tuple[float, float]
    variant: Literal["b", "c"]
    pairs: int
    images: int


def read_expert(path: Path, dataset: Dataset) -> Judgments:
    """Read ``ExpertAnnotations.txt``: image, caption id and three ratings, between tabs.

    Args:
        path: the file.
        dataset: Flickr8k's test split; an image is found by the file name that is its id or that its metadata
            have as ``image``, caption ``{file}#{n}`` is the n-th of its captions.

    Raises:
        InvalidInputError: the file is missing, a line is malformed, or names what is not in the data set.
            Names the line.
    """

    def ratings(columns: Sequence[str]) -> list[float]:
        return [float(column) for column in columns]

    rows = [row for row in _rows(path, dataset, 3, ratings) if not row.own]
    return _judgments("Flickr8k-Expert", rows, "c")


def read_crowdflower(path: Path, dataset: Dataset) -> Judgments:
    """Read ``CrowdFlowerAnnotations.txt``: image, caption id, share of yes, numbers of yes and no.

    Args:
        path: the file.
        dataset: as for :func:`read_expert`.

    Raises:
        InvalidInputError: as :func:`read_expert`; or a share is not that of its numbers.
    """

    def share(columns: Sequence[str]) -> list[float]:
        told, yes, no = float(columns[0]), int(columns[1]), int(columns[2])
        if abs(told - yes / (yes + no)) > 1e-5:
            raise ValueError(f"{told} is not the share of {yes} yes and {no} no")
        return [told]

    return _judgments("Flickr8k-CrowdFlower", list(_rows(path, dataset, 3, share)), "b")


def read_judgments(folder: Path, dataset: Dataset) -> tuple[Judgments, ...]:
    """Read those of the two files that lie in a folder; none where there are none.

    Args:
        folder: of ``ExpertAnnotations.txt`` and ``CrowdFlowerAnnotations.txt``.
        dataset: as for :func:`read_expert`.

    Raises:
        InvalidInputError: as :func:`read_expert` and :func:`read_crowdflower`.
    """
    files = {"ExpertAnnotations.txt": read_expert, "CrowdFlowerAnnotations.txt": read_crowdflower}
    return tuple(
        read(Path(folder) / name, dataset) for name, read in files.items() if (Path(folder) / name).is_file()
    )


@dataclass(frozen=True, slots=True)
class _Row:
    image: int
    caption: str
    own: bool  # whether somebody wrote the caption about this very image
    ratings: list[float]


def _rows(
    path: Path, dataset: Dataset, count: int, ratings: Callable[[Sequence[str]], list[float]]
) -> Iterator[_Row]:
    files = [str(image.metadata.get("image", image.id)) for image in dataset.gallery]
    position = {file: n for n, file in enumerate(files)}
    place_of = {str(image.id): n for n, image in enumerate(dataset.gallery)}
    captions: list[list[str]] = [[] for _ in files]
    for query in dataset.of_form(CAPTION).queries:
        for image in dataset.qrels[query.id]:
            captions[place_of[image]].append(query.text)
    for place, line in lines(found(Path(path), "human ratings", _ORIGIN)):
        columns = line.split("\t")
        if len(columns) != 2 + count:
            raise InvalidInputError(
                f"{place}: has {len(columns)} columns, not image, caption and {count} more"
            )
        file, _, number = columns[1].partition("#")
        for name in (columns[0], file):
            if name not in position:
                raise InvalidInputError(
                    f"{place}: the image {name!r} is not in {dataset.name}; the ratings are of the test split"
                )
        said = captions[position[file]]
        if not number.isdecimal() or int(number) >= len(said):
            raise InvalidInputError(
                f"{place}: {columns[1]!r} is not one of the {len(said)} captions of {file}"
            )
        try:
            rated = ratings(columns[2:])
        except (ValueError, ZeroDivisionError) as error:
            raise InvalidInputError(f"{place}: not a rating: {error}") from error
        if not np.isfinite(rated).all():
            raise InvalidInputError(f"{place}: not a rating: {rated}")
        about, caption = position[columns[0]], said[int(number)]
        yield _Row(about, caption, caption in captions[about], rated)


def _judgments(name: str, rows: Sequence[_Row], variant: Literal["b", "c"]) -> Judgments:
    if not rows:
        raise InvalidInputError(f"{name}: there are no ratings to compare with")
    images = np.array([row.image for row in rows], np.int64)
    ratings = np.array([row.ratings for row in rows], np.float64)
    return Judgments(name, images, tuple(row.caption for row in rows), ratings, variant)


def encoder_scores(encoder: Encoder, judgments: Judgments, gallery: Sequence[Image]) -> NDArray[np.float64]:
    """Cosine similarity of every pair that was judged; float64 [n]."""
    judged, rows = np.unique(judgments.images, return_inverse=True)
    texts = list(dict.fromkeys(judgments.captions))
    row_of = {text: n for n, text in enumerate(texts)}
    images = encoder.encode_image([gallery[n] for n in judged])
    said = encoder.encode_text(texts)[[row_of[text] for text in judgments.captions]]
    cosines: NDArray[np.float64] = (images[rows].astype(np.float64) * said).sum(axis=1)
    return cosines


def generator_scores(
    generator: Generator,
    scoring: Scoring,
    judgments: Judgments,
    gallery: Sequence[Image],
    *,
    shown: Sequence[Image | ImageState] | None = None,
    batch_size: int = 64,
    work: Path | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """What a rule makes of every pair that was judged; float64 [n].

    A likelihood ranks images for one text. Here texts are ranked too, which differ in how likely they are of
    themselves: expect a prior correction to matter (:func:`zsqretrieval.search.priors.log_prior`).

    Args:
        generator: reads the images.
        scoring: what is asked of it.
        judgments: the pairs.
        gallery: the images that they count.
        shown: what the generator is given in place of the gallery.
        batch_size: pairs computed together.
        work: folder that keeps scores, to go on where an interrupted run was.
        progress: told how far it is.

    Raises:
        ZsqError: the generator gave a number that is none.
    """
    return score_matrix(
        generator, scoring, judgments.captions, gallery, judgments.images[:, None],
        shown=shown, batch_size=batch_size, work=work, progress=progress,
    )[:, 0]  # fmt: skip


def correlate(
    judgments: Judgments,
    scores: NDArray[np.float64],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Correlation:
    """Rank correlation of scores with ratings, and how sure it is.

    Args:
        judgments: n pairs.
        scores: [n], higher is better. Each stands against every rating of its pair.
        resamples: draws of the bootstrap: images are drawn, each with all of its pairs. A draw in which all
            scores or all ratings are one has no tau, and is left out of the interval.
        level: of the interval.
        seed: makes the draws repeatable.

    Raises:
        InvalidInputError: there are not n scores, one is not finite, all scores or all ratings are one, or
            ``resamples`` < 1. Names the pair.
        MissingDependencyError: scipy is not installed.
    """
    check_counts(resamples=resamples)
    if scores.shape != judgments.images.shape:
        raise InvalidInputError(
            f"scores are {scores.shape}, not one for each of {len(judgments.images)} pairs"
        )
    if not np.isfinite(scores).all():
        n = int(np.argmin(np.isfinite(scores)))
        raise InvalidInputError(
            f"{judgments.name}: the score of {judgments.captions[n]!r} for image {judgments.images[n]} is "
            f"{scores[n]}; the scorer is broken"
        )
    if np.ptp(scores) == 0:
        raise InvalidInputError(f"{judgments.name}: all scores are {scores[0]}; they rank nothing")
    if np.ptp(judgments.ratings) == 0:
        raise InvalidInputError(
            f"{judgments.name}: all ratings are {judgments.ratings.flat[0]}; people rank nothing there"
        )
    raters = judgments.ratings.shape[1]
    order = np.argsort(judgments.images, kind="stable")
    ends = np.flatnonzero(np.diff(judgments.images[order])) + 1
    by_image = np.split(order, ends)
    kendalltau = _kendalltau()

    def tau(pairs: NDArray[np.int64]) -> float:
        repeated = np.repeat(scores[pairs], raters)
        return float(kendalltau(repeated, judgments.ratings[pairs].ravel(), variant=judgments.variant)[0])

    random = np.random.default_rng(seed)
    drawn = [
        tau(np.concatenate([by_image[n] for n in random.integers(len(by_image), size=len(by_image))]))
        for _ in range(resamples)
    ]
    if np.isnan(drawn).all():
        raise InvalidInputError(
            f"{judgments.name}: no draw of {len(by_image)} images has a rank correlation; there are too few"
        )
    low, high = np.nanpercentile(drawn, (50 * (1 - level), 50 * (1 + level)))
    return Correlation(
        judgments.name, tau(order), (float(low), float(high)), judgments.variant, len(scores), len(by_image)
    )


def _kendalltau() -> Any:
    try:
        from scipy.stats import kendalltau
    except ImportError as error:
        raise MissingDependencyError(
            "scipy", "a rank correlation", "pip install 'zsqretrieval[evaluation]'"
        ) from error
    return kendalltau

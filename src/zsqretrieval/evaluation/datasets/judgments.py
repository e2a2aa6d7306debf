"""Human ratings of pairs of an image and a caption: Flickr8k-Expert and Flickr8k-CrowdFlower.

M. Hodosh, P. Young, J. Hockenmaier (JAIR 47, 2013) had captions of other images of the test split rated for
each image. The conventions are those of CLIPScore (Hessel et al., EMNLP 2021, arXiv 2104.08718, appendix A
and the repository's ``flickr8k_example``):

- Expert: the ratings, 1 to 4, of three experts are separate observations, for Kendall's tau-c. Captions of
  the image itself are left out, as in the SPICE paper: 5,664 of 5,822 pairs, 16,992 observations.
- CrowdFlower: the share of at least three people who said that the caption describes the image, for tau-b:
  all 47,830 pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets.dataset import CAPTION, Dataset, found, lines

__all__ = ["Judgments", "read_crowdflower", "read_expert", "read_judgments"]

_ORIGIN = "the makers of Flickr8k at the University of Illinois (Flickr8k_text.zip)"


@dataclass(frozen=True, slots=True, eq=False)
class Judgments:
    """Ratings of pairs of an image and a caption.

    Attributes:
        name: for reports.
        images: int64 [n], positions in the gallery.
        captions: n texts.
        ratings: float64 [n, raters], higher is better; each is a separate observation.
        variant: of Kendall's tau, ``"b"`` or ``"c"``.
    """

    name: str
    images: NDArray[np.int64]
    captions: tuple[str, ...]
    ratings: NDArray[np.float64]
    variant: Literal["b", "c"]


def read_expert(path: Path, dataset: Dataset) -> Judgments:
    """Read ``ExpertAnnotations.txt``: image, caption id and three ratings, between tabs.

    Args:
        path: the file.
        dataset: Flickr8k's test split. An image is found by its id or by ``image`` in its metadata; caption
            ``{file}#{n}`` is the n-th of its captions.

    Raises:
        InvalidInputError: the file is missing, a line is malformed, or names something that is not in the
            data set. Names the line.
    """

    def ratings(columns: Sequence[str]) -> list[float]:
        return [float(column) for column in columns]

    rows = [row for row in _rows(path, dataset, ratings) if not row.own]
    return _judgments("Flickr8k-Expert", rows, "c")


def read_crowdflower(path: Path, dataset: Dataset) -> Judgments:
    """Read ``CrowdFlowerAnnotations.txt``: image, caption id, share of yes, numbers of yes and no.

    Raises:
        InvalidInputError: as :func:`read_expert`; or a share differs from that of its numbers.
    """

    def share(columns: Sequence[str]) -> list[float]:
        given, yes, no = float(columns[0]), int(columns[1]), int(columns[2])
        if abs(given - yes / (yes + no)) > 1e-5:
            raise ValueError(f"{given} is not the share of {yes} yes and {no} no")
        return [given]

    return _judgments("Flickr8k-CrowdFlower", list(_rows(path, dataset, share)), "b")


def read_judgments(folder: Path, dataset: Dataset) -> tuple[Judgments, ...]:
    """Read those of the two files that are in a folder.

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
    own: bool  # the caption was written for this image
    ratings: list[float]


def _rows(path: Path, dataset: Dataset, ratings: Callable[[Sequence[str]], list[float]]) -> Iterator[_Row]:
    files = [str(image.metadata.get("image", image.id)) for image in dataset.gallery]
    position = {file: n for n, file in enumerate(files)}
    place_of = {str(image.id): n for n, image in enumerate(dataset.gallery)}
    captions: list[list[str]] = [[] for _ in files]
    for query in dataset.of_form(CAPTION).queries:
        for image in dataset.qrels[query.id]:
            captions[place_of[image]].append(query.text)
    for place, line in lines(found(Path(path), "human ratings", _ORIGIN)):
        columns = line.split("\t")
        if len(columns) != 5:
            raise InvalidInputError(f"{place}: has {len(columns)} columns, not image, caption and 3 more")
        file, _, number = columns[1].partition("#")
        for name in (columns[0], file):
            if name not in position:
                raise InvalidInputError(
                    f"{place}: the image {name!r} is not in {dataset.name}; the ratings are of the test split"
                )
        said = captions[position[file]]
        if not number.isdecimal() or int(number) >= len(said):
            raise InvalidInputError(f"{place}: {columns[1]!r} is none of the {len(said)} captions of {file}")
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
        raise InvalidInputError(f"{name}: there are no ratings")
    images = np.array([row.image for row in rows], np.int64)
    ratings = np.array([row.ratings for row in rows], np.float64)
    return Judgments(name, images, tuple(row.caption for row in rows), ratings, variant)

"""Human ratings of pairs of an image and a caption: Flickr8k-Expert and Flickr8k-CrowdFlower.

M. Hodosh, P. Young, J. Hockenmaier (JAIR 47, 2013) had captions of other images of the test split rated for
each image. The conventions are those of CLIPScore (Hessel et al., EMNLP 2021, arXiv 2104.08718, appendix A
and the repository's ``flickr8k_example``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets.dataset import CAPTION, Dataset, found, lines

_ORIGIN = "the makers of Flickr8k at the University of Illinois (Flickr8k_text.zip)"


@dataclass(frozen=True, slots=True, eq=False)
class Judgments:
    """Ratings of pairs of an image and a caption."""

    name: str
    images: NDArray[np.int64]  # [n], positions in the gallery
    captions: tuple[str, ...]  # n texts
    ratings: NDArray[np.float64]  # [n, raters], higher is better; each is a separate observation
    variant: Literal["b", "c"]  # of Kendall's tau


def read_expert(path: Path, dataset: Dataset) -> Judgments:
    """Read ``ExpertAnnotations.txt``: image, caption id and three ratings, 1 to 4, between tabs; for tau-c.

    Captions of the image itself are left out, as in the SPICE paper: 5,664 of 5,822 pairs, 16,992
    observations. In ``dataset``, Flickr8k's test split, an image is found by its id or by ``image`` in its
    metadata; caption ``{file}#{n}`` is the n-th of its captions.

    Raises:
        InvalidInputError: the file is missing, a line is malformed, or names something that is not in the
            data set. Names the line.
    """
    return _read("Flickr8k-Expert", path, dataset, lambda columns: [*map(float, columns)], "c", own=False)


def read_crowdflower(path: Path, dataset: Dataset) -> Judgments:
    """Read ``CrowdFlowerAnnotations.txt``: image, caption id, share of yes, numbers of yes and no; for tau-b.

    At least three people said whether the caption describes the image: 47,830 pairs, all read.

    Raises:
        InvalidInputError: as :func:`read_expert`; or a share differs from that of its numbers.
    """

    def share(columns: Sequence[str]) -> list[float]:
        given, yes, no = float(columns[0]), int(columns[1]), int(columns[2])
        if abs(given - yes / (yes + no)) > 1e-5:
            raise ValueError(f"{given} is not the share of {yes} yes and {no} no")
        return [given]

    return _read("Flickr8k-CrowdFlower", path, dataset, share, "b", own=True)


def read_judgments(folder: Path, dataset: Dataset) -> tuple[Judgments, ...]:
    """Read those of the two files that are in a folder; errors as of their readers."""
    files = {"ExpertAnnotations.txt": read_expert, "CrowdFlowerAnnotations.txt": read_crowdflower}
    return tuple(read(folder / name, dataset) for name, read in files.items() if (folder / name).is_file())


def _read(
    name: str,
    path: Path,
    dataset: Dataset,
    ratings: Callable[[Sequence[str]], list[float]],
    variant: Literal["b", "c"],
    *,
    own: bool,  # whether captions that were written for the rated image count
) -> Judgments:
    position = {str(image.metadata.get("image", image.id)): n for n, image in enumerate(dataset.gallery)}
    places, captions = dataset.places, defaultdict[int, list[str]](list)
    for query in dataset.of_form(CAPTION).queries:
        for image in dataset.qrels[query.id]:
            captions[places[image]].append(query.text)
    rows: list[tuple[int, str, list[float]]] = []
    for place, line in lines(found(path, "human ratings", _ORIGIN)):
        columns = line.split("\t")
        if len(columns) != 5:
            raise InvalidInputError(f"{place}: has {len(columns)} columns, not image, caption and 3 more")
        file, _, number = columns[1].partition("#")
        if strange := [image for image in (columns[0], file) if image not in position]:
            raise InvalidInputError(
                f"{place}: the image {strange[0]!r} is not in {dataset.name}; the ratings are of the "
                "test split"
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
        if own or caption not in captions[about]:
            rows.append((about, caption, rated))
    if not rows:
        raise InvalidInputError(f"{name}: there are no ratings")
    images, rated_captions, all_ratings = zip(*rows, strict=True)
    return Judgments(name, np.array(images, np.int64), rated_captions, np.array(all_ratings), variant)

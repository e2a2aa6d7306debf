"""What has seen the answers must not choose: parameters come from another split than the one measured."""

from __future__ import annotations

from zsqretrieval.data.images import digest
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset

__all__ = ["refuse_shared_images", "refuse_test_split"]


def refuse_test_split(split: str) -> None:
    """Refuse to tune on a split that is called test.

    Raises:
        InvalidInputError: it is.
    """
    if split.startswith("test"):
        raise InvalidInputError(
            "parameters chosen on the test split have seen the answers, and their numbers say nothing about "
            "other questions; tune on dev, then measure on test with what was found"
        )


def refuse_shared_images(dataset: Dataset, tune_on: Dataset) -> None:
    """Refuse to tune on images that are measured, whatever their files are called.

    Args:
        dataset: what is measured.
        tune_on: what parameters are chosen on. All images of both are read.

    Raises:
        InvalidInputError: an image is in both, byte for byte; names it.
        ImageError: an image cannot be read.
    """
    measured = {digest(image) for image in dataset.gallery}
    shared = {found: image.source for image in tune_on.gallery if (found := digest(image)) in measured}
    if shared:
        raise InvalidInputError(
            f"{tune_on.name} and {dataset.name} share {len(shared)} images, such as {min(shared.values())}; "
            "a weight that has seen the answers says nothing about other questions: tune on another split"
        )

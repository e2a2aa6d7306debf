"""Re-rankers with one common bug each, and the checks that must find it."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
from PIL import Image as PILImage

from caught_by import caught_by, spoiled
from zsqretrieval.data.images import decode
from zsqretrieval.errors import ImageError
from zsqretrieval.rerankers.generative import LikelihoodReranker
from zsqretrieval.testing import ToyGenerator
from zsqretrieval.types import Image


class Sound:
    def score(self, question, images):
        return LikelihoodReranker(ToyGenerator()).score(question, images)


class Spoiling(Sound):
    """Applies ``spoil`` of a subclass to the scores."""

    def score(self, question, images):
        return self.spoil(super().score(question, images))


SPOILED = spoiled(
    Spoiling,
    OnePerCall=(lambda scores: scores[:1], "one_finite_score_per_image"),
    Nan=(lambda scores: scores * np.nan, "one_finite_score_per_image"),
    Words=(lambda scores: ["high" for _ in scores], "one_finite_score_per_image"),
    Dropout=(
        lambda scores: scores + np.random.default_rng().normal(0, 0.1, len(scores)),
        "scoring_is_deterministic",
    ),
    SortedByScore=(lambda scores: np.sort(scores)[::-1], "order_of_images_is_kept"),
    Softmax=(lambda scores: np.exp(scores) / np.exp(scores).sum(), "other_images_change_nothing"),
    Constant=(np.zeros_like, "different_images_differ", "question_counts"),
    BreaksTies=(
        lambda scores: scores + 0.01 * np.arange(len(scores)),
        "repeated_image_has_the_same_score",
    ),
)


@caught_by("no_images_give_no_scores")
class StacksAnEmptyList(Sound):
    def score(self, question, images):
        return np.stack([super(StacksAnEmptyList, self).score(question, [image])[0] for image in images])


@caught_by("repeated_image_has_the_same_score")
class ReadsTheCaption(Sound):
    def score(self, question, images):
        return super().score(question, images) + [len(image.caption or "") for image in images]


@caught_by("bytes_paths_and_pictures_agree")
class BytesOnly(Sound):
    def score(self, question, images):
        gain = [0.0 if isinstance(image.content, bytes) else 1.0 for image in images]
        return super().score(question, images) + gain


@caught_by("colour_modes_are_accepted", "small_images_are_accepted")
class RGBOfSomeSize(Sound):
    def score(self, question, images):
        for image in images:
            if isinstance(image.content, bytes):
                with PILImage.open(io.BytesIO(image.content)) as picture:
                    if picture.mode != "RGB" or min(picture.size) < 2:
                        raise ValueError("unsupported image")
        return super().score(question, images)


@caught_by("unusual_questions_are_accepted")
class ASCII(Sound):
    def score(self, question, images):
        return super().score(question.encode("ascii").decode(), images)


@caught_by("broken_image_is_named")
class SkipsBrokenImages(Sound):
    def score(self, question, images):
        scores = np.zeros(len(images))
        for n, image in enumerate(images):
            try:
                scores[n] = super().score(question, [image])[0]
            except ImageError:
                scores[n] = -1e9
        return scores


@caught_by("inputs_are_not_changed")
class EmptiesItsInput(Sound):
    def score(self, question, images):
        scores = super().score(question, list(images))
        if isinstance(images, list):
            images.reverse()
        return scores


@caught_by("results_are_fresh")
class OneBuffer(Sound):
    def __init__(self):
        self.buffer = np.empty(100)

    def score(self, question, images):
        self.buffer[: len(images)] = super().score(question, images)
        return self.buffer[: len(images)]


@caught_by("threads_agree")
class SharedState(Sound):
    def __init__(self):
        self.images = []
        self.inside = threading.Semaphore()

    def score(self, question, images):
        self.images = [Image(decode(image), image.source) for image in images]
        time.sleep(0.01)  # another thread replaces them
        return super().score(question, self.images)

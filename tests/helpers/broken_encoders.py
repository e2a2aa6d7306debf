"""Encoders with one common bug each, and the checks that must find it."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
from PIL import Image as PILImage

from caught_by import caught_by, spoiled
from index_data import unit
from zsqretrieval.errors import ImageError
from zsqretrieval.testing import ToyEncoder
from zsqretrieval.types import Image


class BothWays(ToyEncoder):
    """Applies ``spoil`` of a subclass to the rows of images and texts."""

    def encode_image(self, images, *, batch_size=32):
        return self.spoil(super().encode_image(images), batch_size)

    def encode_text(self, texts, *, batch_size=32):
        return self.spoil(super().encode_text(texts), batch_size)


def training_mode_batch_norm(rows, batch_size):
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        batch -= 0.1 * batch.mean(axis=0)
    return unit(rows)


def dropout(rows, _):
    return unit(rows + np.random.default_rng().normal(0, 0.01, rows.shape).astype(np.float32))


IMAGE_ROWS, TEXT_ROWS = "image_rows_are_unit_vectors", "text_rows_are_unit_vectors"
SPOILED = spoiled(
    BothWays,
    Unnormalised=(lambda rows, _: rows * np.float32(1.001), IMAGE_ROWS, TEXT_ROWS),
    Float64=(lambda rows, _: rows.astype(np.float64), IMAGE_ROWS, TEXT_ROWS, "no_images_give_no_rows"),
    ColumnMajor=(lambda rows, _: np.asfortranarray(rows), IMAGE_ROWS, TEXT_ROWS),
    StacksAnEmptyList=(
        lambda rows, _: np.array(list(rows), np.float32),
        *("no_images_give_no_rows", "no_texts_give_no_rows"),
    ),
    TrainingModeBatchNorm=(
        training_mode_batch_norm,
        *("image_batch_size_changes_nothing", "text_batch_size_changes_nothing"),
    ),
    Dropout=(dropout, "encoding_is_deterministic"),
    Collapsed=(lambda rows, _: np.full_like(rows, 0.25), "different_images_differ", "different_texts_differ"),
    NanRows=(
        lambda rows, _: np.full_like(rows, np.nan),
        *(IMAGE_ROWS, "encoding_is_deterministic", "different_texts_differ"),
    ),
)


@caught_by("dim_and_fingerprint_are_stable")
class FingerprintChangesWithUse(ToyEncoder):
    calls = 0

    @property
    def fingerprint(self):
        self.calls += 1
        return f"toy-{self.calls}"


@caught_by("dim_and_fingerprint_are_stable")
class NumpyDim(ToyEncoder):
    dim = np.int64(16)


@caught_by("image_order_is_kept", "text_order_is_kept")
class SortedByLengthAndNotBack(ToyEncoder):
    def encode_image(self, images, *, batch_size=32):
        return super().encode_image(sorted(images, key=lambda image: len(image.content)))

    def encode_text(self, texts, *, batch_size=32):
        return super().encode_text(sorted(texts, key=len))


@caught_by("only_pixels_count")
class CachesBySource(ToyEncoder):
    def __init__(self):
        self.cache = {}

    def encode_image(self, images, *, batch_size=32):
        for image in images:
            self.cache.setdefault(image.source, super().encode_image([image]))
        return np.concatenate([np.empty((0, 16), np.float32), *(self.cache[i.source] for i in images)])


@caught_by("only_pixels_count")
class ReadsCaptions(ToyEncoder):
    def encode_image(self, images, *, batch_size=32):
        rows = super().encode_image(images)
        for row, image in zip(rows, images, strict=True):
            if image.caption:
                row[:] = self.encode_text([image.caption])
        return rows


@caught_by("bytes_paths_and_pictures_agree")
class BlueGreenRedPictures(ToyEncoder):
    def encode_image(self, images, *, batch_size=32):
        swapped = [
            Image(PILImage.fromarray(np.asarray(image.content.convert("RGB"))[..., ::-1]), image.source)
            if isinstance(image.content, PILImage.Image)
            else image
            for image in images
        ]
        return super().encode_image(swapped)


@caught_by("colour_modes_are_accepted")
class OnlyColour(ToyEncoder):
    def encode_image(self, images, *, batch_size=32):
        for image in images:
            if PILImage.open(io.BytesIO(image.content)).mode != "RGB":
                raise ImageError(image.source, "is not RGB")
        return super().encode_image(images)


@caught_by("exif_turn_is_undone", "colour_modes_agree")
class DecodesByHand(ToyEncoder):
    """The two lines everybody writes first."""

    def encode_image(self, images, *, batch_size=32):
        pixels = [np.asarray(PILImage.open(io.BytesIO(image.content))) for image in images]
        grey_to_colour = [p if p.ndim == 3 else np.repeat(p[..., None], 3, axis=2) for p in pixels]
        return super().encode_image(
            [
                Image(PILImage.fromarray(p.astype(np.uint8)), image.source)
                for p, image in zip(grey_to_colour, images, strict=True)
            ]
        )


@caught_by("extreme_sizes_are_accepted")
class NeedsEightPixels(ToyEncoder):
    def encode_image(self, images, *, batch_size=32):
        for image in images:
            if min(PILImage.open(io.BytesIO(image.content)).size) < 8:
                raise ImageError(image.source, "is too small")
        return super().encode_image(images)


@caught_by("unusual_texts_are_accepted")
class RefusesLongTexts(ToyEncoder):
    def encode_text(self, texts, *, batch_size=32):
        if any(len(text) > 500 for text in texts):
            raise ValueError("too long")
        return super().encode_text(texts)


@caught_by("unusual_texts_are_accepted")
class ZeroForEmptyText(ToyEncoder):
    def encode_text(self, texts, *, batch_size=32):
        rows = super().encode_text(texts)
        rows[[not text for text in texts]] = 0
        return rows


@caught_by("one_string_is_refused")
class EncodesLetters(ToyEncoder):
    def encode_text(self, texts, *, batch_size=32):
        return super().encode_text(list(texts))


@caught_by("broken_image_is_named")
class LeavesBrokenImagesOut(ToyEncoder):
    def encode_image(self, images, *, batch_size=32):
        rows = [np.empty((0, 16), np.float32)]
        for image in images:
            try:
                rows.append(super().encode_image([image]))
            except ImageError:
                continue
        return np.concatenate(rows)


@caught_by("broken_image_is_named")
class NamesTheFirstImage(ToyEncoder):
    def encode_image(self, images, *, batch_size=32):
        try:
            return super().encode_image(images)
        except ImageError as error:
            raise ImageError(images[0].source, error.reason) from error


@caught_by("inputs_are_not_changed")
class PopsItsInput(ToyEncoder):
    def encode_text(self, texts, *, batch_size=32):
        rows = super().encode_text(texts)
        if isinstance(texts, list):
            texts.clear()
        return rows


@caught_by("inputs_are_not_changed")
class PaintsOnPictures(ToyEncoder):
    def encode_image(self, images, *, batch_size=32):
        rows = super().encode_image(images)
        for image in images:
            if isinstance(image.content, PILImage.Image):
                image.content.putpixel((0, 0), 0)
                image.content.putpixel((1, 0), 1)
        return rows


@caught_by("results_are_fresh")
class OneBuffer(BothWays):
    def __init__(self):
        self.buffer = np.empty((1000, 16), np.float32)

    def spoil(self, rows, batch_size):
        self.buffer[: len(rows)] = rows
        return self.buffer[: len(rows)]


@caught_by("results_are_fresh")
class HandsOutItsCache(ToyEncoder):
    def __init__(self):
        self.cache = {}

    def encode_text(self, texts, *, batch_size=32):
        if isinstance(texts, str):
            return super().encode_text(texts)
        return self.cache.setdefault(tuple(texts), super().encode_text(texts))


@caught_by("threads_agree")
class StateBetweenSteps(BothWays):
    def spoil(self, rows, batch_size):
        self.last = rows
        time.sleep(0.005)
        return self.last


@caught_by("threads_agree")
class OneThreadOnly(ToyEncoder):
    def __init__(self):
        self.home = threading.get_ident()

    def encode_text(self, texts, *, batch_size=32):
        if threading.get_ident() != self.home:
            raise RuntimeError("created in another thread")
        return super().encode_text(texts)

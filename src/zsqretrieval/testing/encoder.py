"""Checks of every encoder; the contract is :class:`zsqretrieval.protocols.Encoder`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import ImageError
from zsqretrieval.protocols import Encoder
from zsqretrieval.testing.checks import Check, expect, expect_accepted, expect_refusal, lister, run_checks
from zsqretrieval.testing.pictures import (
    ORIENTATIONS,
    as_image,
    broken_images,
    colour_modes,
    encoded,
    painting,
    paintings,
    turned,
    unchanged_images,
)
from zsqretrieval.types import Image

EncoderFactory: TypeAlias = Callable[[], Encoder]

SAME = 1e-5
"""Largest difference in an entry between batch sizes or threads."""

DIFFERENT = 1e-4
"""Smallest difference in some entry between different vectors."""

# very different lengths, because padding is a common source of errors
TEXTS = (
    "a dog",
    "two children in red jackets are running through deep snow towards a wooden house",
    "What colour is the car?",
    "x",
    "a bowl of noodle soup with spring onions, a soft egg and a spoon on a dark table, seen from above",
)

UNUSUAL_TEXTS = {
    "an empty text": "",
    "white space": "  \t ",
    "line breaks": "first line\nsecond line\r\nthird",
    "emoji": "🐕‍🦺🌧️",
    "accents and other scripts": "Größe, naïve, 猫, кошка, قطة",
    "a NUL character": "a\0b",
    "10,000 characters": "a very long caption " * 500,
}

_listed: list[Check[EncoderFactory]] = []
_check = lister(_listed, lambda make_encoder: make_encoder())


def check_encoder(encoder: Encoder) -> None:
    """Run every encoder check on ``encoder``.

    Raises:
        ContractError: names each failed check, with what was expected and what was got.
    """
    run_checks(encoder_checks, lambda: encoder)


@_check
def dim_and_fingerprint_are_stable(encoder: Encoder) -> None:
    """``dim`` is a positive int, ``fingerprint`` a non-empty str, and encoding changes neither."""
    before = (encoder.dim, encoder.fingerprint)
    expect(isinstance(encoder, Encoder), "the members of the Encoder protocol", type(encoder).__name__)
    expect(type(before[0]) is int and before[0] > 0, "dim: a positive int", repr(before[0]))
    expect(type(before[1]) is str and before[1], "fingerprint: a non-empty str", repr(before[1]))
    encoder.encode_image(paintings(1))
    encoder.encode_text(TEXTS[:1])
    after = (encoder.dim, encoder.fingerprint)
    expect(before == after, f"dim and fingerprint {before} after encoding too", after)


@_check
def image_rows_are_unit_vectors(encoder: Encoder) -> None:
    """``encode_image`` returns C-contiguous float32 [n, dim], rows of unit length."""
    _expect_unit_rows(encoder.encode_image(paintings(5)), 5, encoder.dim)


@_check
def text_rows_are_unit_vectors(encoder: Encoder) -> None:
    """``encode_text`` returns C-contiguous float32 [n, dim], rows of unit length."""
    _expect_unit_rows(encoder.encode_text(TEXTS), len(TEXTS), encoder.dim)


@_check
def no_images_give_no_rows(encoder: Encoder) -> None:
    """``encode_image([])`` returns float32 [0, dim]."""
    _expect_unit_rows(encoder.encode_image([]), 0, encoder.dim)


@_check
def no_texts_give_no_rows(encoder: Encoder) -> None:
    """``encode_text([])`` returns float32 [0, dim]."""
    _expect_unit_rows(encoder.encode_text([]), 0, encoder.dim)


@_check
def image_order_is_kept(encoder: Encoder) -> None:
    """Row i belongs to image i: permuted images give permuted rows."""
    _expect_order_kept(encoder.encode_image, paintings(5))


@_check
def text_order_is_kept(encoder: Encoder) -> None:
    """Row i belongs to text i: permuted texts give permuted rows."""
    _expect_order_kept(encoder.encode_text, TEXTS)


@_check
def image_batch_size_changes_nothing(encoder: Encoder) -> None:
    """Any ``batch_size`` gives the same image rows to 1e-5."""
    _expect_batch_invariance(encoder.encode_image, paintings(5))


@_check
def text_batch_size_changes_nothing(encoder: Encoder) -> None:
    """Any ``batch_size`` gives the same text rows to 1e-5, whatever the lengths of their neighbours."""
    _expect_batch_invariance(encoder.encode_text, TEXTS)


@_check
def encoding_is_deterministic(encoder: Encoder) -> None:
    """Encoding twice gives the same rows to 1e-5; so does a tuple in place of a list."""
    images, texts = paintings(3), list(TEXTS)
    _expect_same(encoder.encode_image(images), encoder.encode_image(tuple(images)), "images encoded twice")
    _expect_same(encoder.encode_text(texts), encoder.encode_text(tuple(texts)), "texts encoded twice")


@_check
def different_images_differ(encoder: Encoder) -> None:
    """Different images get different vectors."""
    _expect_all_different(encoder.encode_image(paintings(5)), [f"painting {i}" for i in range(5)])


@_check
def different_texts_differ(encoder: Encoder) -> None:
    """Different texts get different vectors."""
    _expect_all_different(encoder.encode_text(TEXTS), TEXTS)


@_check
def only_pixels_count(encoder: Encoder) -> None:
    """An image's vector depends on its pixels, not on its source, id, caption or metadata."""
    one, other = encoded(painting(1)), encoded(painting(2))
    rows = encoder.encode_image(
        [
            Image(one, "a.png", id="a"),
            Image(one, "b.png", id="b", caption="a red boat", metadata={"year": 1999}),
            Image(other, "a.png", id="a"),
        ]
    )
    _expect_same(rows[:1], rows[1:2], "the same pixels under another name")
    _expect_all_different(rows[[0, 2]], ["one image", "another image of the same name"])


@_check
def bytes_paths_and_pictures_agree(encoder: Encoder) -> None:
    """The same image as bytes, as a path and as a PIL picture gets the same vector."""
    picture = painting(3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "painting.png"
        path.write_bytes(encoded(picture))
        rows = encoder.encode_image(
            [as_image(picture, "bytes"), Image(path, str(path)), Image(picture, "PIL picture")]
        )
    _expect_same(rows[:1], rows[1:2], "bytes and path")
    _expect_same(rows[:1], rows[2:3], "bytes and PIL picture")


@_check
def colour_modes_are_accepted(encoder: Encoder) -> None:
    """Grey, black-and-white, palette, RGBA, CMYK, 16-bit, WebP and GIF images are encoded."""
    for name, image in colour_modes().items():
        _expect_accepted(partial(encoder.encode_image, [image]), encoder.dim, name)


@_check
def colour_modes_agree(encoder: Encoder) -> None:
    """A mode that stores the same colours gives the same vector: opaque RGBA, palette, 16-bit grey."""
    colours, grey = painting(7), painting(7).convert("L")
    deep_grey = colour_modes()["a 16-bit PNG"]
    twins = {
        "RGB and opaque RGBA": (as_image(colours, "RGB"), as_image(colours.convert("RGBA"), "RGBA")),
        "RGB and palette": (as_image(colours, "RGB"), as_image(colours.quantize(256), "palette")),
        "grey and its RGB": (as_image(grey, "grey"), as_image(grey.convert("RGB"), "RGB of grey")),
        "8-bit and 16-bit grey": (as_image(grey, "8-bit grey"), deep_grey),
    }
    for name, pair in twins.items():
        # not exactly equal: 16 bits to 8 may round by one level, and a palette has 256 colours
        one, other = encoder.encode_image(pair)
        _expect_same(one, other, name, tolerance=0.02)


@_check
def exif_turn_is_undone(encoder: Encoder) -> None:
    """An image with an EXIF orientation gets the vector of the upright image."""
    upright = encoder.encode_image([as_image(painting(4), "upright painting")])
    for orientation in ORIENTATIONS:
        row = encoder.encode_image([turned(painting(4), orientation)])
        _expect_same(upright, row, f"upright and EXIF orientation {orientation}")


@_check
def extreme_sizes_are_accepted(encoder: Encoder) -> None:
    """Images of 1 x 1, 1 x 300 and 300 x 1 pixels are encoded."""
    for size in ((1, 1), (1, 300), (300, 1)):
        image = as_image(painting(5, size), f"{size[0]} x {size[1]} pixels")
        _expect_accepted(partial(encoder.encode_image, [image]), encoder.dim, image.source)


@_check
def unusual_texts_are_accepted(encoder: Encoder) -> None:
    """Empty, very long, multi-line, emoji and non-Latin texts are encoded."""
    for name, text in UNUSUAL_TEXTS.items():
        _expect_accepted(partial(encoder.encode_text, [text]), encoder.dim, name)


@_check
def one_string_is_refused(encoder: Encoder) -> None:
    """``encode_text`` refuses one string in place of a sequence of strings."""
    expect_refusal(lambda: encoder.encode_text("a dog"), "encode_text('a dog')")


@_check
def broken_image_is_named(encoder: Encoder) -> None:
    """An image that cannot be decoded raises ImageError naming that image, wherever it stands."""
    for image in broken_images():
        encode = partial(encoder.encode_image, [*paintings(2), image, *paintings(2)])
        expect_refusal(encode, image.source, ImageError, naming=image.source)


@_check
def inputs_are_not_changed(encoder: Encoder) -> None:
    """Encoding leaves the lists, the images and their pixels as they were."""
    texts = list(TEXTS)
    with unchanged_images() as images:
        encoder.encode_image(images)
        encoder.encode_text(texts)
    expect(texts == list(TEXTS), "the list of texts unchanged", texts)


@_check
def results_are_fresh(encoder: Encoder) -> None:
    """Later calls do not change a returned array, and the caller may overwrite it."""
    calls: tuple[tuple[Any, Any, Any], ...] = (
        (encoder.encode_image, paintings(2), paintings(2, first_seed=10)),
        (encoder.encode_text, TEXTS[:2], TEXTS[2:4]),
    )
    for encode, one, other in calls:
        first = encode(one)
        kept = first.copy()
        encode(other)
        _expect_same(kept, first, "a result, before and after another call")
        if first.flags.writeable:
            first[:] = 0
        _expect_same(kept, encode(one), "a result, before and after the caller overwrote an earlier one")


@_check
def threads_agree(encoder: Encoder) -> None:
    """Concurrent calls and sequential calls give the same rows."""
    image_jobs = [paintings(2, first_seed=seed) for seed in range(8)]
    text_jobs = [TEXTS[i:] + TEXTS[:i] for i in range(len(TEXTS))]
    calls: list[tuple[Any, Any]] = [(encoder.encode_image, image_jobs), (encoder.encode_text, text_jobs)]
    for encode, jobs in calls:
        serial = [encode(job) for job in jobs]
        with ThreadPoolExecutor(4) as pool:
            concurrent = list(pool.map(encode, jobs))
        for one, other in zip(serial, concurrent, strict=True):
            _expect_same(one, other, "serial and concurrent calls")


encoder_checks = tuple(_listed)
"""Every encoder check; each takes a function without arguments that returns the encoder."""


def _expect_unit_rows(rows: Any, n: int, dim: int) -> None:
    expect(isinstance(rows, np.ndarray), "a numpy array", type(rows).__name__)
    expect(rows.dtype == np.float32, "float32", rows.dtype)
    expect(rows.shape == (n, dim), f"shape {(n, dim)}", rows.shape)
    expect(rows.flags.c_contiguous, "a C-contiguous array", f"strides {rows.strides}")
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    expect(np.all(np.abs(norms - 1) <= SAME), "rows of length 1 to 1e-5", f"lengths {norms.round(6)}")


def _expect_same(
    one: NDArray[np.float32], other: NDArray[np.float32], what: str, tolerance: float = SAME
) -> None:
    expect(one.shape == other.shape, f"equal shapes for {what}", f"{one.shape} and {other.shape}")
    gap = float(np.abs(one - other).max(initial=0))
    expect(gap <= tolerance, f"equal rows to {tolerance:g} for {what}", f"a difference of {gap:.3g}")


def _expect_all_different(rows: NDArray[np.float32], names: Sequence[str]) -> None:
    for i in range(len(rows)):
        for j in range(i):
            gap, what = float(np.abs(rows[i] - rows[j]).max()), f"{names[j]!r} and {names[i]!r}"
            expect(gap > DIFFERENT, f"different vectors for {what}", f"a largest difference of {gap:.3g}")


def _expect_order_kept(encode: Callable[[Any], NDArray[np.float32]], items: Sequence[Any]) -> None:
    order = np.random.default_rng(0).permutation(len(items))
    straight = np.concatenate([encode([item]) for item in items])
    _expect_same(straight, encode(list(items)), "items encoded alone and together")
    _expect_same(straight[order], encode([items[i] for i in order]), f"items in the order {order.tolist()}")


def _expect_batch_invariance(encode: Callable[..., NDArray[np.float32]], items: Sequence[Any]) -> None:
    one_by_one = encode(items, batch_size=1)
    for batch_size in (2, len(items), len(items) + 3):
        _expect_same(one_by_one, encode(items, batch_size=batch_size), f"batch_size 1 and {batch_size}")


def _expect_accepted(encode: Callable[[], NDArray[np.float32]], dim: int, what: str) -> None:
    _expect_unit_rows(expect_accepted(encode, "a vector", what), 1, dim)

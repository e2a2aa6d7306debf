from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsqretrieval.data.images import digest
from zsqretrieval.encoders.cached import CachedEncoder
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.testing import ToyEncoder, encoder_checks, parametrize_checks
from zsqretrieval.testing.pictures import encoded, painting, paintings
from zsqretrieval.types import Image


class Counting:
    """A toy encoder that keeps a list of what it was asked to compute."""

    def __init__(self, fingerprint: str = "toy") -> None:
        self.toy = ToyEncoder()
        self.dim = self.toy.dim
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def encode_image(self, images, *, batch_size=32):
        self.asked += [image.source for image in images]
        return self.toy.encode_image(images, batch_size=batch_size)

    def encode_text(self, texts, *, batch_size=32):
        self.asked += texts
        return self.toy.encode_text(texts, batch_size=batch_size)


@parametrize_checks(encoder_checks, lambda: CachedEncoder(ToyEncoder()))
def test_contract(check) -> None:
    check()


@pytest.fixture(scope="module")
def warm() -> Iterator[CachedEncoder]:
    """One instance for every check, so that most answers come out of the cache."""
    encoder = CachedEncoder(ToyEncoder())
    yield encoder
    encoder.close()


@pytest.mark.parametrize("check", encoder_checks, ids=lambda check: check.name)
def test_contract_out_of_the_cache(check, warm: CachedEncoder) -> None:
    check(lambda: warm)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.text(max_size=3), max_size=5), max_size=5))
def test_every_text_is_computed_once_and_answers_are_the_encoders(calls: list[list[str]]) -> None:
    inner = Counting()
    cached = CachedEncoder(inner)
    for texts in calls:
        assert np.array_equal(cached.encode_text(texts), inner.toy.encode_text(texts))
    assert sorted(inner.asked) == sorted({text for texts in calls for text in texts})


def test_an_image_is_known_by_its_content(tmp_path: Path) -> None:
    inner = Counting()
    cached = CachedEncoder(inner)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(painting(1)))
    rows = cached.encode_image(
        [Image(path, "file"), Image(path.read_bytes(), "bytes"), Image(painting(1), "PIL")]
    )
    assert inner.asked == ["bytes", "PIL"] or inner.asked == ["file", "PIL"]
    path.write_bytes(encoded(painting(2)))
    changed = cached.encode_image([Image(path, "changed")])
    assert np.array_equal(rows[0], rows[1]) and not np.allclose(rows[0], changed[0])
    assert inner.asked[-1] == "changed"


def test_a_text_is_never_taken_for_an_image() -> None:
    cached = CachedEncoder(ToyEncoder())
    (image,) = paintings(1)
    row = cached.encode_image([image])
    for text in (digest(image), f"image {digest(image)}"):
        assert not np.allclose(cached.encode_text([text]), row)


def test_vectors_outlive_the_process_and_keep_encoders_apart(tmp_path: Path) -> None:
    path = tmp_path / "vectors.sqlite"
    first = CachedEncoder(Counting(), path)
    rows = first.encode_image(paintings(3)), first.encode_text(["a", "b"])
    first.close()

    again = CachedEncoder(inner := Counting(), path)
    assert np.array_equal(again.encode_image(paintings(3)), rows[0])
    assert np.array_equal(again.encode_text(["b", "a"]), rows[1][::-1])
    assert inner.asked == []
    other = CachedEncoder(inner := Counting("another model"), path)
    other.encode_text(["a"])
    assert inner.asked == ["a"]
    again.close()
    other.close()


def test_the_oldest_are_forgotten() -> None:
    cached = CachedEncoder(inner := Counting(), capacity=3)
    cached.encode_text(list("abcd"))
    inner.asked.clear()
    cached.encode_text(["d", "c", "b"])
    assert inner.asked == []
    cached.encode_text(["a"])
    assert inner.asked == ["a"]


def test_more_than_the_capacity_at_once_is_still_answered() -> None:
    assert CachedEncoder(ToyEncoder(), capacity=1).encode_text(list("abc")).shape == (3, ToyEncoder().dim)


@pytest.mark.parametrize("damage", [lambda v: v[:-4], lambda v: b"\xff" * len(v), lambda v: b"\0" * len(v)])
def test_a_damaged_row_is_computed_anew(damage, tmp_path: Path) -> None:
    path = tmp_path / "vectors.sqlite"
    cached = CachedEncoder(inner := Counting(), path)
    expected = cached.encode_text(["a"])
    store = sqlite3.connect(path)
    ((vector,),) = store.execute("SELECT value FROM cache").fetchall()
    with store:
        store.execute("UPDATE cache SET value = ?", (damage(vector),))
    store.close()
    for _ in range(2):
        assert np.array_equal(cached.encode_text(["a"]), expected)
    assert inner.asked == ["a", "a"], "the damaged row was replaced by a good one"
    cached.close()


def test_a_failed_call_remembers_nothing_wrong() -> None:
    cached = CachedEncoder(Counting())
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        cached.encode_image([*paintings(2), Image(b"no image", "broken.jpg")])
    assert np.array_equal(cached.encode_image(paintings(2)), ToyEncoder().encode_image(paintings(2)))


def test_refusals() -> None:
    with pytest.raises(InvalidInputError, match="capacity"):
        CachedEncoder(ToyEncoder(), capacity=0)
    with pytest.raises(InvalidInputError, match="not one string"):
        CachedEncoder(ToyEncoder()).encode_text("a dog")

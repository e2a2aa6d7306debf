"""Adding images: what one batch costs, and what it does when another process writes in between.

The rules of ids, moved and changed files are tested with the retriever.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.ingest import Adder, AddReport
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.data import loader
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.testing.pictures import encoded
from zsqretrieval.testing.toys import ToyEncoder
from zsqretrieval.types import Image


class Album:
    """A catalog with an index; ``hook`` runs while a batch is encoded."""

    def __init__(self, path: Path) -> None:
        self.catalog = Catalog.create(path, dim=ToyEncoder.dim)
        album, self.hook = self, lambda: None

        class Hooked(ToyEncoder):
            def encode_image(self, images: Any, *, batch_size: int = 32) -> Any:
                album.hook()
                return super().encode_image(images, batch_size=batch_size)

        self.index = IndexSync(self.catalog, self.catalog.log, ExactIndex(ToyEncoder.dim))
        self.adder = Adder(Hooked(), self.catalog, self.index, None)

    def add(self, images: Any, batch_size: int = 32) -> AddReport:
        return self.adder.add(images, batch_size=batch_size, progress=None)

    def ids(self) -> list[str]:
        assert len(self.index.update()) == len(self.catalog)
        return [record.id for record in self.catalog.iter_records()]


@pytest.fixture
def album(tmp_path: Path) -> Iterator[Album]:
    made = Album(tmp_path / "catalog.sqlite")
    with made.catalog:
        yield made


def image(id: int | str, number: int) -> Image:
    colours = np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
    return Image(encoded(PILImage.fromarray(colours)), source=f"place {id}", id=str(id))


@pytest.mark.parametrize("known", [False, True])
def test_number_of_statements_does_not_depend_on_the_number_of_images(album: Album, known: bool) -> None:
    counts = []
    for start, size in ((0, 5), (100, 200)):
        images = [image(n, n) for n in range(start, start + size)]
        if known:
            album.add(images, size)
            images = [image(f"new {one.id}", int(one.id or "")) for one in images]
        statements: list[str] = []
        album.catalog._database.connection.set_trace_callback(statements.append)
        album.add(images, size)
        album.catalog._database.connection.set_trace_callback(None)
        rows = sum(
            statement.startswith("INSERT") for statement in statements
        )  # of an executemany, each counts
        assert rows == (0 if known else 2 * size)
        counts.append(len(statements) - rows)
    assert counts[0] == counts[1] <= 20


def test_each_image_is_decoded_and_hashed_once(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[Any]] = {"decode_with_exif": [], "digest": []}
    for name, made in calls.items():
        real = getattr(loader, name)
        monkeypatch.setattr(loader, name, lambda one, real=real, made=made: (made.append(one), real(one))[1])
    images = [image(n, n) for n in range(10)]
    album.add([*images, PILImage.new("RGB", (3, 3))], 4)
    assert len(calls["decode_with_exif"]) == len(calls["digest"]) == 11
    album.add(images)
    assert len(calls["decode_with_exif"]) == 11, "known images are not decoded"


def test_image_replaced_by_the_batch_before_is_added_again(album: Album) -> None:
    """Its batch was read while it was still in the album."""
    album.add([image("a", 0)])
    report = album.add([image("a", 1), Image(image("a", 0).content, source="place b", id="b")], batch_size=1)
    assert (report.replaced, report.added) == (("a",), ("b",))
    assert sorted(album.ids()) == ["a", "b"]


def test_image_added_by_another_process_in_the_meantime_is_known(album: Album, tmp_path: Path) -> None:
    other = Album.__new__(Album)
    other.catalog = Catalog.open(tmp_path / "catalog.sqlite")
    other.index = IndexSync(other.catalog, other.catalog.log, ExactIndex(ToyEncoder.dim))
    other.adder = Adder(ToyEncoder(), other.catalog, other.index, None)
    with other.catalog:
        album.hook = lambda: other.add([image("b", 2), image("c", 30)])
        report = album.add([image("a", 1), image("b", 2), image("c", 3)])
        assert (report.added, report.replaced, report.known) == (("a",), ("c",), 1)
        assert album.ids() == other.ids() == ["b", "a", "c"]


def test_image_removed_by_another_process_in_the_meantime_stays_removed(album: Album) -> None:
    album.add([image("a", 1), image("b", 2)])
    album.hook = lambda: album.catalog.remove([1])
    report = album.add([image("moved", 1), image("c", 3)])
    assert (report.added, report.known) == (("c",), 1)
    assert album.ids() == ["b", "c"]

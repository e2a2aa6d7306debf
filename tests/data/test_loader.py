from __future__ import annotations

import threading
from pathlib import Path

import pytest
from PIL import Image as PILImage

from plain import png
from zsqretrieval.data import loader as loader_module
from zsqretrieval.data.images import as_image, digest
from zsqretrieval.data.loader import Loader, NewImage, Skipped
from zsqretrieval.types import Image


def images(*greys: int) -> list[Image]:
    return [Image(png(grey), f"source {grey}", id=str(grey)) for grey in greys]


def load(records: list[Image], size: int = 4) -> tuple[list[list[NewImage]], Loader]:
    with Loader(iter(records), size) as loader:
        return [group for batch in loader for group in loader.decoded(batch)], loader


def ids(groups: list[list[NewImage]]) -> list[list[str]]:
    return [[one.id for one in group] for group in groups]


def test_images_keep_their_order_and_all_fields_are_filled_in() -> None:
    described = Image(png(200, (5, 5)), "web", caption="grey", metadata={"n": 1})
    groups, loader = load([*images(*range(9)), described])
    assert ids(groups)[:2] == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    last = groups[2][1]
    assert (last.source, last.caption, last.metadata) == ("web", "grey", {"n": 1})
    assert last.bytes == len(png(200, (5, 5))) and last.digest == digest(png(200, (5, 5)))
    assert last.id == last.digest[:16] and (last.width, last.height) == (5, 5)
    assert last.image is not None and isinstance(last.image.content, PILImage.Image)
    assert last.image.content.mode == "RGB" and last.image.content.getpixel((0, 0)) == (200, 200, 200)
    assert (loader.repeated, loader.skipped) == (0, [])


def test_default_id_is_the_path_of_a_file_or_the_start_of_the_digest(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    picture = PILImage.new("L", (6, 3), 77)
    groups, _ = load([as_image(tmp_path / "a.png"), as_image(picture)])
    file, in_memory = groups[0]
    assert file.id == file.source == str(tmp_path / "a.png")
    assert in_memory.id == in_memory.digest[:16] and in_memory.source == "<PIL image>"
    assert in_memory.digest == digest(picture) and (in_memory.width, in_memory.height) == (6, 3)


def test_broken_images_are_all_named_even_if_they_are_equal(tmp_path: Path) -> None:
    broken = [Image(b"", f"empty {n}") for n in range(2)]
    cut = [Image(png(1)[:50], f"cut {n}") for n in range(2)]
    missing = as_image(tmp_path / "none.png")
    groups, loader = load([*broken, *images(1), *cut, *images(2), missing], size=10)
    assert ids(groups) == [["1", "2"]] and loader.repeated == 0
    # Images that cannot be read come before images that cannot be decoded.
    assert loader.skipped[0] == Skipped(str(tmp_path / "none.png"), "no such file")
    assert [one.source for one in loader.skipped[1:]] == ["empty 0", "empty 1", "cut 0", "cut 1"]
    assert all("damaged PNG" in one.reason for one in loader.skipped[3:])


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_only_the_images_asked_for_are_decoded(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    real = loader_module.decode_with_exif
    monkeypatch.setattr(
        loader_module, "decode_with_exif", lambda image: (decoded.append(image.source), real(image))[1]
    )
    known = {digest(png(2)), digest(png(5))}
    read, made = [], []
    with Loader(iter(images(1, 2, 3, 4, 5)), size) as loader:
        for batch in loader:
            read += [one.id for one in batch]
            for group in loader.decoded([one for one in batch if one.digest not in known]):
                made += [one.id for one in group]
    assert sorted(decoded) == ["source 1", "source 3", "source 4"] and loader.repeated == 0
    assert read == ["1", "2", "3", "4", "5"] and made == ["1", "3", "4"]


def test_equal_images_of_a_batch_are_decoded_once() -> None:
    groups, loader = load(images(1, 2, 1, 1, 3), size=5)
    assert ids(groups) == [["1", "2", "3"]] and loader.repeated == 2


def test_large_images_come_in_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_PIXELS_AT_ONCE", 200)
    records = [Image(png(n, (side, side)), f"{n}", id=f"{n}") for n, side in enumerate([10, 10, 1, 20, 5, 5])]
    groups, _ = load(records, size=6)
    assert ids(groups) == [["0", "1"], ["2"], ["3"], ["4", "5"]]


def test_decoded_image_is_the_hashed_one_if_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(1))
    with Loader(iter([as_image(file)]), 4) as loader:
        batch = next(iter(loader))
        file.write_bytes(png(250))
        ((one,),) = loader.decoded(batch)
    assert one.image is not None and isinstance(one.image.content, PILImage.Image)
    assert one.digest == digest(png(1)) and one.image.content.getpixel((0, 0)) == (1, 1, 1)


def test_interrupt_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), Loader(iter(images(*range(50))), 10) as loader:
        next(iter(loader))
        raise KeyboardInterrupt
    assert set(threading.enumerate()) <= before


def test_lazily_opened_image_given_twice_is_read_by_one_thread(tmp_path: Path) -> None:
    PILImage.effect_noise((300, 300), 80).save(tmp_path / "noise.jpg")
    for _ in range(4):
        with PILImage.open(tmp_path / "noise.jpg") as lazy:
            groups, loader = load([as_image(lazy)] * 8, size=8)
        assert len(groups[0]) == 1 and loader.repeated == 7 and loader.skipped == []

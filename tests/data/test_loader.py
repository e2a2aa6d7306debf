from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as PILImage

from zsqretrieval.data import loader as intake_module
from zsqretrieval.data.images import as_image, digest
from zsqretrieval.data.loader import Arrival, Intake, Skipped
from zsqretrieval.errors import IntegrityError
from zsqretrieval.types import Image


def png(grey: int, side: int = 4) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("L", (side, side), grey).save(buffer, "PNG")
    return buffer.getvalue()


def images(*greys: int) -> list[Image]:
    return [Image(png(grey), f"source {grey}", id=str(grey)) for grey in greys]


def take(
    records: list[Image], size: int = 4, known: tuple[str, ...] = ()
) -> tuple[list[list[Arrival]], Intake]:
    with Intake(iter(records), size, lambda digests: set(known) & set(digests)) as intake:
        return [arrivals for _, arrivals in intake], intake


def ids(groups: list[list[Arrival]]) -> list[list[str]]:
    return [[one.label.id for one in group] for group in groups]


def test_order_is_kept_and_everything_is_written_down() -> None:
    described = Image(png(200, 5), "web", caption="grey", metadata={"n": 1})
    groups, intake = take([*images(*range(9)), described])
    assert ids(groups)[:2] == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    last = groups[2][1]
    label = last.label
    assert (label.source, label.caption, label.metadata) == ("web", "grey", {"n": 1})
    assert last.bytes == len(png(200, 5)) and label.digest == digest(png(200, 5))
    assert label.id == label.digest[:16]
    assert last.pixels.mode == "RGB" and last.pixels.size == (5, 5)
    assert last.pixels.getpixel((0, 0)) == (200, 200, 200)
    assert (intake.repeated, intake.skipped) == (0, [])


def test_a_file_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    groups, _ = take([as_image(tmp_path / "a.png"), as_image(PILImage.new("RGB", (2, 2)))])
    file, in_memory = (one.label for one in groups[0])
    assert file.id == file.source == str(tmp_path / "a.png")
    assert in_memory.id == in_memory.digest[:16] and in_memory.source == "<PIL image>"


def test_the_broken_are_named_even_when_they_are_alike(tmp_path: Path) -> None:
    broken = [Image(b"", f"empty {n}") for n in range(2)]
    cut = [Image(png(1)[:50], f"cut {n}") for n in range(2)]
    missing = as_image(tmp_path / "none.png")
    groups, intake = take([*broken, *images(1), *cut, *images(2), missing], size=10)
    assert ids(groups) == [["1", "2"]] and intake.repeated == 0
    # Those that cannot be read come before those that cannot be decoded.
    assert intake.skipped[0] == Skipped(str(tmp_path / "none.png"), "no such file")
    assert [one.source for one in intake.skipped[1:]] == ["empty 0", "empty 1", "cut 0", "cut 1"]
    assert all("damaged PNG" in one.reason for one in intake.skipped[3:])


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_the_known_are_named_and_not_decoded(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    real = intake_module.decode
    monkeypatch.setattr(intake_module, "decode", lambda image: (decoded.append(image.source), real(image))[1])
    known = {digest(png(2)), digest(png(5))}
    with Intake(iter(images(1, 2, 3, 4, 5)), size, known.intersection) as intake:
        taken = [([label.id for label in labels], ids([arrivals])[0]) for labels, arrivals in intake]
    assert sorted(decoded) == ["source 1", "source 3", "source 4"] and intake.repeated == 0
    assert [id for labels, _ in taken for id in labels] == ["2", "5"], "named, each once"
    assert [id for _, arrivals in taken for id in arrivals] == ["1", "3", "4"]


def test_one_batch_holds_an_image_once() -> None:
    groups, intake = take(images(1, 2, 1, 1, 3), size=5)
    assert ids(groups) == [["1", "2", "3"]] and intake.repeated == 2


def test_large_images_come_in_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_PIXELS_AT_ONCE", 200)
    records = [Image(png(n, side), f"{n}", id=f"{n}") for n, side in enumerate([10, 10, 1, 20, 5, 5])]
    groups, _ = take(records, size=6)
    assert ids(groups) == [["0", "1"], ["2"], ["3"], ["4", "5"]]


def test_what_is_hashed_is_what_is_decoded(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(1))

    def changed_meanwhile(digests: list[str]) -> set[str]:
        file.write_bytes(png(250))
        return set()

    with Intake(iter([as_image(file)]), 4, changed_meanwhile) as intake:
        _, (arrival,) = next(iter(intake))
    assert arrival.label.digest == digest(png(1)) and arrival.pixels.getpixel((0, 0)) == (1, 1, 1)


def test_an_error_of_the_source_comes_after_what_came_before_it() -> None:
    def source() -> Iterator[Image]:
        yield from images(1, 2, 3)
        raise IntegrityError("a damaged tar")

    taken: list[str] = []
    with Intake(source(), 2, lambda digests: set()) as intake, pytest.raises(IntegrityError, match="damaged"):
        for _, group in intake:
            taken += [one.label.id for one in group]
    assert taken == ["1", "2", "3"]


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Intake(iter(images(*range(50))), 10, lambda _: set()) as intake:
        next(iter(intake))
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_nothing_in_nothing_out() -> None:
    groups, intake = take([])
    assert groups == [] and intake.repeated == 0 and intake.skipped == []


def test_a_lazily_opened_image_given_twice_is_read_by_one_thread(tmp_path: Path) -> None:
    PILImage.effect_noise((300, 300), 80).save(tmp_path / "noise.jpg")
    for _ in range(10):
        with PILImage.open(tmp_path / "noise.jpg") as lazy:
            groups, intake = take([as_image(lazy)] * 8, size=8)
        assert len(groups[0]) == 1 and intake.repeated == 7 and intake.skipped == []

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from zsqretrieval import plugins
from zsqretrieval.album.features import read_facts
from zsqretrieval.album.info import describe_album
from zsqretrieval.errors import AlbumError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import Image


def test_index_is_unsaved_then_up_to_date_then_behind(tmp_path: Path) -> None:
    encoder = ToyEncoder()
    with Retriever(encoder, path=tmp_path / "album") as retriever:
        retriever.add(PILImage.new("RGB", (9, 9), "red"))
        unsaved = describe_album(tmp_path / "album")
        assert (unsaved.images, unsaved.index["saved"], unsaved.index["up_to_date"]) == (1, False, False)
        assert unsaved.generator is None and unsaved.states == () and unsaved.questions == ()
        assert unsaved.bytes_on_disk["states"] == unsaved.bytes_on_disk["index"] == 0
        retriever.save()
        assert describe_album(tmp_path / "album").index["up_to_date"]
        retriever.add(PILImage.new("RGB", (9, 9), "blue"))
        behind = describe_album(tmp_path / "album")
    assert (behind.images, behind.index["saved"], behind.index["up_to_date"]) == (2, True, False)
    assert behind.index["plugin"] == "compressed" and "probe" in behind.index["config"]
    fingerprint = encoder.fingerprint
    assert behind.encoder == {"plugin": None, "config": None, "dim": encoder.dim, "fingerprint": fingerprint}
    on_disk = sum(file.stat().st_size for file in (tmp_path / "album").rglob("index-*/*"))
    assert behind.bytes_on_disk["index"] == on_disk > 0
    json.dumps(asdict(behind))


class Seer(ToyGenerator):
    """Makes states, and has a name of its own."""

    state_shape, state_dtype, config = (3, 2), np.dtype(np.float16), {"glasses": 2}

    def __init__(self, name: str) -> None:
        super().__init__()
        self.fingerprint = name  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Seer:
        raise AssertionError("describing an album must not make a generator")

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> np.ndarray:
        return np.zeros((len(images), 3, 2), np.float16)


def test_generator_and_cached_features_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    album = tmp_path / "album"
    real = plugins.name_of
    monkeypatch.setattr(
        plugins, "name_of", lambda kind, part: "seer" if isinstance(part, Seer) else real(kind, part)
    )
    with Retriever(ToyEncoder(), generator=Seer("first"), states="disk", path=album) as retriever:
        retriever.add(PILImage.new("RGB", (9, 9), "red"))
        retriever.add([PILImage.new("RGB", (9, 9), colour) for colour in ("blue", "green")])
        assert len(list(album.rglob("*.safetensors"))) == 2
        info = describe_album(album)
        assert info.generator == {"plugin": "seer", "config": {"glasses": 2}, "states": "disk"}
        (before,) = info.states
        assert (before["fingerprint"], before["dtype"], before["images"]) == ("first", "float16", 3)
        retriever.remove([next(retriever.records()).id])
        (after,) = describe_album(album).states
        assert after == {**before, "images": 2}, "features of a removed image take space until a save"
    with Retriever.open(album, encoder=ToyEncoder(), generator=Seer("second"), states="disk") as retriever:
        retriever.add(PILImage.new("RGB", (9, 9), "white"))
    (torn, *_) = [file for file in album.rglob("*.safetensors") if b"second" in file.read_bytes()]
    both = describe_album(album)
    assert {one["fingerprint"]: one["images"] for one in both.states} == {"first": 2, "second": 1}
    on_disk = sum(file.stat().st_size for file in album.rglob("states-*/*"))
    assert sum(one["bytes_on_disk"] for one in both.states) == both.bytes_on_disk["states"] == on_disk
    torn.write_bytes(torn.read_bytes()[:40])
    assert [one["fingerprint"] for one in describe_album(album).states] == ["first"]
    json.dumps(asdict(both))


def test_save_deletes_features_of_removed_images_though_none_were_used(tmp_path: Path) -> None:
    album = tmp_path / "album"
    with Retriever(ToyEncoder(), generator=Seer("first"), states="disk", path=album) as retriever:
        retriever.add([PILImage.new("RGB", (9, 9), colour) for colour in ("red", "blue", "green")])
        red, blue, green = (one.id for one in retriever.records())
    with Retriever.open(album, encoder=ToyEncoder(), generator=Seer("second")) as retriever:
        retriever.remove([red, blue])
        retriever.save()
        (kept,) = retriever.records()
    (file,) = album.glob("states-*/*.safetensors")
    assert kept.id == green and list(read_facts(file)["crc32"]) == [kept.digest]


def test_questions_are_counted_by_style(tmp_path: Path) -> None:
    album = tmp_path / "album"
    with Retriever(ToyEncoder(), ExactIndex(ToyEncoder.dim), ToyGenerator(), path=album) as retriever:
        PILImage.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
        retriever.add(tmp_path / "red.png")
        assert describe_album(album).questions == ()
        report = retriever.questions.generate(2, style="captions", top_k=None)
        (counts,) = describe_album(album).questions
        expected = {"images": 1, "questions": report.questions, "kept": report.kept, "answered": 0}
        assert counts == {"style": "captions", **expected} and report.kept > 0
        retriever.save()
    info = describe_album(album)
    files = [*album.rglob("index-*/*"), *album.rglob("questions-*/*")]
    assert len({file.parent for file in files}) == 2
    assert info.bytes_on_disk["index"] == sum(file.stat().st_size for file in files)
    json.dumps(asdict(info))


def test_folder_without_an_album_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AlbumError, match="not an album"):
        describe_album(tmp_path)

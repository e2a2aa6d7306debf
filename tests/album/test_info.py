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
from zsqretrieval.album.info import GeneratorFacts, describe_album
from zsqretrieval.album.questions import StyleFacts
from zsqretrieval.errors import AlbumError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import Image


def test_it_tells_what_a_directory_holds_and_whether_the_index_is_behind(tmp_path: Path) -> None:
    encoder = ToyEncoder()
    with Retriever(encoder, path=tmp_path / "album") as retriever:
        retriever.add(PILImage.new("RGB", (9, 9), "red"))
        unsaved = describe_album(tmp_path / "album")
        assert (unsaved.images, unsaved.index.saved, unsaved.index.up_to_date) == (1, False, False)
        retriever.save()
        assert describe_album(tmp_path / "album").index.up_to_date
        retriever.add(PILImage.new("RGB", (9, 9), "blue"))
        behind = describe_album(tmp_path / "album")
    assert (behind.images, behind.index.saved, behind.index.up_to_date) == (2, True, False)
    assert (behind.index.plugin, behind.encoder.plugin) == ("hnsw", None)
    assert (behind.encoder.dim, behind.encoder.fingerprint) == (encoder.dim, encoder.fingerprint)
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
        raise AssertionError("nobody was to make one")

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> np.ndarray:
        return np.zeros((len(images), 3, 2), np.float16)


def test_generator_and_states_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    album = tmp_path / "album"
    real = plugins.name_of
    monkeypatch.setattr(
        plugins, "name_of", lambda kind, part: "seer" if isinstance(part, Seer) else real(kind, part)
    )
    with Retriever(ToyEncoder(), generator=Seer("first"), states="disk", path=album) as retriever:
        retriever.add(PILImage.new("RGB", (9, 9), "red"))
        retriever.add([PILImage.new("RGB", (9, 9), colour) for colour in ("blue", "green")])
        assert len(list(album.rglob("*.states"))) == 2
        facts = describe_album(album)
        assert facts.generator == GeneratorFacts("seer", {"glasses": 2}, "disk")
        (first,) = facts.states
        assert (first.fingerprint, first.dtype, first.images) == ("first", "float16", 3)
        retriever.remove([next(retriever.records()).id])
        (first,) = describe_album(album).states
        assert first.images == 2, "the state of an image that is gone counts no more, though it takes space"
        assert first.bytes_on_disk == facts.states[0].bytes_on_disk
    with Retriever.load(album, encoder=ToyEncoder(), generator=Seer("second"), states="disk") as retriever:
        retriever.add(PILImage.new("RGB", (9, 9), "white"))
    (torn, *_) = [file for file in album.rglob("*.states") if b"second" in file.read_bytes()]
    both = describe_album(album)
    assert {one.fingerprint: one.images for one in both.states} == {"first": 2, "second": 1}
    on_disk = sum(file.stat().st_size for file in album.rglob("states-*/*"))
    assert sum(one.bytes_on_disk for one in both.states) == both.bytes_on_disk["states"] == on_disk
    torn.write_bytes(torn.read_bytes()[:40])
    assert [one.fingerprint for one in describe_album(album).states] == ["first"]
    json.dumps(asdict(both))


def test_questions_are_told_by_style(tmp_path: Path) -> None:
    album = tmp_path / "album"
    with Retriever(ToyEncoder(), ExactIndex(ToyEncoder.dim), ToyGenerator(), path=album) as retriever:
        PILImage.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
        retriever.add(tmp_path / "red.png")
        assert describe_album(album).questions == ()
        report = retriever.generate_questions(2, style="captions", top_k=None)
        facts = describe_album(album)
        assert facts.questions == (StyleFacts("captions", 1, report.questions, report.kept, 0),)
        assert report.kept > 0
        retriever.save()
    facts = describe_album(album)
    files = [*album.rglob("index-*/*"), *album.rglob("questions-*/*")]
    assert len({file.parent for file in files}) == 2
    assert facts.bytes_on_disk["index"] == sum(file.stat().st_size for file in files)
    json.dumps(asdict(facts))


def test_without_a_generator_none_is_told(tmp_path: Path) -> None:
    Retriever(ToyEncoder(), path=tmp_path / "album").close()
    facts = describe_album(tmp_path / "album")
    assert facts.generator is None and facts.states == () and facts.bytes_on_disk["states"] == 0


def test_a_folder_that_is_no_album_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AlbumError, match="not an album"):
        describe_album(tmp_path)

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image as PILImage

from zsqretrieval.album import describe_album
from zsqretrieval.errors import AlbumError
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder


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


def test_a_folder_that_is_no_album_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AlbumError, match="not an album"):
        describe_album(tmp_path)

"""Albums with a compressed index: tuning, and damage that is found in the middle of a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_data import vectors
from zsqretrieval import Retriever
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes import rows
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.testing import ToyEncoder

_N = 3000
ENCODER = ToyEncoder()
VECTORS = vectors(_N, ENCODER.dim)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    index = CompressedIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint, threads=1)
    with Retriever(ENCODER, index, path=tmp_path / "album") as made:
        ids = [f"{n}.jpg" for n in range(_N)]
        made.add_embeddings(VECTORS, ids=ids, captions=[f"caption {n}" for n in range(_N)])
        made.save()
    return tmp_path / "album"


def test_damage_found_by_a_search_rebuilds_the_index(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_WHOLE_BYTES", 0)  # else it is found by loading
    (file,) = album.glob("index-*/vectors-*.bin")
    file.write_bytes(bytes(file.stat().st_size))
    with Retriever.open(album, encoder=ENCODER) as opened:
        with pytest.warns(RuntimeWarning, match=r"rebuilt from the catalog.*vectors-\w+\.bin is damaged"):
            found = opened.search("red", k=5)
        assert len(found.hits) == 5
        again = opened.search("red", k=5)
        assert [hit.id for hit in again.hits] == [hit.id for hit in found.hits]
        exact = ExactIndex(ENCODER.dim)
        exact.add(np.arange(_N), VECTORS)
        best = exact.search(ENCODER.encode_text(["red"]), 1).keys[0, 0]
        assert found.hits[0].id == f"{best}.jpg"
        opened.save()
    with Retriever.open(album, encoder=ENCODER) as opened:
        assert opened.search("red", k=1).hits[0].id == found.hits[0].id  # without a warning


def test_tuned_settings_are_those_of_the_opened_album(album: Path) -> None:
    with Retriever.open(album, encoder=ENCODER) as opened:
        tuning = opened.tune(["red", "blue", "something green"], recall=0.9, k=5)
        assert tuning.reached and tuning.chosen is not None
        assert opened.tune(recall=0.9).reached  # with captions
        chosen = opened.index.config
        opened.save()
    with Retriever.open(album, encoder=ENCODER) as opened:
        opened.search("red")
        assert opened.index.config == chosen


def test_tuning_an_index_that_cannot_be_or_without_texts_is_refused() -> None:
    with (
        Retriever(ENCODER, ExactIndex(ENCODER.dim)) as exact,
        pytest.raises(InvalidInputError, match="a ExactIndex is not tuned by measuring"),
    ):
        exact.tune(["red"])
    index = CompressedIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint)
    with Retriever(ENCODER, index) as empty, pytest.raises(InvalidInputError, match="give texts"):
        empty.tune()

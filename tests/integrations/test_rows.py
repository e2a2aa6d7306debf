"""Rows of Hugging Face datasets, pandas and pyarrow are images with metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder

NAMES = ("red", "green", "blue")


def added(rows: Any) -> dict[str, tuple[str | None, dict[str, Any]]]:
    """Caption and metadata of what a search for each colour finds, and progress with the total."""
    seen: list[tuple[int, int | None]] = []
    with Retriever(ToyEncoder()) as retriever:
        report = retriever.add(rows, batch_size=2, progress=lambda _, done, total: seen.append((done, total)))
        assert (len(report.added), report.skipped, seen[-1]) == (3, (), (3, 3))
        found = {name: retriever.search(name, 1)[0] for name in NAMES}
        return {name: (hit.caption, dict(hit.metadata)) for name, hit in found.items()}


EXPECTED = {name: (f"a {name} wall", {"year": 2000 + n}) for n, name in enumerate(NAMES)}


def columns(images: list[Any]) -> dict[str, list[Any]]:
    years = [2000, 2001, 2002]
    return {"image": images, "caption": [f"a {name} wall" for name in NAMES], "year": years}


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("embedded", [True, False])
def test_rows_of_datasets_are_images(folder: Path, decode: bool, embedded: bool) -> None:
    datasets = pytest.importorskip("datasets")
    paths = [folder / f"{name}.png" for name in NAMES]
    images = [{"bytes": one.read_bytes(), "path": None} if embedded else str(one) for one in paths]
    rows = datasets.Dataset.from_dict(columns(images)).cast_column("image", datasets.Image(decode=decode))
    assert added(rows) == EXPECTED


def test_rows_of_pandas_and_pyarrow_are_images(folder: Path) -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    paths = columns([str(folder / f"{name}.png") for name in NAMES])
    structs = columns([{"bytes": (folder / f"{name}.png").read_bytes(), "path": name} for name in NAMES])
    assert added(pandas.DataFrame(paths).to_dict("records")) == EXPECTED
    assert added(pyarrow.table(structs).to_pylist()) == EXPECTED
    with Retriever(ToyEncoder()) as retriever:
        for table in (pandas.DataFrame(paths), pyarrow.table(paths)):
            with pytest.raises(InvalidInputError, match=r"not a list of rows; give table\.to_dict"):
                retriever.add(table)

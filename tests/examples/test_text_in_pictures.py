"""The example of docs/filters.md with a program that "reads" the name of a picture's colour."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from plain import write_plain
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder

OCR = "import sys, pathlib; print('An INVOICE\\nof ' + pathlib.Path(sys.argv[1]).stem)"


def test_pictures_are_found_by_their_text(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_plain(tmp_path / "Pictures", ("red", "green", "blue"), (40, 30))
    monkeypatch.setattr(
        Retriever, "from_preset", lambda _: Retriever(ToyEncoder(), ExactIndex(ToyEncoder.dim))
    )
    ocr = shlex.join([sys.executable, "-c", OCR, "{}"])
    options = ["--contains", "Invoice of R", "--ocr", ocr]
    monkeypatch.setattr(sys, "argv", ["text_in_pictures", str(folder), "red", *options])
    script("text_in_pictures").main()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[1:] == ["red.png", "an", "invoice", "of", "red"]

"""The output in docs/questions.md runs with toys, and the page shows its output."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from benchmarks import ask_photographs
from zsqretrieval.data.samples import photographs
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.presets import PRESETS, Preset
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator

COUNT = len(photographs())


def shape_of(text: str) -> list[str]:
    """Lines that do not depend on the models: heads of tables, and the explained question."""
    return [line for line in text.splitlines() if line.startswith(("| image", "| searched", "Explained for"))]


def test_page_has_the_lines_that_the_benchmark_prints(
    shown: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(preset: Preset, **settings: Any) -> Retriever:
        assert (preset, settings) == (PRESETS["mini"].variant(index="exact"), {})
        return Retriever(ToyEncoder(), ExactIndex(ToyEncoder.dim), ToyGenerator())

    monkeypatch.setattr(Retriever, "from_preset", make)
    monkeypatch.setattr(sys, "argv", ["ask_photographs", "--top-k", str(COUNT)])
    ask_photographs.main()
    printed = capsys.readouterr().out
    first = re.match(rf"(\d+) questions of {COUNT} photographs, (\d+) kept \(`top_k={COUNT}`\)\.", printed)
    assert first is not None and int(first[1]) == int(first[2]) > COUNT, "all find their image among all"
    page = shown("questions.md", "ask_photographs")
    assert shape_of(printed) == shape_of(page) and len(shape_of(page)) == 4
    assert printed.count("\n|") == ask_photographs.SHOWN + 3 + 3 + 3 * 2, (
        "a line for each, and two heads of each table"
    )

"""The table of docs/rerank.md runs with toys, and the page shows its output."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import query_banks
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator


def banks_of(table: str) -> list[str]:
    """The first column, without the numbers that depend on the models."""
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]


def test_page_has_the_rows_that_the_benchmark_prints(
    shown: Any,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    toys: dict[str, Any] = {"encoder": ToyEncoder(), "generator": ToyGenerator()}
    monkeypatch.setattr(query_banks.plugins, "create", lambda kind, name, config: toys[kind])
    command = ["query_banks", "--data", str(data), "--work", str(tmp_path), "--questions", "2"]
    monkeypatch.setattr(sys, "argv", command)
    query_banks.main()
    printed = capsys.readouterr().out
    page = banks_of(shown("rerank.md", "query_banks"))
    assert banks_of(printed) == page and len(page) == 3 + 6 + 4
    none, *rows = [line.split("|") for line in printed.splitlines()[2:]]
    assert none[3].strip() == "87.5", "one colour has a name that the encoder does not know"
    assert all(re.fullmatch(r" \d+\.\d \([+-].* to .*\) ", row[3]) for row in rows)


def test_gain_of_a_bank_equals_the_count_by_hand() -> None:
    gallery = np.eye(3, dtype=np.float32)
    asked = np.array([[0.9, 0.8, 0], [0.9, 0.8, 0], [0, 0, 1]], np.float32)
    answers = np.array([0, 1, 2])
    bank = QueryBank(gallery[:1], "e", 20.0, 0.5)  # hubness 1, 0, 0
    assert query_banks.recall(asked @ gallery.T, answers).tolist() == [100, 0, 100]
    assert query_banks.cell(bank, gallery, asked @ gallery.T, answers).startswith("66.7 (+0.0, ")
    tied = np.zeros((1, 3))
    assert query_banks.recall(tied, np.array([0])).tolist() == [0], "a tie is a miss"

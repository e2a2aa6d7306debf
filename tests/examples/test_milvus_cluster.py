"""The example of docs/milvus.md runs, and finds what an exact search finds."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from milvus_servers import needs_milvus

pytestmark = needs_milvus


def test_example_runs_embedded(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--rows", "600", "--dim", "128", "--queries", "60", "--index", "IVF_SQ8"]
    monkeypatch.setattr(sys, "argv", ["milvus_cluster.py", *given])
    script("milvus_cluster").main()
    found = re.search(r"recall@10 ([\d.]+), with the filter ([\d.]+)", capsys.readouterr().out)
    assert found is not None and min(map(float, found.groups())) >= 0.95

"""The example of LAION goes its whole way."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from zsqretrieval.data.samples import photographs


def test_slice_is_embedded_filtered_searched_and_removed(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["laion_slice.py", "--work", str(tmp_path / "slice")])
    script("laion_slice").run()
    out = capsys.readouterr().out
    assert f"{len(photographs()) - 2} rows added, denied: {{'unsafe': 1, 'unknown': 1}}" in out
    assert re.search(r"4. 'a cat': cat\w* \(0", out)
    assert "removed 1; a search finds 0 of it" in out
    assert re.search(
        r"added again: 0, denied: \{'removed': 1, 'unsafe': 1, 'unknown': 1\}|denied: .*'removed': 1", out
    )

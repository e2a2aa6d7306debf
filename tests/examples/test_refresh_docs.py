"""The command that puts the output of commands into pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest


def test_refresh_docs_replaces_the_output_of_a_page(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = script("refresh_docs").main
    page = tmp_path / "page.md"
    around = "before\n<!-- output of: python -c 'print(6 * 7)' -->\n{}<!-- end of output -->\nafter ü\n"
    page.write_text(around.format("old\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["refresh_docs", str(page)])
    main()
    assert page.read_text(encoding="utf-8") == around.format("\n42\n\n")
    main()
    assert page.read_text(encoding="utf-8") == around.format("\n42\n\n")
    broken = around.format("old\n").replace("print(6 * 7)", "raise SystemExit(1)")
    page.write_text(broken, encoding="utf-8")
    with pytest.raises(Exception, match="non-zero exit status 1"):
        main()
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
    assert page.read_text(encoding="utf-8") == broken

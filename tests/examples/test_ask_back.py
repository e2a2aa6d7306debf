"""The example of a search that asks back, as it stands, with the mini models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def test_it_asks_about_every_photograph_that_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "ask_back.py"
    spec = importlib.util.spec_from_file_location("ask_back", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    dialogs = [one for one in capsys.readouterr().out.split("**") if " is meant: " in one]
    assert len(dialogs) == len(module.MEANT)
    for wanted, dialog in zip(module.MEANT, dialogs, strict=True):
        assert f"the {wanted} is meant: " in dialog
        assert 1 <= dialog.count("\n1. *") <= 4 and "?* " in dialog
        assert "Stopped: " in dialog

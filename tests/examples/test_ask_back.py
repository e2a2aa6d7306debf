"""The example of clarifying dialogs, with the mini models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def test_example_prints_a_dialog_for_every_target_image(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "ask_back.py"
    spec = importlib.util.spec_from_file_location("ask_back", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    dialogs = [one for one in capsys.readouterr().out.split("**") if ", target image " in one]
    assert len(dialogs) == len(module.TARGETS)
    for target, dialog in zip(module.TARGETS, dialogs, strict=True):
        assert f", target image {target}: " in dialog
        assert 1 <= dialog.count("\n1. *") <= 4 and "?* " in dialog
        assert "Stopped: " in dialog

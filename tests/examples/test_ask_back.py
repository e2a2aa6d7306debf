"""The example of clarifying dialogs, with the mini models."""

from __future__ import annotations

from typing import Any

import pytest


def test_example_prints_a_dialog_for_every_target_image(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("ask_back")
    monkeypatch.setattr(module, "TARGETS", dict(list(module.TARGETS.items())[:2]))  # of three
    module.main()
    dialogs = [one for one in capsys.readouterr().out.split("**") if ", target image " in one]
    assert len(dialogs) == len(module.TARGETS)
    for target, dialog in zip(module.TARGETS, dialogs, strict=True):
        assert f", target image {target}: " in dialog
        assert 1 <= dialog.count("\n1. *") <= 4 and "?* " in dialog
        assert "Stopped: " in dialog

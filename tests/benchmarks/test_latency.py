"""The benchmark of the first question, small."""

from __future__ import annotations

import json

import pytest

from benchmarks import latency


def test_time_of_each_command_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(latency._COMMANDS, "re-ranked")
    latency.main(["--images", "2", "--rounds", "1", "--json"])
    commands = json.loads(capsys.readouterr().out)["commands"]
    assert set(commands) == {"import torch", "first stage"}
    assert all(one["cpu_s"]["median"] > 0 < one["wall_s"]["least"] for one in commands.values())
    assert commands["first stage"]["cpu_s"]["median"] > commands["import torch"]["cpu_s"]["median"]

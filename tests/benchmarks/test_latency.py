"""The benchmark of the first question, small."""

from __future__ import annotations

import json

import pytest

from benchmarks import latency


def test_time_of_each_command_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = {"import": ("-c", "import zsqretrieval"), "first stage": latency._COMMANDS["first stage"]}
    monkeypatch.setattr(latency, "_COMMANDS", commands)
    latency.main(["--images", "2", "--rounds", "1", "--json"])
    times = json.loads(capsys.readouterr().out)["commands"]
    assert set(times) == set(commands)
    assert all(one["cpu_s"]["median"] > 0 < one["wall_s"]["least"] for one in times.values())
    assert times["first stage"]["cpu_s"]["median"] > times["import"]["cpu_s"]["median"]

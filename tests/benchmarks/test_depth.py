"""The benchmark of adaptive depth, with toys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from benchmarks.depth import main
from refusing import refused
from seeing import Seeing
from zsqretrieval import plugins
from zsqretrieval.presets import PRESETS, Calibration, Preset
from zsqretrieval.search.fusion import WeightedSum
from zsqretrieval.testing.toys import ToyEncoder


class Colours(ToyEncoder):
    """A toy encoder as a plugin."""

    config: dict[str, Any] = {}  # noqa: RUF012

    @classmethod
    def from_config(cls, config: Any) -> Colours:
        return cls()


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A data set of 40 colours, and a preset of toys."""
    folder = tmp_path / "colours"
    folder.mkdir()
    lines = []
    for n, colour in enumerate(np.random.default_rng(1).integers(0, 256, (40, 3), np.uint8)):
        PILImage.new("RGB", (4, 4), tuple(colour.tolist())).save(folder / f"{n:02}.png")
        name = ("red", "green", "blue")[int(colour.argmax())]
        lines.append(json.dumps({"image": f"{n:02}.png", "caption": f"{name} number {n}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    monkeypatch.setitem(plugins._registered["encoder"], "colours", Colours)
    monkeypatch.setitem(plugins._registered["generator"], "seeing", Seeing)
    calibration = Calibration(fusion=WeightedSum(1.0, scale="raw", first_stage_scale=10.0))
    preset = Preset("colours", index="exact", generator="seeing", calibration=calibration)
    monkeypatch.setitem(PRESETS, "colours", preset)  # type: ignore[arg-type]
    where = ["--work", str(tmp_path / "work"), "--preset", "colours"]
    return [f"folder:{folder}", *where, "--queries", "40", "--timed", "2", "--rounds", "1"]


def test_fitted_rule_is_measured_against_fixed_depths(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*arguments, "--fit", "--json", "--risks", "100", "--plot", str(tmp_path / "plot.svg")])
    facts = json.loads(capsys.readouterr().out)
    assert facts["queries"] == 20 and facts["depth"]["deviation"] > 0
    ways = {one["way"]: one for one in facts["ways"]}
    names = ("10", "30", "40", "risk 100")
    assert [ways[name]["candidates"] for name in names] == [10, 30, 40, 16]
    assert ways["40"]["R@10"]["gain"] == 0 and ways["40"]["time_ratio"] == 1
    assert ways["40"]["same"] == 1 and ways["10"]["missing"] > 0
    assert ways["20"]["seconds"] > 0 and (tmp_path / "plot.svg").stat().st_size > 1000
    main([*arguments, "--fit", "--risks", "1"])
    assert "risk 1" in capsys.readouterr().out


def test_preset_without_constants_is_refused(arguments: list[str]) -> None:
    refused("no constants of depth; use --fit", main, arguments)
    refused("no generator with a raw", main, [*arguments, "--preset", "clip"])

"""The benchmark of adding a folder, small."""

from __future__ import annotations

import json

import pytest

from benchmarks import add


@pytest.mark.parametrize("encoder", ["mini", "clip"])
def test_share_of_the_ceiling_is_reported(encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    add.main(["--images", "2", "--rounds", "1", "--batch-size", "2", "--encoder", encoder, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["encoder"]) == (2, encoder)
    assert 0 < facts["of_ceiling"]["cpu"] < 1.5 and facts["add_per_wall_s"] > 0

"""The load test, small."""

from __future__ import annotations

import json

import pytest

from benchmarks import serve


def test_load_is_reported_and_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    serve.main(["--images", "8", "--clients", "4", "--rounds", "1", "--json"])
    facts = json.loads(capsys.readouterr().out)
    for load in ("first stage", "re-ranked"):
        assert facts[load]["statuses"] == {"200": 4 * 7}
        assert facts[load]["lost"] == facts[load]["half_answered"] == facts[load]["streams_with_error"] == 0
        assert all(one["p50"] <= one["p99"] for one in facts[load]["seconds"].values())
    assert facts["ended"]["lost"] == facts["ended"]["half_answered"] == facts["ended"]["exit_code"] == 0
    assert set(facts["ended"]["statuses"]) <= {"200", "429", "503"}
    assert facts["first_paint_s"]["page"] > 0

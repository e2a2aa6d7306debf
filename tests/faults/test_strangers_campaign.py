"""A seeded campaign against albums: each attack ends in an error of the library or the right answer."""

from __future__ import annotations

import sys

import pytest

from fuzzing import fuzz
from strangers import ATTACKS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc")


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ATTACKS)
def test_attacked_album_raises_a_zsq_error_or_answers_as_before(kind: str, count: int) -> None:
    target = f"tests.fuzz.albums:{kind.title()}"
    ran = fuzz("--target", target, "--cases", count, seconds=1800 + 3 * count)  # a busy machine is no fault
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"\n{count} cases in " in ran.stdout

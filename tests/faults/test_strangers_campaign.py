"""A seeded campaign against albums: each attack ends in an error of the library or the right answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from strangers import ATTACKS

GIGABYTES = 4  # of address space, with the libraries

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no limit of memory, no alarm")


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ATTACKS)
def test_attacked_album_raises_a_zsq_error_or_answers_as_before(kind: str, count: int) -> None:
    import resource

    script = Path(__file__).parents[1] / "helpers" / "strangers.py"
    limit = GIGABYTES * 2**30
    ran = subprocess.run(
        [sys.executable, str(script), kind, "0", str(count)],
        capture_output=True,
        text=True,
        timeout=1800 + 3 * count,  # a busy machine is no fault
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert (ran.stdout, ran.returncode) == ("", 0), ran.stdout + ran.stderr

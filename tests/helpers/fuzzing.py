"""Runs of the fuzz job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def fuzz(*arguments: object, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Run ``python -m tests.fuzz``."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *map(str, arguments)],
        capture_output=True, text=True, timeout=seconds, cwd=root, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip

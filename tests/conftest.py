"""Options and settings of the whole test suite."""

from __future__ import annotations

import gc
import os
from functools import cache
from pathlib import Path

import pytest
import typer.testing
from hypothesis import HealthCheck, settings

# Each worker of pytest-xdist would compute on all cores, and has the width of a terminal, though it has none.
# Set before torch is imported.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.pop("COLUMNS", None)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // int(workers), 1)))

# A tenth of the time went into looking for garbage among all that torch and transformers import.
gc.set_threshold(20_000, 20, 20)

# Typer would read the signatures of all commands for each one that a test runs.
typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]

# No deadline: a busy machine is no failure.
settings.register_profile(
    "default", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("slow", settings.get_profile("default"), max_examples=200)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run long variants of tests")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: long variant of a test, run with --slow")
    settings.load_profile("slow" if config.getoption("--slow") else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs --slow"))


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Where an album may be made."""
    return tmp_path / "album"

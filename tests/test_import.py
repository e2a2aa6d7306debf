"""Importing the library is light: what is heavy comes with the first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "open_clip",
    "timm",
    "PIL",
    "hnswlib",
    "tokenizers",
    "skimage",
)


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_library_imports_none_of_its_dependencies() -> None:
    seen = imported_by("import zsqretrieval; zsqretrieval.__version__; dir(zsqretrieval)")
    assert not seen & {*HEAVY, "numpy"}
    assert "zsqretrieval" in seen


@pytest.mark.parametrize("module", ["types", "errors", "protocols", "plugins", "presets"])
def test_the_foundations_import_nothing_heavy(module: str) -> None:
    assert not imported_by(f"import zsqretrieval.{module}") & set(HEAVY)


@pytest.mark.parametrize("module", ["encoders.clip", "encoders.cached", "data.images", "cli.app"])
def test_what_reads_images_imports_no_model_library(module: str) -> None:
    assert not imported_by(f"import zsqretrieval.{module}") & (set(HEAVY) - {"PIL"})


def test_listing_plugins_imports_none_of_them() -> None:
    seen = imported_by("from zsqretrieval.plugins import available; available('encoder'); available('index')")
    assert not seen & set(HEAVY)

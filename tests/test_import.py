"""Importing the library is light: what is heavy comes with the first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    *("torch", "torchvision", "transformers", "open_clip", "timm", "PIL", "hnswlib", "tokenizers", "skimage"),
    *("scipy", "sympy"),
}


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statements", "absent"),
    [
        ("import zsqretrieval; zsqretrieval.__version__; dir(zsqretrieval)", {*HEAVY, "numpy"}),
        (
            "from zsqretrieval import types, errors, protocols, plugins, presets\n"
            "plugins.available('encoder'); plugins.available('index')",
            HEAVY,
        ),
        (
            "import zsqretrieval.encoders.clip, zsqretrieval.encoders.cached, zsqretrieval.data.images\n"
            "import zsqretrieval.cli.app, zsqretrieval.indexes.hnsw, zsqretrieval.testing",
            {*HEAVY, "pytest", "hypothesis"} - {"PIL"},
        ),
        (
            "from zsqretrieval import Retriever; from zsqretrieval.testing import ToyEncoder\n"
            "with Retriever(ToyEncoder()) as r: r.search('red')",
            HEAVY - {"PIL"},
        ),
        (
            "from zsqretrieval.mini.encoder import MiniEncoder\n"
            "from zsqretrieval import Retriever\n"
            "with Retriever(MiniEncoder.from_pretrained()) as r: r.search('red')",
            HEAVY - {"PIL", "torch", "tokenizers"},
        ),
        (
            "from zsqretrieval.mini.generator import MiniGenerator\n"
            "MiniGenerator.from_pretrained().log_likelihood([['a']], ['dog'])",
            HEAVY - {"PIL", "torch", "tokenizers", "transformers"},  # the engine takes its cache from it
        ),
    ],
    ids=["library", "foundations", "doors", "search", "mini search", "mini generator"],
)
def test_heavy_packages_are_not_imported(statements: str, absent: set[str]) -> None:
    seen = imported_by(statements)
    assert not seen & absent and "zsqretrieval" in seen

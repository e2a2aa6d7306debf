"""Without an optional package, the error says how to install it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zsqretrieval._util.optional import import_optional
from zsqretrieval.errors import MissingDependencyError
from zsqretrieval.evaluation.datasets import read_laion
from zsqretrieval.laion.filter import pool_of
from zsqretrieval.laion.safety import Safety
from zsqretrieval.laion.stats import describe
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import ToyEncoder


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: Retriever(ToyEncoder()).export_embeddings(folder / "emb"),
        read_laion,
        lambda _: pool_of([], None),
        lambda _: describe("pool", Safety()),
    ],
)
def test_missing_pyarrow_is_named(
    use: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'zsqretrieval\[parquet\]'"):
        use(tmp_path)


def test_missing_dependency_of_an_installed_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_but_broken.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"'no_such_dependency'.*: pip install both"):
        import_optional("installed_but_broken", "a feature", "pip install both")

"""Packages that only some features need."""

from __future__ import annotations

from pathlib import Path

import pytest

from zsqretrieval._util.optional import import_optional
from zsqretrieval.errors import MissingDependencyError


def test_missing_dependency_of_an_installed_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_but_broken.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"'no_such_dependency'.*: pip install both"):
        import_optional("installed_but_broken", "a feature", "pip install both")

"""What a release states about itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import zsqretrieval

ROOT = Path(__file__).parents[1]


def test_changelog_and_citation_name_the_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert releases[0] == citation["version"] == zsqretrieval.__version__


PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_exist(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert links and [link for link in links if not (path.parent / link).exists()] == []

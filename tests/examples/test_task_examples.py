"""The examples of docs/tasks.md run with any generator, and the page shows their output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from worded import worded
from zsqretrieval import plugins
from zsqretrieval.tasks import read_raven
from zsqretrieval.testing.toys import ToyGenerator

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def make(kind: str, name: str, settings: dict[str, Any]) -> ToyGenerator:
        assert (kind, name, settings) == ("generator", "mini", {})
        return worded(EXAMPLES / "tasks_tour.py")

    def main(name: str, *arguments: object) -> str:
        monkeypatch.setattr(plugins, "create", make)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        script(name).main()
        return capsys.readouterr().out

    return main


def shape_of(text: str) -> list[str]:
    """Titles, table headings and first columns, which do not depend on the generator."""
    return [line.split("|")[1] if line.startswith("|") else line for line in text.splitlines()
            if line.startswith(("**", "|"))]  # fmt: skip


def test_tour_prints_the_shape_of_the_page(run: Any, shown: Any) -> None:
    printed = run("tasks_tour")
    assert "Generator: `toy-generator-1`" in printed
    assert shape_of(printed) == shape_of(shown("tasks.md", "tasks_tour")) != []


def test_raven_test_prints_the_shape_of_the_page_and_saves_items(
    run: Any, shown: Any, tmp_path: Path
) -> None:
    printed = run("raven", "--count", 2, "--save", tmp_path / "kept")
    assert shape_of(printed) == shape_of(shown("tasks.md", "raven")) != []
    assert [len(item.context) for item in read_raven(tmp_path / "kept")] == [3, 3, 4, 4, 8, 8]
    assert run("raven", "--data", tmp_path / "kept") == printed

"""Each example runs at a small size, and prints what it is for."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_kosmos import tiny_kosmos
from tiny_vlms import cross_encoder

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def main(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        script(name).main()
        return capsys.readouterr().out

    return main


def test_every_example_is_in_the_table_and_tells_its_time() -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"]({path.name})" in table
        assert re.search(r"seconds|minute|hour", path.read_text(encoding="utf-8").split('"""')[1]), path.name


def test_quickstart_finds_a_cat_by_both_stages(run: Callable[..., str]) -> None:
    parts = run("quickstart", "a cat on the ground").split("first stage:")[1].split("re-ranked:")
    assert all(part.split()[0].startswith("cat") for part in parts)
    assert "likelihood" in parts[1] and "fused" in parts[1]


def test_two_encoders_are_compared_by_a_sign_test(run: Callable[..., str]) -> None:
    printed = run("compare_two_encoders")
    assert printed.count("| mini ") == 2
    assert re.search(r"first ranks higher \d+ times, the second \d+ times: p = [\d.e-]+ ", printed)


def test_custom_generator_keeps_the_contract_and_finds_colours(run: Callable[..., str]) -> None:
    assert "all checks of the contract pass" in run("custom_generator")


@pytest.mark.parametrize("model", [None, "cross-encoder"])
def test_photographs_are_reranked_by_a_cross_encoder(
    run: Callable[..., str], tmp_path: Path, model: str | None
) -> None:
    options = ["--model", cross_encoder(tmp_path / model)] if model else []
    printed = run("rerank_with_a_cross_encoder", "a cat", "--candidates", 4, *options)
    name = "cross_encoder" if model else "yes_no"
    first, second = re.findall(rf"^(?:first stage|{name}): (.*)$", printed, re.MULTILINE)
    assert {*re.findall(r"[a-z_]{3,}", first)} == {*re.findall(r"[a-z_]{3,}", second)}
    assert "as_cross_encoder: " in printed


def test_kosmos_reranks_with_features_and_captions(run: Callable[..., str], tmp_path: Path) -> None:
    tiny_kosmos().save_pretrained(tmp_path / "kosmos")
    options = ["--weights", tmp_path / "kosmos", "--device", "cpu", "--candidates", 3]
    printed = run("kosmos2_gpu", "a cat", *options)
    assert (
        "from pixels: " in printed and "cached features: " in printed and "caption of the first: " in printed
    )


def test_dialogs_show_a_target_that_is_found_and_one_that_is_not(run: Callable[..., str]) -> None:
    dialogs = run("chat").split("**an animal**")[1:]
    assert [re.findall(r"^(Found|Not found);", one, re.MULTILINE) for one in dialogs] == [
        ["Found"],
        ["Found"],
        ["Not found"],
    ]
    assert all(1 <= one.count("\n1. *") <= 3 for one in dialogs)

"""What MkDocs adds to the pages of the docs; ``mkdocs build --strict`` itself runs in ``.ci/run``."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import zsqretrieval
from zsqretrieval import Field, Filter, Retriever, ZsqError
from zsqretrieval.testing import ToyEncoder, check_encoder

griffe = pytest.importorskip("griffe")
pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "tools"))
book = importlib.import_module("book")
roles = importlib.import_module("roles")
refresh = importlib.import_module("refresh")


@pytest.fixture(scope="module")
def library() -> Any:
    return griffe.load("zsqretrieval", search_paths=[str(ROOT / "src")])


def test_reference_has_every_public_module() -> None:
    found = pkgutil.walk_packages(zsqretrieval.__path__, "zsqretrieval.")
    public = {info.name for info in found if not re.search(r"\._|\.cli\b", info.name)}
    shown = re.findall(r"^::: (\S+)$", "\n".join(book.reference().values()), re.MULTILINE)
    assert sorted(shown) == sorted({"zsqretrieval", *public})


def test_missing_public_name_is_found() -> None:
    known = {name for module in book.modules() for name in book.public_names(module)}
    assert {
        "zsqretrieval.types.Hit",
        "zsqretrieval.types.Hit.scores",
        "zsqretrieval.types.MAX_PIXELS",
    } < known
    assert {"zsqretrieval.retriever.collection.Collection.merge", "zsqretrieval.presets.PRESETS"} < known
    assert book.missing(known) == []
    assert book.missing(known - {"zsqretrieval.types.Hit.scores"}) == ["zsqretrieval.types.Hit.scores"]


@pytest.mark.parametrize(
    ("owner", "docstring", "link"),
    [
        ("types", ":class:`~zsqretrieval.types.Hit`", "[`Hit`][zsqretrieval.types.Hit]"),
        ("types", ":func:`a title <zsqretrieval.types.Hit>`", "[`a title`][zsqretrieval.types.Hit]"),
        ("protocols", ":meth:`Index.search`", "[`Index.search`][zsqretrieval.protocols.Index.search]"),
        ("protocols", ":class:`Image`", "[`Image`][zsqretrieval.types.Image]"),
        (
            "protocols",
            ":func:`zsqretrieval._util.files.atomic_write`",
            "`zsqretrieval._util.files.atomic_write`",
        ),
        ("protocols", ":class:`numpy.ndarray`", "`numpy.ndarray`"),
    ],
)
def test_role_becomes_a_link_if_its_target_is_public(
    library: Any, owner: str, docstring: str, link: str
) -> None:
    assert roles.ROLE.sub(lambda role: roles.link(role, library[owner]), docstring) == link


def test_message_of_an_error_is_found_by_its_text() -> None:
    class Broken(ToyEncoder):
        dim = 3

    patterns = {
        kind: [
            re.sub(r"\\\{.*?\\\}", "(?s:.*)", re.escape(text))
            for found, _, text in book.messages()
            if found == kind and re.search(r"\w{3}", re.sub(r"\{.*?\}", "", text))
        ]
        for kind in ("InvalidInputError", "AlbumError", "ContractError")
    }
    for action in (
        lambda: Filter.parse("year >"),
        lambda: Retriever.open("no/such/album"),
        lambda: Retriever(ToyEncoder()).search("a", k=0),
        lambda: Retriever(ToyEncoder()).add("no such file.jpg"),
        lambda: Field(""),
        lambda: check_encoder(Broken()),
    ):
        with pytest.raises((ZsqError, AssertionError)) as raised:
            action()
        kind, text = raised.type.__name__, str(raised.value)
        assert any(re.fullmatch(pattern, text) for pattern in patterns[kind]), (kind, text)


def test_page_of_commands_has_every_command_and_option() -> None:
    page = book.commands()
    for title in ("zsq index", "zsq search", "zsq laion filter"):
        assert f"## {title}\n" in page
    assert "--min-probability" in page and "\x1b" not in page


@pytest.mark.parametrize(
    ("text", "folder", "page", "found"),
    [
        ("[a](docs/cli.md#keys)", "", "index.md", "[a](cli.md#keys)"),
        ("[a](../README.md#x)", "docs", "cli.md", "[a](index.md#x)"),
        ("[a](CONTRIBUTING.md)", "", "index.md", "[a](contributing.md)"),
        ("[a](../examples/custom_encoder) b", "docs", "cli.md", "a b"),  # nothing in the book
        ("[a](https://example.org) [b](#c)", "docs", "cli.md", "[a](https://example.org) [b](#c)"),
        ("[a](nowhere.md)", "docs", "cli.md", "[a](nowhere.md)"),  # for the strict build to find
        ("![a](performance/index.svg)", "docs", "performance.md", "![a](performance/index.svg)"),
    ],
)
def test_links_of_files_fit_the_book(text: str, folder: str, page: str, found: str) -> None:
    assert book.linked(text, ROOT / folder, page) == found


def test_refresh_replaces_the_output_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    around = "before\n<!-- output of: python -c 'print(6 * 7)' -->\n{}<!-- end of output -->\nafter ü\n"
    page.write_text(around.format("old\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["refresh", str(page)])
    for _ in range(2):
        refresh.main()
        assert page.read_text(encoding="utf-8") == around.format("\n42\n\n")
    broken = around.format("old\n").replace("print(6 * 7)", "raise SystemExit(1)")
    page.write_text(broken, encoding="utf-8")
    with pytest.raises(Exception, match="non-zero exit status 1"):
        refresh.main()
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
    assert page.read_text(encoding="utf-8") == broken

"""What MkDocs adds to the pages of ``docs/``: pages made from the source, and links that fit the book."""

from __future__ import annotations

import ast
import html
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocstrings import Inventory
from typer.testing import CliRunner

import zsqretrieval
from zsqretrieval import errors as zsq_errors
from zsqretrieval.cli import app

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "zsqretrieval"
FRONT = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files beside ``docs/`` that are pages of the book, and their names there."""
TERMINAL = {"COLUMNS": "80", "TERM": "dumb"}

# --- links -------------------------------------------------------------------------------------------------

LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def linked(text: str, folder: Path, page: str) -> str:
    """Links that work on GitHub, relative to ``folder``, as links from ``page``; files outside have none."""

    def replace(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / link[2]))
        if target.is_relative_to(ROOT / "docs"):
            place = target.relative_to(ROOT / "docs").as_posix()
        elif not target.exists():
            return link[0]
        elif (place := FRONT.get(target.name)) is None or target.parent != ROOT:
            return link[1]
        return f"[{link[1]}]({os.path.relpath(place, Path(page).parent)}{link[3] or ''})"

    return LINK.sub(replace, text)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the links of a page fit the book."""
    folder = ROOT if page.file.src_uri in FRONT.values() else (ROOT / "docs" / page.file.src_uri).parent
    return linked(markdown, folder, page.file.src_uri)


# --- the interface -----------------------------------------------------------------------------------------


def modules() -> list[str]:
    """All modules that users may import."""
    found = [path.relative_to(SOURCE.parent).with_suffix("") for path in sorted(SOURCE.rglob("*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in found]
    return [name for name in names if not re.search(r"\._|\.cli\b", name)]


def public_names(module: str) -> Iterator[str]:
    """The public names that a module defines, and those of its classes."""
    path = ROOT / "src" / Path(*module.split("."))
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")

    def names(body: list[ast.stmt], owner: str) -> Iterator[str]:
        for node in body:
            found: list[str] = []
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                found = [node.name]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found = [node.target.id]
            elif isinstance(node, ast.Assign):
                found = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in found:
                if not name.startswith("_"):
                    yield f"{owner}.{name}"
                    if isinstance(node, ast.ClassDef):
                        yield from names(node.body, f"{owner}.{name}")

    yield from names(ast.parse(text).body, module)


def reference() -> dict[str, str]:
    """A page for every package with all of its modules, and the page before them."""
    pages = defaultdict(list)
    for name in modules():
        is_package = (SOURCE.parent / name.replace(".", "/")).is_dir()
        pages[name if is_package else name.rpartition(".")[0]].append(name)
    made = {"reference/index.md": front_door(sorted(pages))}
    for package, names in pages.items():
        inner = [f"::: {name}\n" for name in names if name != package]
        made[f"reference/{package}.md"] = "\n".join([PACKAGE.format(package), *inner])
    return made


PACKAGE = """---
title: {0}
search: {{boost: 0.5}}
---

::: {0}
    options: {{heading_level: 1}}
"""


def front_door(packages: list[str]) -> str:
    """The names of ``import zsqretrieval`` and all packages, with the first lines of their docstrings."""
    roles = griffe.load_extensions(f"{ROOT}/docs/tools/roles.py:Roles")
    library = griffe.load("zsqretrieval", search_paths=[str(SOURCE.parent)], extensions=roles)

    def row(name: str, target: str, found: griffe.Object | griffe.Alias) -> str:
        said = found.docstring.value.strip().splitlines()[0] if found.docstring else ""
        return f"| [`{name}`]{target} | {said} |"

    names = [name for name in zsqretrieval.__all__ if name != "__version__"]
    return FRONT_DOOR.format(
        "\n".join(row(name, f"[{library[name].canonical_path}]", library[name]) for name in names),
        "\n".join(row(name, f"({name}.md)", library[name[13:]]) for name in packages[1:]),
    )


FRONT_DOOR = """# The Python interface

`import zsqretrieval` has these names; import everything else from its module.

| name | |
|---|---|
{}

## All packages

| package | |
|---|---|
| [`zsqretrieval`](zsqretrieval.md) | Errors, types, protocols, presets, plugins. |
{}
"""


def missing(known: set[str]) -> list[str]:
    """The public names that are not among those of a built book."""
    return [name for module in modules() for name in public_names(module) if name not in known]


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a book in which a public name of the library is missing."""
    with (Path(config.site_dir) / "objects.inv").open("rb") as file:
        known = set(Inventory.parse_sphinx(file, domain_filter=["py"]))
    if lacking := missing(known):
        raise PluginError(f"the reference lacks {len(lacking)} names: {', '.join(lacking)}")


# --- commands ----------------------------------------------------------------------------------------------


def commands() -> str:
    """The ``--help`` of every command."""
    texts = [COMMANDS]

    def add(group: typer.Typer, *words: str) -> None:
        for command in group.registered_commands:
            line = [*words, str(command.name)]
            done = CliRunner().invoke(app, [*line, "--help"], prog_name="zsq", env=TERMINAL)
            text = "\n".join(row.rstrip() for row in done.stdout.strip("\n").splitlines())
            texts.append(f"## zsq {' '.join(line)}\n\n```text\n{text}\n```\n")
        for inner in group.registered_groups:
            add(inner.typer_instance, *words, str(inner.name))

    add(app)
    return "\n".join(texts)


COMMANDS = """# All commands

The output of `zsq COMMAND --help`. What the commands are for: [the command line](../cli.md).
"""

# --- messages ----------------------------------------------------------------------------------------------


def said(node: ast.expr) -> str:
    """The text of a message, with the names of its values in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(said, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return said(node.left) + said(node.right)
    value = node.value if isinstance(node, ast.FormattedValue) else node
    return f"{{{value.id if isinstance(value, ast.Name) else '…'}}}"


def messages() -> Iterator[tuple[str, str, str]]:
    """Kind, module and text of every error and warning that the source makes."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            kind = ast.unparse(node.func).rpartition(".")[2]
            texts = list(map(said, node.args))
            if kind == "MissingDependencyError" and len(texts) == 3:
                yield kind, module, f"{texts[1]} needs the package {texts[0]}; install it with: {texts[2]}"
            elif kind == "ImageError" and len(texts) == 2:
                yield kind, module, ": ".join(texts)
            elif kind == "warn" or (kind.endswith("Error") and kind[0].isupper()):
                yield ("RuntimeWarning" if kind == "warn" else kind), module, texts[0]


def errors() -> str:
    """A page of all messages, by kind and part of the library."""
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for kind, module, text in messages():
        if re.search(r"[a-z]{2}.*[a-z]{2}", re.sub(r"\{.*?\}", "", text)):
            found[kind][module.partition(".")[0]].setdefault(text, module)
    lines = [ERRORS]
    for kind in sorted(found, key=lambda kind: (not hasattr(zsq_errors, kind), kind)):
        lines.append(f"## {kind}\n")
        for part, texts in sorted(found[kind].items()):
            items = [
                f"<li>{html.escape(text)} <small>{module}</small></li>"
                for text, module in sorted(texts.items())
            ]
            lines.append(f"### {kind}: {part.lstrip('_')}\n\n<ul>\n" + "\n".join(items) + "\n</ul>\n")
    return "\n".join(lines)


ERRORS = """---
search: {boost: 300}
---

# All messages

Every error and warning that the library raises, made from its source. Names in braces stand for values:
search for the words between them. What the kinds mean, and the commonest troubles:
[troubleshooting](troubleshooting.md).
"""

# --- the book ----------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in FRONT.items()}
    made |= reference() | {"reference/commands.md": commands(), "errors.md": errors()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files

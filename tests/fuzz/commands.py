"""Command lines: random options of every command with hostile values, on a small album of toys."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import typer
import typer.testing
from PIL import Image as PILImage

from small_sets import write_colours, write_folder
from tests.fuzz.oracle import ENCODER, QUERIES, Case, Target, WrongError, odd_text
from toy_plugins import install, presets
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.info import CATALOG
from zsqretrieval.cli import app
from zsqretrieval.cli.app import laion
from zsqretrieval.data.images import as_image
from zsqretrieval.presets import PRESETS

_GROUP: Any = typer.main.get_command(app)
typer.testing._get_command = lambda _: _GROUP  # making it anew takes longer than most commands
_GROUPS = {"": (app, _GROUP), "laion ": (laion, _GROUP.commands["laion"])}
COMMANDS: dict[str, Any] = {
    f"{prefix}{name}": command
    for prefix, (_, group) in _GROUPS.items()
    for name, command in group.commands.items()
    if name != "laion"
}
_FUNCTIONS: dict[str, Any] = {
    f"{prefix}{one.name or one.callback.__name__.replace('_', '-')}": one.callback
    for prefix, (typed, _) in _GROUPS.items()
    for one in typed.registered_commands
    if one.callback
}
_OFTEN = {"search": 8, "index": 5, "questions": 4, "chat": 3, "demo": 2, "info": 2, "remove": 3}
_NUMBERS = "0 1 2 3 -1 1e3 x nan inf 1e400 0.5 -0.0 2147483648 9223372036854775808 \u0663".split()
_NUMBERS += ["", "9" * 400]
_IDS = ("red.png", "green.png", "nobody.png", "", "red.png#", "../red.png", "café.png", "[bold].png")
_WORDS = [
    *"x , all captions test dev none exact hnsw {} [] auto caption 1,2,3 likelihood,yes_no".split(),
    *("", "a" * 3000, '{"seed": 1e999}', '{"a": 1}', "question/which,caption"),
]
_PATHS = (
    *("out/\udce4/x", "out/" + "d" * 300, "out/a/b/c", "pipe", "pipe/x", "images/red.png/x"),
    *("out/\U0001f415", "out/[bold]", "out/-"),
)
_READ = (
    *("images", "images/*.png", "*", "odd.txt", "texts.txt", "gone", ".", "images/torn.jpg", ""),
    *("album/catalog.sqlite", "images/[bold].png", "shards/test-000.tar"),
)
_USUAL = {
    "album": ("album", "album", "plain"),
    "sources": ("images", "images/red.png", "shards"),
    "images": ("images",),
    "folders": ("images", "images", "shards"),
    "other": ("plain", "album"),
    "folder": ("out/new", "images"),
    "dataset": ("shards", "own", "shards:shards", "folder:own", "laion:shards"),
    "image": ("images/red.png",),
    "source": ("shards", "own"),
    "hashes": ("texts.txt", "odd.txt"),
    "allow": ("out/new",),
    "bank": ("texts.txt",),
    "html": ("out/page.html",),
    "report": ("out/report",),
    "work": ("out/work",),
    "out": ("album", "out/new", "out/page.html"),
}
# What commands are told to write, and the fonts that matplotlib finds.
_WRITTEN = ("cwd/album", "cwd/plain", "cwd/out", "cwd/zsq-demo.html", "home/.cache", "home/.config")
_ANSWERS = ("yes", "no", "undo", "quit", "", "don't know", "red", "\ud7ff", "<image>", "exit", "a" * 2000)


_WRITING = (
    *("index", "questions", "remove", "sync", "merge", "reencode", "add-embeddings"),
    *("laion ingest", "laion remove"),
)


class Commands(Target):
    """Two albums of six colours, one of them with a generator; images, texts and data sets beside them."""

    def __init__(self, base: Path, room: Path) -> None:
        super().__init__(base, room)
        sys.path.insert(0, str(install(base / "site")))
        # The presets with real models would load them, or try to fetch them.
        PRESETS.update(presets())  # type: ignore[attr-defined]
        PRESETS["mini"] = PRESETS["seeing"]  # type: ignore[index]
        images = room / "cwd" / "images"
        images.mkdir(parents=True)
        for number, name in enumerate(["red", "green", "blue", "yellow", "[bold]", "café"]):
            colour = name if number < 4 else (200, 90, 40 * number)
            PILImage.new("RGB", (9, 7), colour).save(images / f"{name}.png")
        (images / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
        write_colours(room / "cwd" / "shards")
        write_folder(room / "cwd" / "own")
        (room / "cwd" / "texts.txt").write_text("red\n\nis it <image>?\n")
        (room / "cwd" / "odd.txt").write_bytes(b"\xff\xfe\0 not UTF-8")
        os.chdir(room / "cwd")
        for command in (
            "index images -o album --preset seeing", "index images -o plain --preset toy",
            "questions album --style search --top-k 0",
        ):  # fmt: skip
            assert typer.testing.CliRunner().invoke(app, command.split()).exit_code == 0
        shutil.copytree(room / "cwd", base / "cwd")
        shutil.rmtree(room / "cwd")

    def case(self, chance: random.Random) -> Case:
        shutil.copytree(self.base / "cwd", self.room / "cwd", dirs_exist_ok=True)
        os.mkfifo(self.room / "cwd" / "pipe")
        name = chance.choices([*COMMANDS], [_OFTEN.get(one, 0.5) for one in COMMANDS])[0]
        words = [*name.split(), *self._words(name, chance)]
        if chance.random() < 0.02:
            words = chance.sample(words, len(words))
        answers = "\n".join(chance.choices(_ANSWERS, k=chance.randint(0, 9)))

        def run() -> str:
            before = _contents(Path("album")), _contents(Path("plain"))
            code, out, err = _run(words, answers)
            options = words[: words.index("--")] if "--" in words else words
            check_output(code, out, err, as_json="--json" in options)
            writes = name in _WRITING
            if not writes and before != (_contents(Path("album")), _contents(Path("plain"))):
                raise WrongError("the album has changed")
            if name == "search" and code == 0 and "--json" in options:
                check_hits(json.loads(out), before, first_page=not {*words} & _SELECTING)
            return "right" if code == 0 else "refused"

        return Case(f"{words!r}, answers {answers!r}"[:2000], run, _WRITTEN)

    def _words(self, name: str, chance: random.Random) -> list[str]:
        """Arguments of a command: its required ones, and some of its options."""
        hints, words = get_type_hints(_FUNCTIONS[name]), list[str]()
        parameters = [one for one in COMMANDS[name].params if one.name in hints]
        for one in parameters:
            kinds = {*get_args(hints[one.name]), hints[one.name]}
            if one.param_type_name == "argument":
                count = 1 if one.nargs == 1 else chance.randint(1, 3)
                words += [self._value(name, one.name, kinds, chance) for _ in range(count)]
            elif one.required or chance.random() < min(0.4, 2 / len(parameters)):
                words.append(chance.choice([*one.opts, *one.secondary_opts]))
                words += [] if bool in kinds else [self._value(name, one.name, kinds, chance)]
        if "--json" not in words and name != "chat" and chance.random() < 0.5:
            words.append("--json")
        if name in ("index", "demo", "evaluate") and "--preset" not in words:
            words += ["--preset", chance.choice(["toy", "reading", "seeing"])]
        return words

    def _value(self, command: str, name: str, kinds: set[Any], chance: random.Random) -> str:
        """A value of a parameter, mostly of its type."""
        if Path not in kinds and chance.random() < 0.03:
            return chance.choice(["", "-", "--", "\0", "\udcff", "x\ny", "a" * 300])
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Enum):
                return chance.choice([*(one.value for one in kind), "x"])
        if kinds & {int, float}:
            return chance.choice(_NUMBERS[:4] if chance.random() < 0.85 else _NUMBERS)
        if name == "preset":
            return chance.choice(["toy", "reading", "seeing", "seeing", "mini", "x", ""])
        if Path in kinds or name in ("sources", "dataset", "source", "embeddings", "metadata"):
            return self._path("out" if (command, name) == ("index", "album") else name, chance)
        if name in ("ids", "image"):
            return chance.choice(_IDS)
        return chance.choice([*QUERIES, odd_text(chance)] if name in ("question", "text") else _WORDS)

    def _path(self, name: str, chance: random.Random) -> str:
        """A path of the room. What is written goes to ``out`` or an album, or must be refused."""
        if chance.random() < 0.85:
            return chance.choice(_USUAL.get(name, ("own",)))
        return chance.choice(_PATHS if name in ("html", "out", "report", "work") else _PATHS + _READ)


def _run(words: list[str], answers: str) -> tuple[int, str, str]:
    """Run a command in this process."""
    result = typer.testing.CliRunner().invoke(app, words, input=answers)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def _contents(album: Path) -> list[Any]:
    with Catalog.open(album / CATALOG) as catalog:
        return [*catalog.iter_records(), *catalog.questions.batches()]


def check_output(code: int, out: str, err: str, *, as_json: bool) -> None:
    """The exit code, the streams and the JSON are as ``docs/cli.md`` says."""
    if code not in (0, 1, 2) or "Traceback" in out + err:
        raise WrongError(f"exit code {code}: {err[-1500:]}")
    errors = [line for line in err.splitlines() if line.startswith("zsq: error: ")]
    if code == 1 and (len(errors) != 1 or err.splitlines()[-1] != errors[0]):
        raise WrongError(f"not one line of error: {err[-1500:]!r}")
    if as_json and code == 0 and "Usage:" not in out:
        json.loads(out, parse_constant=_refuse)
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", out + (err if code != 2 else "")):
        raise WrongError(f"control characters in the output: {(out + err)[-1500:]!r}")


def _refuse(constant: str) -> Any:
    raise WrongError(f"{constant} in JSON")


_SELECTING = {"--offset", "--where", "--collapse", "--diversity", "--min-probability", "--subtract"}


def check_hits(
    found: dict[str, Any], contents: tuple[list[Any], list[Any]], *, first_page: bool = True
) -> None:
    """The hits are images of the album; those of a first stage alone are ranked as by the exact reference.

    The best of all images are expected only on a ``first_page`` for which nothing selects among them.
    """
    records = [one for one in contents[Path(found["album"]).name == "plain"] if isinstance(one, Record)]
    hits = {hit["id"]: hit for hit in found["hits"]}
    if len(hits) != len(found["hits"]) or not hits.keys() <= {one.id for one in records}:
        raise WrongError(f"hits that the album does not hold: {found}")
    scores = [hit["score"] for hit in hits.values() if hit["score"] is not None]
    if not first_page:
        return
    if scores != sorted(scores, reverse=True):
        raise WrongError(f"not ranked by score: {scores}")
    if found["query"].endswith(".png") or any(set(hit["scores"]) != {"first_stage"} for hit in hits.values()):
        return
    asked = ENCODER.encode_text([found["query"]])[0]
    exact = {one.id: ENCODER.encode_image([as_image(one.source)])[0] @ asked for one in records}
    best = sorted(exact.values(), reverse=True)[: len(hits)]
    if not np.allclose([scores, scores], [[exact[id] for id in hits], best], atol=1e-5):
        raise WrongError(f"the exact reference gives {exact}: {scores}")

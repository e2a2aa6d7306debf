"""An album, and attacks against it: flipped bits, JSON of other shapes, links and odd files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from zsqretrieval.album.info import CATALOG, describe_album
from zsqretrieval.album.questions import Judgement, NewQuestion, Recipe
from zsqretrieval.album.sqlite import checksum
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder

SECONDS = 10  # of computing; an attack needs a tenth of a second
WAITING = 300  # seconds until an attack hangs; a busy machine is no fault
HUGE = 200 * 2**30

Attack = Callable[[Path, random.Random], object]


def make_album(path: Path, images: int = 12) -> Path:
    """An album with records, questions, removals and saved indexes; its photographs are in ``photos``."""
    photos = path / "photos"
    photos.mkdir(parents=True)
    for number in range(images):
        colours = np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
        PILImage.fromarray(colours).resize((8, 8)).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"caption {number} ä", encoding="utf-8")
    encoder = ToyEncoder()
    recipe = Recipe("questions", ("Ask:",), None, "generator", encoder.fingerprint, 2, 0.7, 0, 16)
    with Retriever(encoder, path=path) as album:
        album.add(photos)
        table = album._catalog.questions
        for number, style in enumerate(["questions", "search"]):
            made = Recipe(style, *(getattr(recipe, name) for name in Recipe.__slots__[1:]))
            asked = {key: [_question(f"{style} {key}?")] for key in range(1 + number, images, 2)}
            table.write(made, asked)
        album.remove(["3.png"])
        album.save()
    return path


def _question(text: str) -> NewQuestion:
    vector = ToyEncoder().encode_text([text])[0]
    judged = Judgement(rank=1, top_k=10, gallery=12, kept=True)
    return NewQuestion(text, text.lower(), "yes", "Ask:", -2.5, 3, judged, vector)


def read_all(path: Path) -> dict[str, Any]:
    """Everything that an album answers."""
    facts = describe_album(path)
    with Retriever.open(path, encoder=ToyEncoder()) as album:
        return {
            "images": facts.images,
            "calibration": facts.calibration,
            "questions": facts.questions,
            "records": list(album.records()),
            "found": [album.find(f"{number}.png") for number in range(12)],
            "stored": list(album.questions.list()),
            "hits": [_hit(hit) for hit in album.search("a red picture", 12)],
            "expanded": [_hit(hit) for hit in album.search("search 4?", 12, expand=True)],
            "bank": len(album.query_bank(style="search").vectors),
        }


def _hit(hit: Any) -> tuple[Any, ...]:
    return hit.id, hit.source, hit.caption, dict(hit.metadata), hit.matched_question, round(hit.score, 5)


# --- attacks ----------------------------------------------------------------------------------------------


def flip_bit(path: Path, chance: random.Random) -> str:
    """Flip one bit of the catalog; half of the time of a byte that is not zero."""
    content = bytearray((path / CATALOG).read_bytes())
    used = [at for at, byte in enumerate(content) if byte] if chance.random() < 0.5 else range(len(content))
    at = chance.choice(used)
    content[at] ^= 1 << chance.randrange(8)
    (path / CATALOG).write_bytes(content)
    return f"byte {at}"


ODD: tuple[Any, ...] = (
    None, True, 0, -1, 10**400, 1.5, "", "/", "..", "x" * 100_000, [], [[]], {}, {"plugin": 3, "config": []},
    {"plugin": "exact"}, {"plugin": "clip", "config": {"name": "local-dir:/etc"}}, "\ud800",
)  # fmt: skip


def change_json(path: Path, chance: random.Random) -> str:
    """Put an odd value somewhere into a JSON column, or odd JSON in its place, with the right checksum."""
    table, name, value = chance.choice(
        [
            ("meta", "name", "value"), ("meta", "name", "value"), ("snapshots", "name", "value"),
            ("images", "key", "metadata"), ("recipes", "id", "recipe"),
        ]
    )  # fmt: skip
    with closing(sqlite3.connect(path / CATALOG)) as database, database:
        rows = database.execute(f"SELECT {name}, {value} FROM {table} ORDER BY 1").fetchall()
        key, text = chance.choice(rows)
        if chance.random() < 0.3:
            texts = ["", "nul", "[" * 10_000, "[" * 500 + "]" * 500, "NaN", '{"a": 1e999}', text[:-3], "3"]
            text = chance.choice(texts)
        else:
            text = json.dumps(_mutated(json.loads(text), chance))
        set_column(database, table, name, key, value, text)
    return f"{table} {key}: {text[:200]}"


def set_column(
    database: sqlite3.Connection, table: str, name: str, key: object, column: str, value: object
) -> None:
    """Change a column and the checksum of its row."""
    database.execute(f"UPDATE {table} SET {column} = ? WHERE {name} = ?", (value, key))
    [row] = database.execute(f"SELECT * FROM {table} WHERE {name} = ?", (key,))
    database.execute(f"UPDATE {table} SET crc32 = ? WHERE {name} = ?", (checksum(row[:-1]), key))


def _mutated(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(sorted(value))
        if chance.random() < 0.2:
            return {**{one: value[one] for one in value if one != name}, chance.choice(["", "x"]): 1}
        return {**value, name: _mutated(value[name], chance)}
    return chance.choice(ODD)


def odd_file(path: Path, chance: random.Random) -> str:
    """Replace a file or folder of the album, or a photograph, by something else."""
    files = [one for one in sorted(path.rglob("*")) if one.suffix != ".txt"]
    one = chance.choice(files)
    kind = chance.choice(sorted(_KINDS))
    if one.is_dir():
        shutil.rmtree(one)
    else:
        one.unlink()
    _KINDS[kind](one)
    return f"{one.relative_to(path)}: {kind}"


def _sparse(file: Path) -> None:
    with file.open("wb") as handle:
        handle.truncate(HUGE)


_KINDS: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "folder": lambda file: file.mkdir(),
    "link to a file": lambda file: file.symlink_to("/etc/hostname"),
    "link to a folder": lambda file: file.symlink_to("/etc"),
    "link to itself": lambda file: file.symlink_to(file),
    "link to a system file": lambda file: file.symlink_to("/proc/kmsg"),
    "missing": lambda file: None,
    "noise": lambda file: file.write_bytes(random.Random(0).randbytes(5000)),
    "pipe": lambda file: os.mkfifo(file),
    "sparse": _sparse,
}

ATTACKS: dict[str, Attack] = {"bits": flip_bit, "files": odd_file, "json": change_json}


# --- time -----------------------------------------------------------------------------------------------


class Hangs(BaseException):
    """An attack takes too long."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise :class:`Hangs` if the block computes or waits for too long."""

    def stop(*_: object) -> None:
        raise Hangs

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)

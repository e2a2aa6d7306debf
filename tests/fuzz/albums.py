"""Albums: damaged bytes in every file, odd JSON with the right checksum, odd files, links and leftovers."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

from strangers import ATTACKS, make_album, read_all
from tests.fuzz.oracle import ENCODER, Case, Target, WrongError, damage
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyStatesGenerator

_QUERY = "what is the red thing?"


class Albums(Target):
    """An album with questions, removals, a saved index and cached features; copied for each case."""

    kinds: tuple[str, ...] = (*ATTACKS, "leftover", "link", "splice", "splice 2")

    def __init__(self, base: Path, room: Path) -> None:
        super().__init__(base, room)
        # Photographs have absolute paths, so the answers are those of an album at the same place.
        path = make_album(room / "album")
        with open_with_states(path) as album:
            album.add(path / "photos")
            album.save()
        self.expected = answers(path)
        shutil.copytree(path, base / "album")
        shutil.rmtree(path)

    def case(self, chance: random.Random) -> Case:
        path = self.room / "album"
        shutil.copytree(self.base / "album", path)
        attacks = {**ATTACKS, "splice": splice, "link": link, "leftover": leftover}
        kind = chance.choice(self.kinds)
        note = attacks[kind.split()[0]](path, chance)
        # Other settings, with the right checksum, give other answers; and a lost photograph ranks last.
        exact = kind != "json" and "photos" not in str(note)
        # The links of the others lead out of the room.
        writes = kind in ("bits", "splice", "splice 2", "leftover", "link")

        def run() -> str:
            found = answers(path)
            if exact and (changed := [name for name in found if found[name] != self.expected[name]]):
                raise WrongError(f"changed in silence: {changed}")
            if writes:
                with open_with_states(path) as album:
                    report = album.add(path / "photos")
                    album.save()
                    lost = len(album) != self.expected["images"] or len(report.added) + report.known < 12
                    if lost and "photos" not in str(note):
                        raise WrongError(f"adding the photographs again: {report}, {len(album)} images")
                if exact and answers(path)["hits"][0] != self.expected["hits"][0]:
                    raise WrongError("another best hit after saving")
            return "right"

        return Case(f"{kind}: {note}", run)


class Bits(Albums):
    kinds = ("bits",)


class Files(Albums):
    kinds = ("files",)


class Json(Albums):
    kinds = ("json",)


def open_with_states(path: Path) -> Retriever:
    return Retriever.open(path, encoder=ENCODER, generator=ToyStatesGenerator(), states="disk")


def answers(path: Path) -> dict[str, Any]:
    """Everything that an album answers, also with a generator that has cached features."""
    found = read_all(path)
    with open_with_states(path) as album:
        hits = album.search(_QUERY, 12)
        found["likelihoods"] = [(hit.id, round(hit.scores.get("likelihood", 0), 5)) for hit in hits]
    return found


def splice(path: Path, chance: random.Random) -> str:
    """Damage one file of the album."""
    files = [one for one in sorted(path.rglob("*")) if one.is_file() and one.parent.name != "photos"]
    one = chance.choice(files)
    content, first = damage(one.read_bytes(), chance)
    one.write_bytes(content)
    return f"{one.relative_to(path)} from byte {first}, {len(content)} bytes"


def link(path: Path, chance: random.Random) -> str:
    """Put a link in place of a file or folder of the album, which leads to something like it elsewhere."""
    one = chance.choice([one for one in sorted(path.rglob("*")) if one.parent.name != "photos"])
    place = path.parent / f"elsewhere-{one.name}"
    one.rename(place)
    if one.suffix or place.is_dir() or chance.random() < 0.5:
        one.symlink_to(place)
    else:
        os.link(place, one)
    return f"{one.relative_to(path)} is a link"


def leftover(path: Path, chance: random.Random) -> str:
    """Add a file that a killed process may leave, or that nobody knows."""
    folder = chance.choice([path, *(one for one in path.iterdir() if one.is_dir() and one.name != "photos")])
    name = chance.choice(
        [".x.tmp", "lock", ".lock", "x.safetensors", "catalog.sqlite-wal", "catalog.sqlite-journal", "y"]
    )
    (folder / name).write_bytes(chance.choice([b"", chance.randbytes(100), bytes(40_000)]))
    return f"{folder.relative_to(path)}/{name}"

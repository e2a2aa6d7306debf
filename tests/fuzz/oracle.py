"""What a case is, how bytes are damaged, and the exact reference that answers are compared with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder
from zsqretrieval.types import Image

ENCODER = ToyEncoder()
QUERIES = ("a red picture", "blue and green", "nothing that has a colour")


class WrongError(Exception):
    """A wrong answer."""


@dataclass(frozen=True)
class Case:
    """One input, prepared.

    Attributes:
        what: the input in words.
        run: uses the library; returns "right", "skipped" or "refused". A ZsqError counts as refused, any
            other exception is a fault.
        may_change: names in the room that may be written.
    """

    what: str
    run: Callable[[], str]
    may_change: tuple[str, ...] = ("album",)


class Target:
    """A kind of input. ``room`` is an empty folder, in which :meth:`case` prepares one input."""

    def __init__(self, base: Path, room: Path) -> None:
        self.base, self.room = base, room  # base is made once and must never change

    def case(self, chance: random.Random) -> Case:
        raise NotImplementedError


def damage(content: bytes, chance: random.Random) -> tuple[bytes, int]:
    """Flip, overwrite, cut, insert or repeat bytes, once to three times; and the first changed position."""
    first = len(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        at = chance.randrange(len(content)) if content else 0
        size = chance.choice([1, 1, 2, 4, 8, 100])
        first = min(first, at)
        match chance.choice(["flip", "flip", "overwrite", "cut", "insert", "delete", "repeat"]):
            case "flip":
                flipped = (content[at] if content else 0) ^ (1 << chance.randrange(8))
                content = content[:at] + bytes([flipped]) + content[at + 1 :]
            case "overwrite":
                content = content[:at] + odd_bytes(chance, size) + content[at + size :]
            case "cut":
                content = content[:at]
            case "insert":
                content = content[:at] + odd_bytes(chance, size) + content[at:]
            case "delete":
                content = content[:at] + content[at + size :]
            case "repeat":
                content = content[: at + size] + content[at:]
    return content, first


def odd_bytes(chance: random.Random, size: int) -> bytes:
    odd = bytes(size), b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), chance.randbytes(size)
    return chance.choice(odd)


_TEXTS = (
    "", " ", "a caption", "\0", "a\0b", "\ufeff", "\r\n\t", "\u202eright to left", "e\u0301",
    "\ufffe\uffff", "<image></s>", "[red]bold[/red]", "{x} %s {0}", "'; DROP TABLE images; --", "\x1b[31mred",
    "\U0001f415" * 3, "-1", "--json", "a" * 5000, "NaN", "\u2028line", "\x7f\x80\x9f", "\ufb01", "\u0130",
)  # fmt: skip


def odd_text(chance: random.Random) -> str:
    """A text with odd code points, but valid Unicode."""
    return " ".join(chance.choice(_TEXTS) for _ in range(chance.choice([1, 1, 2])))


def check_found(album: Retriever, images: Mapping[str, bytes]) -> None:
    """Each image is found by each query, with the score of the exact reference, and the order is right."""
    vectors = ENCODER.encode_image([Image(content, id) for id, content in images.items()])
    for query, vector in zip(QUERIES, ENCODER.encode_text(QUERIES), strict=True):
        hits = album.search(query, max(1, len(album)), rerank=None)
        expected = dict(zip(images, (vectors @ vector).tolist(), strict=True))
        found = {hit.id: hit.score for hit in hits}
        if lost := sorted(expected.keys() - found.keys()):
            raise WrongError(f"{query!r} does not find {lost}")
        if len(found) != len(hits) or len(hits) != len(album):
            raise WrongError(f"{len(hits)} hits, {len(found)} of them different, in {len(album)} images")
        if off := [id for id, score in expected.items() if abs(found[id] - score) > 1e-5]:
            raise WrongError(f"{query!r} gives {off[0]} the score {found[off[0]]}, not {expected[off[0]]}")
        if any(one.score < other.score for one, other in zip(hits.hits, hits.hits[1:], strict=False)):
            raise WrongError(f"{query!r} is not ranked by score")


def caption_of(text: str) -> str | None:
    """A caption without white space at its ends; None when nothing is left."""
    return text.removeprefix("\ufeff").strip() or None


def check_caption(album: Retriever, id: str, text: str) -> None:
    """The caption is what was written."""
    record, wanted = album.find(id), caption_of(text)
    if record is None or record.caption != wanted:
        raise WrongError(f"the caption of {id} is {record and record.caption!r:.200}, not {wanted!r:.200}")

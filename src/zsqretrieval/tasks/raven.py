"""The Raven IQ test in the protocol of Kosmos-1: choose the picture that completes a matrix.

    item: 3, 4 or 8 context images, 6 candidates --> 6 contexts --generator--> log P("Yes") [6] --> choice

Each candidate stands alone after the context, image by image in reading order, with the question "Is it
correct?"; the one with the highest P("Yes") is chosen (arXiv 2302.14045, section 4.2). Guessing solves one
item in six.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import tell
from zsqretrieval._util.files import atomic_write, read_lines
from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import read_texts
from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.accuracy import Accuracy
from zsqretrieval.tasks.choice import single_best
from zsqretrieval.tasks.writing import aggregated
from zsqretrieval.types import Image, Progress

CANDIDATES = 6
"""Candidates of an item."""

RAVEN_PROMPTS: Mapping[int, Prompt] = MappingProxyType({n: PROMPTS[f"raven_{n}"] for n in (3, 4, 8)})
"""The prompt for each number of context images."""

_ITEMS = "items.jsonl"
_FIELDS = ("id", "context", "candidates", "answer")


@dataclass(frozen=True, slots=True, eq=False)
class RavenItem:
    """One item of the test: 3, 4 or 8 context images in reading order, and six candidates.

    ``answer`` is the position of the right candidate, from 0; ``metadata`` is JSON-serialisable, such as the
    rules of a generated matrix.

    Raises:
        InvalidInputError: the number of images is wrong, or there is no such candidate.
    """

    id: str
    context: tuple[Image, ...]
    candidates: tuple[Image, ...]
    answer: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.context) not in RAVEN_PROMPTS or len(self.candidates) != CANDIDATES:
            raise InvalidInputError(
                f"item {self.id!r} has {len(self.context)} context images and {len(self.candidates)} "
                f"candidates; the test has 3, 4 or 8, and {CANDIDATES}"
            )
        if not 0 <= self.answer < CANDIDATES:
            raise InvalidInputError(f"item {self.id!r} has no candidate {self.answer}; they are 0 to 5")


@dataclass(frozen=True, slots=True, eq=False)
class RavenAnswer:
    """The generator's answer to one item.

    Attributes:
        id: the id of the item.
        log_probs: float64 [6], log P("Yes") of every candidate, in nats.
        choice: position of the highest; None in a tie.
        answer: position of the right one.
    """

    id: str
    log_probs: NDArray[np.float64]
    choice: int | None
    answer: int

    @property
    def correct(self) -> bool:
        """Whether the choice is right; a tie is wrong."""
        return self.choice == self.answer


@dataclass(frozen=True, slots=True)
class RavenScore:
    """The answers to a test, one for each item in order."""

    answers: tuple[RavenAnswer, ...]

    @property
    def accuracy(self) -> Accuracy:
        """The solved items, with chance 1/6."""
        return Accuracy(sum(one.correct for one in self.answers), len(self.answers), 1 / CANDIDATES)

    @property
    def ties(self) -> int:
        """The number of items missed by a tie of two candidates."""
        return sum(one.choice is None for one in self.answers)


def score_raven(
    generator: Generator,
    items: Sequence[RavenItem],
    *,
    prompts: Mapping[int, Prompt] = RAVEN_PROMPTS,
    yes: str = " Yes",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> RavenScore:
    """Give a generator the test; its context must hold nine images and a little text.

    Args:
        generator: scores the candidates.
        items: the test.
        prompts: by number of context images; each takes these images, then the candidate, and no texts.
        yes: the scored continuation, with its leading space.
        batch_size: candidates computed together.
        progress: called after every item; may raise to stop.

    Raises:
        InvalidInputError: there are no items, two have one id, ``prompts`` lacks one or takes other images,
            or ``yes`` is empty.
        ImageError: an image cannot be decoded; names it.
        ZsqError: a likelihood is not finite; names the images.
    """
    if not items:
        raise InvalidInputError("there are no items; give one or more")
    ids = [item.id for item in items]
    if repeated := sorted({id for id in ids if ids.count(id) > 1}):
        raise InvalidInputError(f"two items have the id {repeated[0]!r}; every id must differ")
    if missing := sorted({len(item.context) for item in items} - prompts.keys()):
        raise InvalidInputError(f"no prompt for {missing[0]} context images among {sorted(prompts)}")
    answers = []
    for done, item in enumerate(items, 1):
        prompt = prompts[len(item.context)]
        contexts = [prompt.context(*item.context, candidate) for candidate in item.candidates]
        found = read_texts(generator, contexts, [yes] * CANDIDATES, batch_size=batch_size)
        log_probs = aggregated(found, "sum")
        answers.append(RavenAnswer(item.id, log_probs, single_best(log_probs), item.answer))
        tell(progress, "scoring items", done, len(items))
    return RavenScore(tuple(answers))


# --- files ------------------------------------------------------------------------------------------------


def read_raven(folder: str | os.PathLike[str]) -> list[RavenItem]:
    """Read a test from a folder with ``items.jsonl`` and its images, in the format of ``docs/tasks.md``.

    The images exist but are not opened.

    Raises:
        InvalidInputError: the file cannot be read or a line is no item; names file, line and field.
    """
    file = Path(folder) / _ITEMS
    items: list[RavenItem] = []
    first: dict[str, int] = {}  # id -> line
    for number, line in read_lines(file):
        item = _item(f"{file}, line {number}", Path(folder), line)
        if item.id in first:
            raise InvalidInputError(
                f"{file}, line {number}: the id {item.id!r} is already in line {first[item.id]}"
            )
        first[item.id] = number
        items.append(item)
    if not items:
        raise InvalidInputError(f"{file} has no items; write one JSON object a line")
    return items


def _item(where: str, folder: Path, line: str) -> RavenItem:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{where}, column {error.colno}: not JSON ({error.msg})") from error
    if not isinstance(entry, dict):
        raise InvalidInputError(f"{where}: must be a JSON object, not {type(entry).__name__}")
    if missing := [name for name in _FIELDS if name not in entry]:
        raise InvalidInputError(f"{where}: the field {missing[0]!r} is missing")
    if unknown := sorted(entry.keys() - {*_FIELDS, "metadata"}):
        raise InvalidInputError(
            f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}, metadata"
        )
    if not isinstance(entry["id"], str) or not entry["id"]:
        raise InvalidInputError(f"{where}, field 'id': must be a non-empty string, not {entry['id']!r}")
    metadata = entry.get("metadata", {})
    if not isinstance(metadata, dict):
        raise InvalidInputError(f"{where}, field 'metadata': must be an object, not {metadata!r}")
    names = _paths(where, "candidates", entry["candidates"])
    if len(set(names)) < len(names):
        raise InvalidInputError(f"{where}, field 'candidates': an image is named twice in {names}")
    if entry["answer"] not in names:
        raise InvalidInputError(f"{where}, field 'answer': {entry['answer']!r} is not one of the candidates")
    context, candidates = (
        tuple(_image(where, part, folder, name) for name in _paths(where, part, entry[part]))
        for part in ("context", "candidates")
    )
    try:
        return RavenItem(entry["id"], context, candidates, names.index(entry["answer"]), metadata)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error


def _paths(where: str, part: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(path, str) and path for path in value):
        raise InvalidInputError(f"{where}, field {part!r}: must be a list of paths, not {value!r}")
    return value


def _image(where: str, part: str, folder: Path, name: str) -> Image:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InvalidInputError(f"{where}, field {part!r}: {name!r} must be a path inside the folder")
    found = (folder / path).absolute()
    if not found.is_file():
        raise InvalidInputError(f"{where}, field {part!r}: there is no file {found}")
    return Image(found, source=str(found), id=name)


def write_raven(folder: str | os.PathLike[str], items: Sequence[RavenItem]) -> None:
    """Write a test for :func:`read_raven`, with PNG images.

    ``items.jsonl`` is written last and at once, so a folder that has it is complete.

    Raises:
        InvalidInputError: there are no items, two have one id, or the folder has a test already.
        ImageError: an image cannot be decoded; names it.
        OSError: the disk is full or not writable.
    """
    target = Path(folder)
    if not items or len({item.id for item in items}) < len(items):
        raise InvalidInputError("give one item or more; their ids must differ")
    if (target / _ITEMS).exists():
        raise InvalidInputError(f"{target / _ITEMS} exists already; give another folder, or remove it")
    lines = []
    for number, item in enumerate(items, 1):
        shown = target / f"{number:04}"
        shown.mkdir(parents=True, exist_ok=True)
        names: dict[str, list[str]] = {}
        for part, images in (("context", item.context), ("candidates", item.candidates)):
            names[part] = [f"{shown.name}/{part}-{position}.png" for position in range(1, len(images) + 1)]
            for name, image in zip(names[part], images, strict=True):
                decode(image).save(target / name)
        answer = names["candidates"][item.answer]
        entry = {"id": item.id, **names, "answer": answer, "metadata": dict(item.metadata)}
        lines.append(json.dumps(entry, ensure_ascii=False))
    with atomic_write(target / _ITEMS) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

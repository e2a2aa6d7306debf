"""The Raven IQ test as Kosmos-1 takes it: which candidate completes the pictures?

Each of six candidates is shown alone after the context, row by row and image by image, with the question "Is
it correct?"; the one with the highest P("Yes") is chosen (arXiv 2302.14045, section 4.2). Guessing solves one
item in six.

Items come from a folder (:func:`read_raven`) or out of :mod:`zsqretrieval.tasks.raven_matrices`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import PROMPTS, Prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.accuracy import Accuracy
from zsqretrieval.tasks.choice import single_best
from zsqretrieval.tasks.writing import scored
from zsqretrieval.types import Image

__all__ = [
    "CANDIDATES",
    "RAVEN_PROMPTS",
    "Progress",
    "RavenAnswer",
    "RavenItem",
    "RavenScore",
    "read_raven",
    "score_raven",
    "write_raven",
]

CANDIDATES = 6
"""How many candidates an item has."""

RAVEN_PROMPTS: Mapping[int, Prompt] = MappingProxyType({n: PROMPTS[f"raven_{n}"] for n in (3, 4, 8)})
"""The prompt for each number of context images."""

Progress: TypeAlias = Callable[[int, int], object]
"""Called with the number of items done and of all; may raise to stop the work."""

_ITEMS = "items.jsonl"
_FIELDS = ("id", "context", "candidates", "answer")


@dataclass(frozen=True, slots=True, eq=False)
class RavenItem:
    """One item of the test.

    Attributes:
        id: names it.
        context: its 3, 4 or 8 images, in reading order.
        candidates: six images.
        answer: the position of the right one among them, from 0.
        metadata: free JSON-serialisable facts, such as the rules it was made by.

    Raises:
        InvalidInputError: there are more or fewer images, or no such candidate.
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
    """What a generator made of one item.

    Attributes:
        id: of the item.
        log_probs: float64 [6], log P("Yes") of every candidate, in nats.
        choice: the position of the highest; None when another is as high.
        answer: the position of the right one.
    """

    id: str
    log_probs: NDArray[np.float64]
    choice: int | None
    answer: int

    @property
    def correct(self) -> bool:
        """Whether the right one was chosen; a tie is a miss."""
        return self.choice == self.answer


@dataclass(frozen=True, slots=True)
class RavenScore:
    """What a generator made of a test.

    Attributes:
        answers: one for each item, in order.
    """

    answers: tuple[RavenAnswer, ...]

    @property
    def accuracy(self) -> Accuracy:
        """How many items were solved, beside chance, 1/6."""
        return Accuracy(sum(one.correct for one in self.answers), len(self.answers), 1 / CANDIDATES)

    @property
    def ties(self) -> int:
        """How many items were missed because two candidates had the highest probability."""
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
    """Let a generator take the test.

    Args:
        generator: reads; its context must hold nine images and a little text.
        items: the test.
        prompts: by number of context images; each takes these images, then the candidate, and no texts.
        yes: the continuation whose probability counts, leading space included.
        batch_size: candidates that are read together.
        progress: told how many items are done.

    Raises:
        InvalidInputError: there are no items, two have one id, ``prompts`` lacks one or takes other images,
            or ``yes`` is empty.
        ImageError: an image cannot be decoded; names it.
        ZsqError: the generator gave a number that is none.
    """
    if not items:
        raise InvalidInputError("there are no items; give one or more")
    ids = [item.id for item in items]
    if repeated := sorted({id for id in ids if ids.count(id) > 1}):
        raise InvalidInputError(f"two items have the id {repeated[0]!r}; every id must differ")
    if lacking := sorted({len(item.context) for item in items} - prompts.keys()):
        raise InvalidInputError(f"there is no prompt for {lacking[0]} context images among {sorted(prompts)}")
    answers = []
    for done, item in enumerate(items, 1):
        prompt = prompts[len(item.context)]
        contexts = [prompt.context(*item.context, candidate) for candidate in item.candidates]
        log_probs = scored(generator, contexts, [yes] * CANDIDATES, batch_size=batch_size)
        answers.append(RavenAnswer(item.id, log_probs, single_best(log_probs), item.answer))
        if progress is not None:
            progress(done, len(items))
    return RavenScore(tuple(answers))


# --- files ------------------------------------------------------------------------------------------------


def read_raven(folder: str | os.PathLike[str]) -> list[RavenItem]:
    """Read a test from a folder; ``docs/tasks.md`` describes the format.

    Args:
        folder: has ``items.jsonl``, one JSON object a line, and the images it names.

    Returns:
        The items, in order; images are found, not opened.

    Raises:
        InvalidInputError: the file cannot be read or a line is not such an item; names file, line and field.
    """
    file = Path(folder) / _ITEMS
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # as JSON Lines has it
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} cannot be read as UTF-8 text ({error})") from error
    items: list[RavenItem] = []
    first: dict[str, int] = {}  # id -> line
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = _item(f"{file}, line {number}", Path(folder), line)
        if item.id in first:
            raise InvalidInputError(
                f"{file}, line {number}: the id {item.id!r} is already that of line {first[item.id]}"
            )
        first[item.id] = number
        items.append(item)
    if not items:
        raise InvalidInputError(f"{file} has no items; give one JSON object a line")
    return items


def _item(where: str, folder: Path, line: str) -> RavenItem:
    try:
        facts = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{where}, column {error.colno}: no JSON ({error.msg})") from error
    if not isinstance(facts, dict):
        raise InvalidInputError(f"{where}: must be a JSON object, not {type(facts).__name__}")
    if missing := [name for name in _FIELDS if name not in facts]:
        raise InvalidInputError(f"{where}: the field {missing[0]!r} is missing")
    if unknown := sorted(facts.keys() - {*_FIELDS, "metadata"}):
        raise InvalidInputError(
            f"{where}: unknown field {unknown[0]!r}; there are {', '.join(_FIELDS)}, metadata"
        )
    if not isinstance(facts["id"], str) or not facts["id"]:
        raise InvalidInputError(f"{where}, field 'id': must be a text, not {facts['id']!r}")
    metadata = facts.get("metadata", {})
    if not isinstance(metadata, dict):
        raise InvalidInputError(f"{where}, field 'metadata': must be an object, not {metadata!r}")
    names = _paths(where, "candidates", facts["candidates"])
    if len(set(names)) < len(names):
        raise InvalidInputError(f"{where}, field 'candidates': an image is named twice in {names}")
    if facts["answer"] not in names:
        raise InvalidInputError(f"{where}, field 'answer': {facts['answer']!r} is none of the candidates")
    context, candidates = (
        tuple(_found(where, part, folder, name) for name in paths)
        for part, paths in (
            ("context", _paths(where, "context", facts["context"])),
            ("candidates", names),
        )
    )
    try:
        return RavenItem(facts["id"], context, candidates, names.index(facts["answer"]), metadata)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error


def _paths(where: str, part: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(path, str) and path for path in value):
        raise InvalidInputError(f"{where}, field {part!r}: must be a list of paths, not {value!r}")
    return value


def _found(where: str, part: str, folder: Path, name: str) -> Image:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InvalidInputError(f"{where}, field {part!r}: {name!r} must be a path inside the folder")
    found = (folder / path).absolute()
    if not found.is_file():
        raise InvalidInputError(f"{where}, field {part!r}: there is no file {found}")
    return Image(found, source=str(found), id=name)


def write_raven(folder: str | os.PathLike[str], items: Sequence[RavenItem]) -> None:
    """Write a test that :func:`read_raven` reads; the images become PNG files.

    Args:
        folder: made when missing. ``items.jsonl`` is written last and at once, so a folder that has it is
            complete.
        items: one or more, of different ids.

    Raises:
        InvalidInputError: there are no items, two have one id, or the folder has a test already.
        ImageError: an image cannot be decoded; names it.
        OSError: the disk refuses.
    """
    target = Path(folder)
    if not items or len({item.id for item in items}) < len(items):
        raise InvalidInputError("there must be items, and their ids must differ")
    if (target / _ITEMS).exists():
        raise InvalidInputError(f"{target / _ITEMS} is there already; give another folder, or remove it")
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
        facts = {"id": item.id, **names, "answer": answer, "metadata": dict(item.metadata)}
        lines.append(json.dumps(facts, ensure_ascii=False))
    unfinished = target / f"{_ITEMS}.unfinished"
    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    unfinished.replace(target / _ITEMS)

"""Workers that turn tars into shards: each shard is done whole, once, wherever the worker runs.

tar -> samples -> decoded groups -> task -> temporary files -> renamed, the line of stats last

    OUT/img_emb/img_emb_0003.npy           what the task makes of tar 3
    OUT/metadata/metadata_0003.parquet
    OUT/stats/embed_0003.json              one line; a shard is done when this and its other files are there
    OUT/failed/embed_0003.json             why the last attempts failed

A worker keeps nothing in memory from one shard to the next. So it may be killed at any moment, and any number
of workers may share a folder: what one has not finished, another does again, with the same result.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from zsqretrieval._util.batches import NO_ITEM
from zsqretrieval._util.checks import check_counts
from zsqretrieval._util.files import atomic_write, flush_file, locked, sync_directory, temporary_path
from zsqretrieval._util.threads import ahead
from zsqretrieval._util.untrusted import parse_json
from zsqretrieval.data.loader import Loader, NewImage, Skipped
from zsqretrieval.data.refused import reason
from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.laion.image_shards import ImageShard
from zsqretrieval.laion.safety import Denied, unaltered
from zsqretrieval.types import MAX_PIXELS, Image

_NAMED = 20  # refused images that the stats name


@dataclass(slots=True)
class Run:
    """One shard on its way: the samples, and what the task notes about them."""

    groups: Iterator[tuple[dict[str, Image], list[NewImage]]]
    """Decoded images by digest, and their samples in order; some samples may share an image."""
    refused: list[Skipped] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin


class Task(Protocol):
    """What a worker makes of a shard.

    Attributes:
        name: its name, in the file names of stats.
        facts: JSON that names what is made, such as the encoder's fingerprint; a folder has one for each
            task.
        batch_size: images decoded together; part of the facts if another one gives other results.
        size_hint: sides that JPEGs may be decoded to, in pixels; None for all of them.
    """

    name: str
    facts: Mapping[str, Any]
    batch_size: int
    size_hint: int | None

    def files(self, number: str) -> Sequence[str]:
        """The files of a shard, relative to the output folder."""
        ...

    def run(self, run: Run, files: Sequence[Path]) -> int:
        """Write these files; returns the number of images in them. Equal samples make equal files."""
        ...

    def finish(self, out: Path, stats: Sequence[Mapping[str, Any]]) -> None:
        """Called when all shards are done, with the stats of each; maybe more than once."""
        ...


# --- which shards -----------------------------------------------------------------------------------------


def choose(count: int, *, shards: str | None = None, worker: int = 0, of: int = 1) -> list[int]:
    """The numbers of the shards for one worker.

    Args:
        count: all shards.
        shards: ``"0-99"``, ``"7"`` or several of these with commas; None for all.
        worker: number of this worker, from 0; it takes every ``of``-th of the shards.
        of: number of workers.

    Raises:
        InvalidInputError: a shard that does not exist, or a worker that is none of them.
    """
    check_counts(of=of)
    check_counts(0, most=of - 1, worker=worker)
    chosen = (
        range(count) if shards is None else sorted({n for part in shards.split(",") for n in _span(part)})
    )
    if chosen and chosen[-1] >= count:
        raise InvalidInputError(f"there is no shard {chosen[-1]}: the {count} shards are 0 to {count - 1}")
    return list(chosen[worker::of])


def _span(part: str) -> range:
    found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise InvalidInputError(f"{part!r} names no shards; write 7, or 0-99")
    return range(first, last + 1)


# --- one shard --------------------------------------------------------------------------------------------


def run_shard(
    task: Task, shards: Sequence[ImageShard], number: int, out: Path, *, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """Do one shard, unless it is done; returns its stats, which say ``"known"`` if it was.

    Raises:
        MismatchError: the shard was made of another tar, or with other facts.
        Exception: what the tar, the disk or the task raises; nothing of the shard is written then.
    """
    tar = shards[number].tar.name
    if (known := _done(task, tar, number, out)) is not None:
        return {**known, "known": True}
    begin = time.perf_counter()
    names = [out / name for name in task.files(f"{number:04d}")]
    denied: Denied = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            name.parent.mkdir(parents=True, exist_ok=True)
        files = [stack.enter_context(temporary_path(name)) for name in names]
        loader = stack.enter_context(
            Loader(
                unaltered(shards[number].images(), denied),
                task.batch_size,
                max_pixels,
                exif=False,
                size_hint=task.size_hint,
            )
        )
        run = Run(iter(()))
        run.groups = ahead(_groups(loader, run))
        count = task.run(run, files)
        refused = [*loader.skipped, *run.refused]
        total = time.perf_counter() - begin
        stats = {
            "task": task.name,
            "shard": number,
            "tar": tar,
            "facts": dict(task.facts),
            "images": count,
            "refused": len(refused),
            "denied": denied,
            "reasons": [[one.source, one.reason] for one in refused[:_NAMED]],
            "seconds": {name: round(spent, 3) for name, spent in {**run.seconds, "total": total}.items()},
            "images_per_s": {
                name: round(count / spent, 1)
                for name, spent in {**run.seconds, "total": total}.items()
                if spent
            },
        }
        with locked(out, exclusive=True):  # of workers that did the same shard, the first one counts
            if (known := _done(task, tar, number, out)) is not None:
                return {**known, "known": True}
            for file, name in zip(files, names, strict=True):
                flush_file(file)
                file.replace(name)
                sync_directory(name.parent)
            _write_line(_stats(task, number, out), stats)
    return stats


def _groups(loader: Loader, run: Run) -> Iterator[tuple[dict[str, Image], list[NewImage]]]:
    batches = iter(loader)
    while True:
        with run.stage("read"):
            batch = next(batches, None)
        if batch is None:
            return
        decoded = loader.decoded(batch)
        while True:
            with run.stage("decode"):
                group = next(decoded, None)
            if group is None:
                break
            pictures = {one.digest: one.image for one in group if one.image is not None}
            yield pictures, [one for one in batch if one.digest in pictures]


def _stats(task: Task, number: int, out: Path) -> Path:
    return out / "stats" / f"{task.name}_{number:04d}.json"


def _done(task: Task, tar: str, number: int, out: Path) -> dict[str, Any] | None:
    """The stats of a shard if all of its files are there."""
    file = _stats(task, number, out)
    try:
        stats = parse_json(file.read_bytes())
        made = {"tar": stats["tar"], "facts": stats["facts"]}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):  # not whole
        return None
    wanted = {"tar": tar, "facts": dict(task.facts)}
    if made != wanted:
        raise MismatchError(
            f"{file} says that shard {number} was made of {made}, and this run would make it of {wanted}; "
            "use the same tars and settings, or another folder"
        )
    return stats if all((out / name).is_file() for name in task.files(f"{number:04d}")) else None


def _write_line(file: Path, facts: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(facts) + "\n", encoding="ascii")


# --- many shards ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShardsReport:
    """What became of the shards of a run.

    Attributes:
        done: shards that were done now.
        known: shards that had been done before.
        images: images in the shards that were done now.
        refused: images left out of these.
        failed: shards that failed in every attempt, and why; a later run tries them again.
        seconds: duration.
    """

    done: int
    known: int
    images: int
    refused: int
    failed: tuple[Skipped, ...]
    seconds: float


def run_shards(
    task: Task,
    shards: Sequence[ImageShard],
    out: str | os.PathLike[str],
    numbers: Iterable[int] | None = None,
    *,
    attempts: int = 3,
    max_pixels: int = MAX_PIXELS,
    report: Callable[[Mapping[str, Any]], object] = lambda stats: None,
) -> ShardsReport:
    """Do shards one after another; one that fails is tried again after the others.

    Args:
        task: what to make.
        shards: all shards, in the same order for every worker, as
            :func:`~zsqretrieval.laion.image_shards.open_image_shards` lists them.
        out: folder of the results, on a file system that all workers share.
        numbers: the shards of this worker; None for all.
        attempts: most attempts for each shard, >= 1.
        max_pixels: images of more pixels are refused.
        report: called with the stats of each shard, or with its number, tar and ``"failed"``, the reason.

    Raises:
        MismatchError: the folder has shards of other tars or settings.
        Exception: a mistake in a part, such as a PartError; damage of a tar only fails its shard.
    """
    begin = time.perf_counter()
    out, ended = Path(out).absolute(), list[Mapping[str, Any]]()
    for stats in attempt_shards(task, shards, out, numbers, attempts, max_pixels):
        ended.append(stats)
        report(stats)
    finish(task, shards, out)
    return summary(ended, time.perf_counter() - begin)


def attempt_shards(
    task: Task,
    shards: Sequence[ImageShard],
    out: Path,
    numbers: Iterable[int] | None,
    attempts: int,
    max_pixels: int,
) -> Iterator[Mapping[str, Any]]:
    """Yield what :func:`run_shards` reports of each shard; errors as there."""
    check_counts(attempts=attempts)
    out.mkdir(parents=True, exist_ok=True)
    waiting = deque((number, 1) for number in (range(len(shards)) if numbers is None else numbers))
    while waiting:
        number, attempt = waiting.popleft()
        failure = out / "failed" / f"{task.name}_{number:04d}.json"
        try:
            stats = run_shard(task, shards, number, out, max_pixels=max_pixels)
        except NO_ITEM:
            raise
        except Exception as error:
            if attempt < attempts:
                waiting.append((number, attempt + 1))
                continue
            stats = {"task": task.name, "shard": number, "tar": shards[number].tar.name, "attempts": attempt}
            stats["failed"] = reason(error)
            _write_line(failure, stats)
        else:
            failure.unlink(missing_ok=True)
        yield stats


def finish(task: Task, shards: Sequence[ImageShard], out: Path) -> None:
    """Complete the folder if all shards are done, by whichever workers."""
    stats = []
    for number, shard in enumerate(shards):
        if (known := _done(task, shard.tar.name, number, out)) is None:
            return
        stats.append(known)
    with locked(out, exclusive=True):
        for leftover in out.glob("**/.*.tmp"):  # of workers that were killed
            leftover.unlink(missing_ok=True)
        task.finish(out, stats)


def summary(ended: Sequence[Mapping[str, Any]], seconds: float) -> ShardsReport:
    """Add up what :func:`run_shards` reported."""
    made = [one for one in ended if "failed" not in one and not one.get("known")]
    failed = [one for one in ended if "failed" in one]
    return ShardsReport(
        done=len(made),
        known=len(ended) - len(made) - len(failed),
        images=sum(one["images"] for one in made),
        refused=sum(one["refused"] for one in made),
        failed=tuple(Skipped(one["tar"], one["failed"]) for one in failed),
        seconds=seconds,
    )

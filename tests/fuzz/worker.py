"""The process that runs cases: one line ``TARGET CASE`` in, one line of JSON out."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import os
import random
import re
import resource
import shutil
import stat
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz import TARGETS
from tests.fuzz.oracle import Case, Target, WrongError
from zsqretrieval import plugins
from zsqretrieval.errors import ZsqError

_ADDRESSES = (4 * 2**30, 4 * 2**30)  # bytes that a worker can address, with the libraries
_LIBTIFF = re.compile(r"[\w.]+: .*\.$|\s*$")  # prints its errors, and Pillow has no way to stop it


def make_target(name: str, base: Path, room: Path) -> Target:
    """A target by its name, or by ``module:Class``."""
    module, _, kind = TARGETS.get(name, name).partition(":")
    base.mkdir(parents=True)
    target: Target = getattr(importlib.import_module(module), kind)(base, room)
    return target


def judge(case: Case, place: Path, megabytes: int) -> dict[str, Any]:
    """Run a case; the outcome, or each way in which it is a fault."""
    faults: list[str] = []
    before, printed = _files(place, case.may_change), os.fstat(2).st_size
    Path("/proc/self/clear_refs").write_text("5")  # starts a new peak
    begun, outcome, trace = _memory("VmRSS"), "", ""
    with _foreign_warnings() as foreign:
        try:
            outcome = case.run()
        except ZsqError as error:
            outcome, trace = "refused", traceback.format_exc()
            if "\n" in str(error) or "Traceback" in str(error):
                faults.append(f"message: more than a line: {type(error).__name__}: {error}")
        except WrongError as error:
            faults.append(f"wrong answer: {error}")
        except BaseException as error:
            trace = traceback.format_exc()
            kind = "memory" if isinstance(error, MemoryError) else "crash"
            faults.append(f"{kind}: {type(error).__name__}: {error} ({_origin(error)})")
    faults += [f"warning: {text}" for text in foreign]
    if (grown := _memory("VmHWM") - begun) > megabytes:
        faults.append(f"memory: {grown} MB")
    sys.stdout.flush()
    sys.stderr.flush()
    said = os.pread(2, 10_000, printed).decode(errors="replace")
    if said := "".join(line for line in said.splitlines(keepends=True) if not _LIBTIFF.match(line)):
        faults.append(f"output: {said[:500]}")
    after = _files(place, case.may_change)
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    faults += [f"files: {sorted(changed)} changed"] if changed else []
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        faults.append("child: a process was left behind")
    return {"what": case.what, "outcome": outcome, "faults": faults, "trace": trace, "grown": grown}


@contextlib.contextmanager
def _foreign_warnings() -> Iterator[list[str]]:
    """Collect the warnings that the library does not give itself."""
    own, foreign, warn = set[str](), list[str](), warnings.warn

    def told(message: Any, *args: Any, stacklevel: int = 1, **kwargs: Any) -> None:
        if "zsqretrieval" in sys._getframe(1).f_code.co_filename:
            own.add(str(message))
        warn(message, *args, stacklevel=stacklevel + 1, **kwargs)

    warnings.warn = told  # type: ignore[assignment]
    try:
        with warnings.catch_warnings(record=True) as given:
            yield foreign
    finally:
        warnings.warn = warn
    foreign += [f"{one.category.__name__}: {one.message}" for one in given if str(one.message) not in own]


def _origin(error: BaseException) -> str:
    """The innermost line of the library in a traceback, else the innermost line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if "zsqretrieval" in one.filename] or list(frames)
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _memory(field: str) -> int:
    """VmRSS or VmHWM in megabytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s*(\d+) kB", status)
    assert found
    return int(found[1]) // 1024


def _files(place: Path, but: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """Mode, size and time of everything below a folder, except some names in its room."""
    left_out = {place / "room" / name for name in but}
    found: dict[str, tuple[int, int, int]] = {}
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if Path(folder, name) not in left_out]
        for path in (Path(folder, name) for name in [*folders, *files]):
            if path not in left_out:
                status = path.lstat()
                size = status.st_size if stat.S_ISREG(status.st_mode) else 0
                found[str(path.relative_to(place))] = (status.st_mode, size, size and status.st_mtime_ns)
    return found


def main(seed: int, targets: list[str], megabytes: int) -> None:
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # a file, in which nothing should be printed
    faulthandler.enable()
    place = Path(tempfile.gettempdir())  # which the runner has made, and deletes
    room = place / "room"
    room.mkdir()
    made = {name: make_target(name, place / f"base-{n}", room) for n, name in enumerate(targets)}
    plugins._claims = functools.cache(plugins._claims)  # which would read the environment in every case
    resource.setrlimit(resource.RLIMIT_AS, _ADDRESSES)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in orders:
        name, number = line.split()
        shutil.rmtree(room)
        for folder in ("cwd", "home", "tmp"):
            (room / folder).mkdir(parents=True)
        os.chdir(room / "cwd")
        os.environ["HOME"] = str(room / "home")
        tempfile.tempdir = os.environ["TMPDIR"] = str(room / "tmp")
        case = made[name].case(random.Random(f"{name} {seed} {number}"))
        print(json.dumps(judge(case, place, megabytes)), file=answers, flush=True)


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))

"""Fuzz targets that plant one fault each: ``planted:NAME``, with the names of :data:`PLANTS`."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.oracle import Case, Target, WrongError
from zsqretrieval.errors import InvalidInputError


def _raise(error: BaseException) -> None:
    raise error


# What is done, and how the report of the fault begins; None if it is none.
PLANTS: dict[str, tuple[Callable[[], object], str | None]] = {
    "right": (lambda: None, None),
    "refused": (lambda: _raise(InvalidInputError("no such thing")), None),
    "answer": (lambda: _raise(WrongError("2")), "wrong answer: 2"),
    "error": (lambda: _raise(KeyError("x")), "crash: KeyError: 'x' (planted.py:"),
    "exit": (lambda: sys.exit(3), "crash: SystemExit: 3"),
    "death": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash: the process died (-11)"),
    "hang": (lambda: time.sleep(60), "hang: over 1 s"),
    "growth": (lambda: b"x" * (400 * 2**20), "memory: "),
    "memory": (lambda: bytearray(2**40), "memory: MemoryError"),
    "warning": (lambda: warnings.warn("not ours", stacklevel=1), "warning: UserWarning: not ours"),
    "output": (lambda: os.write(2, b"Traceback of a thread\n"), "output: Traceback of a thread"),
    "file": (lambda: Path("x").touch(), "files: ['room/cwd/x'] changed"),
    "child": (lambda: os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60"), "child: a process"),
    "lines": (lambda: _raise(InvalidInputError("a\nb")), "message: more than a line"),
}


def __getattr__(name: str) -> type[Target]:
    if name not in PLANTS:
        raise AttributeError(name)

    class Planted(Target):
        def case(self, chance: random.Random) -> Case:
            def run() -> str:
                PLANTS[name][0]()
                return "right"

            return Case(f"planted {name}", run)

    return Planted

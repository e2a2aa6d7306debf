"""Forked processes, which have the memory of their parent but only one of its threads.

A lock that another thread held at the fork would stay held for ever, and torch would wait for threads that
are not there. Both are mended here, in the new process, whoever forks.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Protocol, final


class Renewable(Protocol):
    """Something that has to begin anew in a forked process."""

    def renew(self) -> None:
        """Begin anew; runs in the new process, right after the fork."""


_renewed: weakref.WeakSet[Renewable] = weakref.WeakSet()
_gates: weakref.WeakKeyDictionary[Lock, None] = weakref.WeakKeyDictionary()  # in the order of their making
_held: list[Lock] = []  # by the thread that forks
_forked = False


def is_forked() -> bool:
    """Whether this process was forked: OpenMP would wait for the threads of the parent."""
    return _forked


def renew_in_forks(one: Renewable) -> None:
    """Call ``one.renew()`` in every forked process."""
    _renewed.add(one)


@final
class Lock:
    """A reentrant lock that is free in a forked process.

    With ``gate``, a fork waits until the lock is free, so that the new process finds nothing half done. Its
    holder must not wait for a lock other than a gate made later.
    """

    def __init__(self, *, gate: bool = False) -> None:
        self.renew()
        renew_in_forks(self)
        if gate:
            _gates[self] = None

    def renew(self) -> None:
        """Replace the lock by a free one."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


_forking = Lock()


def _before() -> None:
    _forking.__enter__()
    for lock in list(_gates):
        lock.__enter__()
        _held.append(lock)


def _in_parent() -> None:
    while _held:
        _held.pop().__exit__()
    _forking.__exit__()


def _in_child() -> None:
    global _forked
    _forked = True
    _held.clear()
    for one in list(_renewed):
        one.renew()
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # with more, OpenMP would wait for the parent's


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)

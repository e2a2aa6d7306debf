"""Actors of Ray: a part in a process of its own, on this machine or another one of the cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from zsqretrieval._util.checks import check_amounts, check_counts
from zsqretrieval._util.optional import import_optional
from zsqretrieval.errors import ZsqError

_LIVES = 3  # restarts of an actor, and repetitions of a call that dies with it


def start_actors(part: type[Any], *given: Any, actors: int | None, cpus: float, gpus: float) -> list[Any]:
    """Start actors of a class, each with the same arguments.

    Connects to the cluster that ``ray.init`` or ``RAY_ADDRESS`` names, else starts Ray here. An actor whose
    process dies is restarted, and its call repeated.

    Args:
        part: makes it; its methods must give the same result when called again.
        given: arguments of ``part``.
        actors: their number; None for as many as the cluster has room for.
        cpus: cores for each, also the threads of torch.
        gpus: GPUs for each; a fraction shares one.

    Raises:
        MissingDependencyError: Ray is not installed.
        InvalidInputError: a number is out of range.
        ZsqError: the cluster has no room for a single actor.
    """
    check_counts(or_none=True, actors=actors)
    check_amounts(cpus=cpus, gpus=gpus)
    ray = _ray()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a new cluster reports itself
        ray.init()
    there, wanted = ray.cluster_resources(), {"CPU": cpus, "GPU": gpus}
    room = min((int(there.get(kind, 0) / one) for kind, one in wanted.items() if one), default=1)
    if not room:
        raise ZsqError(
            f"the Ray cluster has no room for an actor with {cpus:g} CPUs and {gpus:g} GPUs; it has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
        )
    settings = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": _LIVES, "max_task_retries": _LIVES}
    actor = ray.remote(_Actor).options(**settings)
    return [actor.remote(part, given) for _ in range(room if actors is None else actors)]


class _Actor:
    """Makes its part in the first call, so that an error of making it is that of the call."""

    def __init__(self, part: Callable[..., Any], given: tuple[Any, ...]) -> None:
        self._make: Callable[[], Any] = partial(part, *given)
        self._made: Any = None

    def call(self, method: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._made is None:
            self._made = self._make()
        return getattr(self._made, method)(*given, **named)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a method of a part."""

    method: str
    given: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)


def each_answer(actors: Sequence[Any], calls: Iterable[Call], took: Callable[[int, Any], object]) -> None:
    """Make calls on actors, one at a time on each, and take the answers as they come.

    Args:
        actors: of :func:`start_actors`.
        calls: each is made on the next actor that is free.
        took: called with the position of a call and its answer; may raise to stop.

    Raises:
        ZsqError: an actor died again and again.
        Exception: what a call raises.
    """
    ray = _ray()
    waiting = enumerate(calls)
    running: dict[Any, tuple[int, Any]] = {}

    def start(actor: Any) -> None:
        for position, call in islice(waiting, 1):
            running[actor.call.remote(call.method, call.given, call.named)] = position, actor

    for actor in actors:
        start(actor)
    while running:
        (ready, *_), _ = ray.wait(list(running))
        position, actor = running.pop(ready)
        try:
            answer = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            reason = str(error).partition("\n")[0]
            raise ZsqError(f"an actor of Ray died {_LIVES + 1} times: {reason}") from error
        took(position, answer)
        start(actor)


def _ray() -> Any:
    return import_optional("ray", "work on several machines", "pip install 'zsqretrieval[ray]'")

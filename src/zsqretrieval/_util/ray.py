"""Actors of Ray: a part in a process of its own, on this machine or another one of the cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
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
        part: the class; its methods must give the same result when called again.
        given: arguments of the class.
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
            f"the Ray cluster has no room for an actor with {cpus:g} CPUs and {gpus:g} GPUs: {there}"
        )
    settings = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": _LIVES, "max_task_retries": _LIVES}
    made = ray.remote(part).options(**settings)
    return [made.remote(*given) for _ in range(room if actors is None else actors)]


def each_answer(
    actors: list[Any], calls: list[Callable[[Any], Any]], took: Callable[[int, Any], object]
) -> None:
    """Make calls on actors, one at a time on each, and take the answers as they come.

    Args:
        actors: the actors.
        calls: each starts a method of the actor that it is given.
        took: called with the position of a call and its answer; may raise to stop.

    Raises:
        ZsqError: an actor died again and again.
        Exception: what a call raises.
    """
    ray = _ray()
    free, waiting, running = list(actors), list(enumerate(calls))[::-1], dict[Any, tuple[int, Any]]()
    while waiting or running:
        while free and waiting:
            position, call = waiting.pop()
            actor = free.pop()
            running[call(actor)] = position, actor
        (ready, *_), _ = ray.wait(list(running))
        position, actor = running.pop(ready)
        free.append(actor)
        try:
            answer = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            raise ZsqError(
                f"an actor of Ray died {_LIVES + 1} times: {' '.join(str(error).split())}"
            ) from error
        took(position, answer)


def _ray() -> Any:
    return import_optional("ray", "work on several machines", "pip install 'zsqretrieval[ray]'")

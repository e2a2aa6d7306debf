"""A generator on several GPUs or machines: a model in each actor of Ray, pairs spread by their tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval import plugins
from zsqretrieval._util.checks import check_sequence, check_settings
from zsqretrieval._util.ray import each_answer, start_actors
from zsqretrieval.data.images import read_bytes
from zsqretrieval.generators.checked import check_pairs
from zsqretrieval.protocols import ImageStates
from zsqretrieval.types import Context, Image, LogLikelihood, Progress

T = TypeVar("T")

_IMAGE_TOKENS = 64  # of an image, for a generator that does not say
_LETTERS = 4  # in a token, about


@final
class RayGenerator:
    """A :class:`~zsqretrieval.protocols.Generator` whose model runs once in each actor of Ray.

    Order and scores are those of one model. Pairs with the same images go to one actor, so that each image is
    encoded once. Files of images are read here, so that the actors need not reach them.

    Args:
        plugin: plugin name of the generator.
        config: its settings; missing ones take its defaults.
        actors: number of models; None for as many as the cluster has room for.
        cpus: cores for each.
        gpus: GPUs for each; a fraction shares one.

    Raises:
        MissingDependencyError: Ray is not installed.
        ZsqError: the cluster has no room, or as :func:`zsqretrieval.plugins.create`.
    """

    def __init__(
        self,
        plugin: str,
        config: Mapping[str, Any] | None = None,
        *,
        actors: int | None = None,
        cpus: float = 1,
        gpus: float = 0,
    ) -> None:
        self.config: Mapping[str, Any] = {
            "plugin": plugin,
            "config": dict(config or {}),
            "actors": actors,
            "cpus": cpus,
            "gpus": gpus,
        }
        self._actors = start_actors(_Model, plugin, dict(config or {}), actors=actors, cpus=cpus, gpus=gpus)
        facts: dict[str, Any] = self._all([lambda actor: actor.facts.remote()])[0]
        self.fingerprint: str = facts["fingerprint"]
        self._image_tokens = facts.get("state_shape", (_IMAGE_TOKENS,))[0]
        if "state_shape" in facts:
            self.state_shape, self.state_dtype = facts["state_shape"], facts["state_dtype"]
            self.image_states = self._image_states

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuild the generator from :attr:`config`."""
        check_settings("RayGenerator", config, ("plugin", "config", "actors", "cpus", "gpus"))
        return cls(**config)

    def log_likelihood(
        self,
        contexts: Sequence[Context],
        continuations: Sequence[str],
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[LogLikelihood]:
        """Score n pairs; see :meth:`zsqretrieval.protocols.Generator.log_likelihood`.

        ``progress`` is called when an actor has done its share. Shares that have begun go on after an error.
        """
        check_pairs(contexts, continuations)
        costs = [
            self._tokens(context) + self._tokens([text])
            for context, text in zip(contexts, continuations, strict=True)
        ]
        sent = _portable(contexts)
        return self._shared(
            list(map(_images, contexts)),
            costs,
            lambda some, actor: actor.call.remote(
                "log_likelihood",
                [sent[i] for i in some],
                [continuations[i] for i in some],
                batch_size=batch_size,
            ),
            progress,
        )

    def generate(
        self, contexts: Sequence[Context], *, seed: int | None = None, **settings: Any
    ) -> list[list[str]]:
        """Continue each context; see :meth:`zsqretrieval.protocols.Generator.generate`.

        With a seed, one actor does it all: a text depends on the position of its context.
        """
        check_sequence(contexts, "contexts")
        sent = _portable(contexts)
        whole = seed is not None and settings.get("temperature", 0) != 0
        return self._shared(
            [0] * len(contexts) if whole else list(range(len(contexts))),
            [0 if whole else self._tokens(context) for context in contexts],
            lambda some, actor: actor.call.remote("generate", [sent[i] for i in some], seed=seed, **settings),
        )

    def _image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> NDArray[Any]:
        """Run the vision part; see :meth:`zsqretrieval.protocols.ImageStates.image_states`."""
        sent = [context[0] for context in _portable([[image] for image in images])]
        found = self._shared(
            list(range(len(images))),
            [1] * len(images),
            lambda some, actor: actor.call.remote(
                "image_states", [sent[i] for i in some], batch_size=batch_size
            ),
        )
        return np.stack(found) if found else np.empty((0, *self.state_shape), self.state_dtype)

    def _tokens(self, parts: Context) -> int:
        """About how many tokens there are."""
        return sum(
            len(part) // _LETTERS + 1 if isinstance(part, str) else self._image_tokens for part in parts
        )

    def _shared(
        self,
        groups: Sequence[Hashable],
        costs: Sequence[int],
        call: Callable[[list[int], Any], Any],
        progress: Progress | None = None,
    ) -> list[Any]:
        """Results of n items, of which each actor computes a share; items of a group are mostly in one."""
        shares = [some for some in spread(groups, costs, len(self._actors)) if some] or [[]]
        found: list[Any] = [None] * len(groups)
        done = 0

        def took(share: int, answers: Sequence[Any]) -> None:
            nonlocal done
            for i, answer in zip(shares[share], answers, strict=True):
                found[i] = answer
            done += len(shares[share])
            if progress is not None and done:
                progress("scoring", done, len(groups))

        each_answer(self._actors, [partial(call, some) for some in shares], took)
        return found

    def _all(self, calls: list[Callable[[Any], Any]]) -> list[Any]:
        answers: dict[int, Any] = {}
        each_answer(self._actors, calls, answers.__setitem__)
        return [answers[i] for i in range(len(calls))]


def spread(groups: Sequence[Hashable], costs: Sequence[float], shares: int) -> list[list[int]]:
    """Positions of n items in shares of about equal cost, ordered by group, so that few groups are split."""
    rank: dict[Hashable, int] = {}
    for group in groups:
        rank.setdefault(group, len(rank))
    order = sorted(range(len(groups)), key=lambda i: rank[groups[i]])
    cost = np.asarray(costs, np.float64)[order]
    middle = np.cumsum(cost) - cost / 2
    share = np.minimum(middle * shares // max(cost.sum(), 1), shares - 1)
    return [[i for i, of in zip(order, share, strict=True) if of == n] for n in range(shares)]


def _images(context: Context) -> Hashable:
    return tuple(id(part) for part in context if not isinstance(part, str)) or tuple(context)


def _portable(contexts: Iterable[Context]) -> list[list[Any]]:
    """The contexts with the bytes of files in place of their paths, each file read once."""
    read: dict[int, Any] = {}
    for context in contexts:
        for part in context:
            if isinstance(part, Image) and id(part) not in read:
                isfile = isinstance(part.content, Path)
                read[id(part)] = replace(part, content=read_bytes(part)) if isfile else part
    return [[read.get(id(part), part) for part in context] for context in contexts]


class _Model:
    def __init__(self, plugin: str, config: Mapping[str, Any]) -> None:
        self._generator = plugins.create("generator", plugin, config)

    def facts(self) -> dict[str, Any]:
        names = ["fingerprint"]
        if isinstance(self._generator, ImageStates):
            names += ["state_shape", "state_dtype"]
        return {name: getattr(self._generator, name) for name in names}

    def call(self, method: str, *given: Any, **settings: Any) -> Any:
        return getattr(self._generator, method)(*given, **settings)

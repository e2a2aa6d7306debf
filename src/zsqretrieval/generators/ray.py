"""A generator on several GPUs or machines: a model in each actor of Ray, pairs spread by their tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval import plugins
from zsqretrieval._util.checks import check_sequence, check_settings
from zsqretrieval._util.ray import Call, each_answer, start_actors
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
        facts: dict[str, Any] = {}
        each_answer(self._actors[:1], [Call("facts")], lambda _, found: facts.update(found))
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
        pairs = list(zip(_portable(contexts), continuations, strict=True))
        return self._shared(
            "log_likelihood",
            lambda some: tuple(map(list, zip(*(pairs[i] for i in some), strict=True))) or ([], []),
            list(map(_images, contexts)),
            costs,
            progress,
            batch_size=batch_size,
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
            "generate",
            lambda some: ([sent[i] for i in some],),
            [0] * len(contexts) if whole else list(range(len(contexts))),
            [0 if whole else self._tokens(context) for context in contexts],
            seed=seed,
            **settings,
        )

    def _image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> NDArray[Any]:
        """Run the vision part; see :meth:`zsqretrieval.protocols.ImageStates.image_states`."""
        sent = [context[0] for context in _portable([[image] for image in images])]
        found = self._shared(
            "image_states",
            lambda some: ([sent[i] for i in some],),
            list(range(len(images))),
            [1] * len(images),
            batch_size=batch_size,
        )
        return np.stack(found) if found else np.empty((0, *self.state_shape), self.state_dtype)

    def _tokens(self, parts: Context) -> int:
        """About how many tokens there are."""
        return sum(
            len(part) // _LETTERS + 1 if isinstance(part, str) else self._image_tokens for part in parts
        )

    def _shared(
        self,
        method: str,
        given: Callable[[list[int]], tuple[Any, ...]],
        groups: Sequence[Hashable],
        costs: Sequence[int],
        progress: Progress | None = None,
        **settings: Any,
    ) -> list[Any]:
        """Results of n items, of which each actor computes a share; ``given`` are the arguments for some."""
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

        each_answer(self._actors, [Call(method, given(some), settings) for some in shares], took)
        return found


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
        states = ("state_shape", "state_dtype") if isinstance(self._generator, ImageStates) else ()
        return {name: getattr(self._generator, name) for name in ("fingerprint", *states)}

    def __getattr__(self, method: str) -> Any:
        return getattr(self._generator, method)

"""A generator that is loaded on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast, final

from zsqretrieval import plugins
from zsqretrieval._util.processes import Lock
from zsqretrieval.protocols import Generator


@final
class LazyGenerator:
    """A generator that is loaded on first use, so that work without it loads no weights.

    Args:
        plugin: plugin name.
        config: its settings; missing ones take the generator's defaults.
    """

    def __init__(self, plugin: str, config: Mapping[str, Any] | None = None) -> None:
        self._plugin, self._config = plugin, dict(config or {})
        self._made: Generator | None = None
        self._lock = Lock()

    @classmethod
    def of(cls, generator: Generator | LazyGenerator) -> LazyGenerator:
        """Wrap a generator, unless it is lazy already; an InvalidInputError if it is none."""
        if isinstance(generator, LazyGenerator):
            return generator
        plugins.check_part("generator", generator)
        part = plugins.describe("generator", generator) or {"plugin": "", "config": {}}
        lazy = cls(part["plugin"], part["config"])
        lazy._made = generator
        return lazy

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._plugin, self._config)) if self._plugin else (type(self).of, (self._made,))

    def __repr__(self) -> str:
        return f"LazyGenerator({self._made if self._made is not None else f'{self._plugin!r}, not loaded'})"

    @property
    def part(self) -> dict[str, Any] | None:
        """The description (JSON) that rebuilds it; None when it is not a plugin with settings."""
        return {"plugin": self._plugin, "config": self._config} if self._plugin else None

    @property
    def made(self) -> Generator | None:
        """The generator, if it is loaded."""
        return self._made

    def get(self) -> Generator:
        """Load the generator on the first call, and return it; errors as its plugin's."""
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = cast(Generator, plugins.create("generator", self._plugin, self._config))
        return self._made

    @contextmanager
    def using(self) -> Iterator[Generator]:
        """Lend the generator to one thread at a time: one call keeps all cores busy."""
        with self._lock:
            yield self.get()

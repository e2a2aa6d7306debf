"""Progress bars of tqdm for the library's ``progress`` arguments."""

from __future__ import annotations

from typing import Any, final

from tqdm.auto import tqdm

from zsqretrieval.types import Progress


def tqdm_progress(**settings: Any) -> Progress:
    """A callback that shows one bar for each step, in a terminal and in a notebook.

    ``retriever.add("Pictures", progress=tqdm_progress())``. A bar closes when its step is complete, or when
    the callback is deleted.

    Args:
        **settings: of ``tqdm``, such as ``file`` or ``disable``; finished bars vanish unless ``leave=True``.
    """
    return _Bars(settings)


@final
class _Bars:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = {"leave": False, **settings}
        self._bars: dict[str, Any] = {}

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if step not in self._bars:
            self._bars[step] = tqdm(desc=step, total=total, **self._settings)
        bar = self._bars[step]
        if done < bar.n:  # the step begins again
            bar.reset()
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            self._bars.pop(step).close()

    def __del__(self) -> None:
        for bar in self._bars.values():
            bar.close()

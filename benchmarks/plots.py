"""Plots of measurements as SVG; the same numbers give the same file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from benchmarks.curves import BATCH, SINGLE, front
from zsqretrieval.evaluation.report.figures import MARKERS, PALETTE, legend, svg

_LEAST = 0.85  # recall


def pareto(facts: Mapping[str, Any]) -> str:
    """Recall against queries per second of every system of ``benchmarks.index``: its best settings."""

    def draw(figure: Any) -> None:
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

        panels = figure.subplots(2, 1, sharex=True)
        for axes, way, title in zip(panels, (BATCH, SINGLE), ("in one batch", "one by one"), strict=True):
            for (name, system), colour, marker in zip(
                facts["systems"].items(), cycle(PALETTE), cycle(MARKERS), strict=False
            ):
                recalls = [point["recall"] for point in system["curve"]]
                points = front(recalls, [point[f"{way}_qps"] for point in system["curve"]])
                shown = [point for point in points if point[0] >= _LEAST]
                own = name == facts["index"]
                axes.plot(
                    *zip(*shown, strict=True) if shown else ([], []), marker + "-", color=colour, label=name,
                    ms=4.5 if own else 3, lw=2.4 if own else 1,
                )  # fmt: skip
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))  # 500, 10k
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel("queries/s")
            axes.set_title(title, loc="left")
        panels[-1].set_xlabel("recall@10")
        legend(figure)

    return svg(draw, height=6)


def lines(rows: Sequence[Mapping[str, Any]], x: str, y: str, by: str | None, labels: tuple[str, str]) -> str:
    """One line for each value of a column ``by``, or one for all rows."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        names = list(dict.fromkeys(row[by] if by else "" for row in rows))
        for name, colour, marker in zip(names, cycle(PALETTE), cycle(MARKERS), strict=False):
            own = [(row[x], row[y]) for row in rows if not by or row[by] == name]
            axes.plot(*zip(*own, strict=True), marker + "-", color=colour, label=name, ms=4, lw=1.5)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        legend(figure)

    return svg(draw)

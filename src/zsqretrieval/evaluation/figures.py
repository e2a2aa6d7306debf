"""The figures of a report, as SVG; drawn by matplotlib without a display, the same for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from zsqretrieval.errors import MissingDependencyError
from zsqretrieval.evaluation.cost import Cost
from zsqretrieval.evaluation.findings import Part, Study
from zsqretrieval.evaluation.plan import BASELINE

__all__ = ["figures"]

_COLOURS = {
    BASELINE: "#666666",
    "likelihood": "#0072b2",
    "likelihood - prior": "#56b4e9",
    "yes_no": "#e69f00",
    "fused": "#009e73",
    "expand": "#cc79a7",
}  # M. Okabe, K. Ito: Color Universal Design, 2008
_COLOURS |= {"normalized": "#999933", "normalized_fused": "#117733"}  # P. Tol: Colour Schemes, muted
_OTHER = "#d55e00"
_PANEL = 3.4, 2.9  # inches
_MEASURE = "R@1"


def figures(study: Study) -> dict[str, tuple[str, str]]:
    """Draw a study.

    Returns:
        By file name, the SVG and what it shows, in words.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    drawn: dict[str, tuple[str, str]] = {}
    for direction in dict.fromkeys(part.direction for part in study.parts):
        parts = [part for part in study.parts if part.direction == direction]
        name = direction.replace(" ", "-")
        cost = study.cost if direction == "text to image" else None
        first = parts[0].results[0].measure
        with _style():
            drawn[f"forms-{name}.svg"] = (
                _bars(parts),
                f"{first} of every system by form of the texts, {direction}. Whiskers: 95 % intervals.",
            )
            if any(part.curve for part in parts):
                by = "milliseconds a query takes" if cost is not None else "candidates that are read"
                drawn[f"cost-{name}.svg"] = (
                    _panels(parts, partial(_curve, cost=cost)),
                    f"{_MEASURE} against {by}, {direction}. Numbers at the points: candidates. Broken lines: "
                    "how often the right one is among the most candidates at all. Bands: 95 % intervals.",
                )
            drawn[f"reliability-{name}.svg"] = (
                _panels(parts, _reliability),
                f"How often what the scores say is so, {direction}: on the diagonal they can be believed. "
                "Whiskers: 95 % intervals.",
            )
    return drawn


@contextmanager
def _style() -> Iterator[None]:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib", "drawing figures", "pip install 'zsqretrieval[evaluation]'"
        ) from error
    settings = {
        "svg.hashsalt": "zsqretrieval",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield


def _panels(parts: Sequence[Part], draw: Callable[[Any, Part], None]) -> str:
    from matplotlib.figure import Figure

    width, height = _PANEL
    columns = min(len(parts), 3)
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, part in zip(panels.flat, parts, strict=False):
        axes.set_title(part.form, fontsize=9)
        draw(axes, part)
    for axes in panels.flat[len(parts) :]:
        axes.set_axis_off()
    for row in panels:
        for axes in row[1:]:
            axes.set_ylabel("")
    labels: dict[str, Any] = {}
    for axes in panels.flat:
        labels |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _legend(figure, labels)
    return _svg(figure)


def _bars(parts: Sequence[Part]) -> str:
    from matplotlib.figure import Figure

    systems = list(dict.fromkeys(run.name for part in parts for run in part.runs))
    figure = Figure(figsize=(max(4.5, 1.9 * len(parts)), 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(systems)
    for n, system in enumerate(systems):
        places, means, whiskers = [], [], []
        for place, part in enumerate(parts):
            for one in part.results:
                if (one.system, one.measure) == (system, part.results[0].measure):
                    places.append(place + (n - (len(systems) - 1) / 2) * width)
                    means.append(100 * one.mean)
                    whiskers.append(_around(one.mean, one.interval))
        axes.bar(
            places,
            means,
            0.9 * width,
            yerr=list(zip(*whiskers, strict=True)),
            label=system,
            color=_COLOURS.get(system, _OTHER),
            error_kw={"lw": 1},
        )
    axes.set_xticks(range(len(parts)), [part.form for part in parts])
    axes.set_ylabel(f"{parts[0].results[0].measure} in %")
    handles, names = axes.get_legend_handles_labels()
    _legend(figure, dict(zip(names, handles, strict=True)))
    return _svg(figure)


def _curve(axes: Any, part: Part, *, cost: Cost | None) -> None:
    """Recall by depth, at the place of what that depth costs."""

    def place(system: str, depth: int) -> float | None:
        if cost is None:
            return float(depth)
        spent = cost.of(system, depth)
        return None if spent is None else 1000 * spent.seconds

    for system in dict.fromkeys(point.system for point in part.curve):
        points = [point for point in part.curve if (point.system, point.measure) == (system, _MEASURE)]
        placed = [(at, point) for point in points if (at := place(system, point.depth)) is not None]
        xs = [at for at, _ in placed]
        colour = _COLOURS.get(system, _OTHER)
        axes.plot(xs, [100 * point.mean for _, point in placed], "o-", ms=3, color=colour, label=system)
        low, high = zip(*(point.interval for _, point in placed), strict=True)
        axes.fill_between(
            xs, [100 * end for end in low], [100 * end for end in high], color=colour, alpha=0.15, lw=0
        )
        for at, point in placed:
            axes.annotate(
                str(point.depth),
                (at, 100 * point.mean),
                textcoords="offset points",
                xytext=(2, 3),
                fontsize=6,
                color=colour,
            )
    if part.ceiling:
        axes.axhline(100 * part.ceiling[-1].mean, ls="--", lw=0.8, color="#999999", label="ceiling")
    if cost is not None:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("candidates read" if cost is None else "ms a query")
    axes.set_ylabel(f"{_MEASURE} in %")


def _reliability(axes: Any, part: Part) -> None:
    axes.plot([0, 100], [0, 100], "--", lw=0.8, color="#999999")
    for one in part.reliability:
        whiskers = [
            (0.0, 0.0) if own.interval is None else _around(own.true, own.interval) for own in one.bins
        ]
        axes.errorbar(
            [100 * own.said for own in one.bins],
            [100 * own.true for own in one.bins],
            yerr=list(zip(*whiskers, strict=True)),
            fmt="o-",
            ms=3,
            lw=1,
            color=_COLOURS.get(one.system, _OTHER),
            label=f"{one.system}, {'P(yes)' if one.of.startswith('P') else 'first place'}",
        )
    axes.set_xlabel("said to be likely, %")
    axes.set_ylabel("is so, %")


def _around(mean: float, interval: tuple[float, float]) -> tuple[float, float]:
    """How far the ends of an interval lie from the mean, in percent."""
    low, high = interval
    return max(100 * (mean - low), 0.0), max(100 * (high - mean), 0.0)


def _legend(figure: Any, labels: Mapping[str, Any]) -> None:
    longest = max(map(len, labels))
    columns = max(int(figure.get_figwidth() / (0.6 + 0.07 * longest)), 1)  # inches a name takes, about
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=min(columns, len(labels)))


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()

"""Figures of a report as SVG, for a column of 400 px, in the light or dark colours of their reader.

Text and axes have ``currentColor``, which follows ``prefers-color-scheme`` through a style in the file. The
same numbers give the same file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import pandas as pd

from zsqretrieval._util.optional import import_optional
from zsqretrieval.evaluation.results import Results

PALETTE = ("#2b83ba", "#cc6d00", "#1a9464", "#b659a6", "#d1512d", "#8668c9", "#8a8a1f")
"""Colours of the series: a contrast of at least 3 with white and with #161615."""

_FIRST = "#7d7d78"  # of the first stage
_INK = "#010203"  # replaced by currentColor
MARKERS = "osD^vPX*"
_WIDTH = 3.75  # inches: 360 px
_ROW = 0.21  # inches of one system
_CEILING = (
    "Dashed: the ceiling, the share of queries with a right answer among so many candidates (numbers). "
    "Bands: 95 % intervals."
)
_CALIBRATED = "Calibrated scores lie on the diagonal. Whiskers: 95 % intervals."
_STYLE = (
    "svg{color:#22211f;font-family:system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#e9e6e1}}"
    "svg *{stroke-linejoin:round;stroke-linecap:butt}"
)


def figures(results: Results) -> dict[str, tuple[str, str]]:
    """Draw the results: SVG and caption by file name; MissingDependencyError without matplotlib."""
    ranked = results.table[results.table["group"].isin(["systems", "dialogs", "scaling"])]
    systems = [name for name in ranked["system"].unique() if name != results.facts["first_stage"]]
    series = dict(zip(systems, zip(cycle(PALETTE), cycle(MARKERS)), strict=False))
    series[results.facts["first_stage"]] = (_FIRST, "o")
    return {
        f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.svg": (svg(partial(draw, series=series)), caption)
        for name, draw, caption in _plans(results)
    }


_Series = Mapping[str, tuple[str, str]]  # colour and marker of every system
_Draw = Callable[..., None]  # into a figure of matplotlib, with series


def _plans(results: Results) -> Iterator[tuple[str, _Draw, str]]:
    """Name, drawing function and caption of every figure."""
    ways = results.table["direction"].dropna().unique()
    for way in ways:
        rows = results.select("systems", direction=way)
        for measure in rows["measure"].unique()[:1]:
            caption = f"{measure} of every system, {way}, with 95 % intervals."
            yield f"systems {way}", partial(_forest, rows[rows["measure"] == measure], measure), caption
    for way in ways:
        for form in results.select("curve", direction=way)["form"].unique():
            caption = f"R@1 as more candidates are re-ranked, {way}, {form} queries. {_CEILING}"
            yield f"depth {way} {form}", partial(_depths, results, way, form), caption
    for way in ways:
        for form in results.select("reliability", direction=way)["form"].unique():
            rows = results.select("reliability", direction=way, form=form)
            caption = f"Observed frequency by predicted probability, {way}, {form} queries. {_CALIBRATED}"
            yield f"reliability {way} {form}", partial(_reliability, rows), caption
    dialogs = results.select("dialogs", measure="Hits@10")
    for form in dialogs["form"].unique():
        draw = partial(_lines, dialogs[dialogs["form"] == form], "Hits@10", "answers")
        yield f"dialogs {form}", draw, f"Hits@10 by number of answers, {form}. Bands: 95 % intervals."
    scaling = results.select("scaling", measure="R@1")
    if len(shown := scaling[scaling["form"].isin(["measured", "envelope"])]):
        draw = partial(_lines, shown, "R@1", "images in the gallery", log=True)
        yield "scaling", draw, "R@1 by the size of the gallery: measured (points), extrapolated (bands)."


def _forest(rows: pd.DataFrame, measure: str, figure: Any, series: _Series) -> None:
    """One line for each system with its interval, a block for each form."""
    forms = list(rows["form"].unique())
    counts = [int((rows["form"] == form).sum()) for form in forms]
    figure.set_size_inches(_WIDTH, _ROW * sum(counts) + 0.3 * len(forms) + 0.35)
    panels = figure.subplots(len(forms), 1, sharex=True, squeeze=False, height_ratios=counts)[:, 0]
    for axes, form in zip(panels, forms, strict=True):
        own = rows[rows["form"] == form].reset_index()
        for place, row in own.iterrows():
            colour, marker = series[row["system"]]
            around = _around(own.loc[[place]])
            axes.errorbar(100 * row["value"], place, xerr=around, fmt=marker, color=colour, ms=5, lw=1.8)
        for first in own[own["gain"].isna()]["value"]:
            axes.axvline(100 * first, ls=":", lw=1, color=_FIRST, zorder=0)
        axes.set_yticks(range(len(own)), own["system"])
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_title(form, loc="left")
    panels[-1].set_xlabel(f"{measure}, %")


def _depths(results: Results, way: str, form: str, figure: Any, series: _Series) -> None:
    """R@1 and the ceiling by the time of a query, or by depth where no times were measured."""
    times = results.select("cost", form="system", measure="time")[["system", "depth", "value"]]
    curve = results.select("curve", direction=way, form=form, measure="R@1").merge(
        times.rename(columns={"value": "time"}), on=["system", "depth"], how="left"
    )
    across = "time" if way == "text to image" and curve["time"].notna().all() else "depth"
    shared = curve[curve["system"] == curve["system"].iloc[0]][["depth", "time"]]
    ceiling = results.select("ceiling", direction=way, form=form).merge(shared, on="depth")
    label = "ms a query" if across == "time" else "candidates re-ranked"
    _lines(curve, "R@1", label, figure, series, across=across, log=across == "time")
    (axes,) = figure.axes
    axes.plot(ceiling[across], 100 * ceiling["value"], "--", lw=1.2, color=_FIRST)
    for row in ceiling.to_dict("records"):
        axes.annotate(row["depth"], (row[across], 100 * row["value"]), (0, 4), ha="center",
                      textcoords="offset points")  # fmt: skip
    axes.set_ylim(0, max(axes.dataLim.y1 * 1.12, 1))


def _reliability(rows: pd.DataFrame, figure: Any, series: _Series) -> None:
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], "--", lw=1, color=_FIRST)
    for system, own in rows[rows["depth"].notna()].groupby("system", sort=False):
        predicted = own[own["measure"] == "predicted"].set_index("depth")["value"]
        observed = own[own["measure"] == "observed"].set_index("depth")
        colour, marker = series[system]
        axes.errorbar(
            100 * predicted[observed.index], 100 * observed["value"],
            yerr=_around(observed), fmt=marker + "-", color=colour, ms=3.5, lw=1.2, label=system,
        )  # fmt: skip
    ends = {"xlim": (-3, 103), "ylim": (-3, 103)}
    axes.set(xlabel="predicted probability, %", ylabel="observed frequency, %", **ends)
    legend(figure)


def _lines(
    rows: pd.DataFrame,
    measure: str,
    label: str,
    figure: Any,
    series: _Series,
    *,
    across: str = "depth",
    log: bool = False,
) -> None:
    """The measure by another column: a line with a band for each system, a band alone without a value."""
    axes = figure.subplots()
    for system, own in rows.sort_values("depth").groupby("system", sort=False):
        colour, marker = series[system]
        for _, part in own.groupby(own["value"].isna()):
            x, y, low, high = (part[name].astype(float) for name in (across, "value", "low", "high"))
            axes.plot(x, 100 * y, marker + "-", ms=4, lw=1.5, color=colour, label=system)
            axes.fill_between(x, 100 * low, 100 * high, color=colour, alpha=0.18, lw=0)
    if log:
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if rows[across].max() < 1e4 else (1,)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500, 10k, 1M
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.set(xlabel=label, ylabel=f"{measure}, %")
    legend(figure)


def _around(rows: pd.DataFrame) -> Any:
    """Distances of the ends of the intervals from the values in percent, [2, n]; 0 without an interval."""
    ends = pd.DataFrame([rows["value"] - rows["low"], rows["high"] - rows["value"]])
    return 100 * ends.fillna(0).clip(lower=0).to_numpy()


def legend(figure: Any) -> None:
    """One legend above all panels."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    labels = dict(zip(names, handles, strict=True))
    if len(labels) > 1:
        columns = max(int(46 / (4 + max(map(len, labels)))), 1)  # about 46 letters a line
        figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=columns)


@contextmanager
def _style() -> Iterator[None]:
    mpl = import_optional("matplotlib", "drawing figures", "pip install 'zsqretrieval[evaluation]'")
    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        _INK,
    )
    settings = {
        **ink,
        "svg.hashsalt": "zsqretrieval", "svg.fonttype": "none", "text.parse_math": False,
        "font.size": 9.5, "axes.titlesize": 9.5, "axes.labelsize": 9.5, "legend.fontsize": 9.5,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "legend.frameon": False, "legend.columnspacing": 1.2, "legend.handlelength": 1.4,
        "axes.facecolor": "none", "savefig.transparent": True, "figure.constrained_layout.h_pad": 0.03,
    }  # fmt: skip
    with mpl.rc_context(settings):
        yield


def svg(draw: Callable[[Any], None], height: float = 2.7) -> str:
    """Let a function draw into an empty figure of matplotlib; MissingDependencyError without it."""
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue().replace(_INK, "currentColor")
    text = re.sub(r"<style[^>]*>.*?</style>", f"<style>{_STYLE}</style>", text, flags=re.S)
    return re.sub(r"font-family: [^;\"]*;?", "", text[text.index("<svg") :])

"""Tables of a report: numbers of the results as text, one pivot for every table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from zsqretrieval.evaluation.results import Results

COMPARED = ("R@1", "R@10")
"""Measures of systems and ablations whose difference to the baseline has a column."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text."""

    title: str
    frame: pd.DataFrame  # cells; a column ``run`` holds the file that ``system`` links to, or ""
    note: str = ""  # a paragraph below the heading

    @property
    def numeric(self) -> dict[str, bool]:
        """By column, without ``run``: whether every cell begins with a number."""
        shown = self.frame.drop(columns="run", errors="ignore").items()
        return {str(name): all(re.match(r"[+-]?\d|$", cell) for cell in cells) for name, cells in shown}


def tables(results: Results) -> list[Table]:
    """All tables of the results that have rows."""
    facts = results.facts
    made = [Table(title, _pivot(rows, names), _NOTES.get(note, note))
            for title, note, rows, names in _sections(results)]  # fmt: skip
    made.append(_reranking_time(facts.get("scaling", {}).get("cost")))
    made.append(Table("Checks", _flat(facts.get("checks", {})), _NOTES["checks"]))
    made.append(Table("Parameters", _flat(facts.get("choice", {}))))
    return [table for table in made if len(table.frame)]


def _sections(results: Results) -> Iterator[tuple[str, str, pd.DataFrame, dict[str, str]]]:
    """Title, note, rows and names of columns of every table of numbers."""
    facts, ways = results.facts, results.table["direction"].dropna().unique()
    for way in ways:
        yield way.capitalize(), "systems", results.select("systems", direction=way), {}
    parts = "; ".join(f"`{name}`: {about}" for name, about in facts.get("ablations", {}).items())
    for way in ways:
        note = f"{_NOTES['ablations']} {parts}"
        yield f"Ablations, {way}", note, results.select("ablations", direction=way), {}
    for way in ways:
        yield f"Quality and cost by depth, {way}", "depth", _by_depth(results, way), {}
    rows, meanings = results.select("reliability"), dict[str, dict[str, None]]()
    for own in facts.get("probabilities", {}).values():
        for system, meaning in own.items():
            meanings.setdefault(meaning, {})[f"`{system}`"] = None
    listed = "; ".join(f"{meaning} ({', '.join(names)})" for meaning, names in meanings.items())
    note = f"{_NOTES['reliability']} {listed}"
    yield "Reliability of scores", note, rows[rows["depth"].isna()], {"queries": "observations"}
    rated = {"form": "ratings", "queries": "pairs"}
    yield "Agreement with people", "agreement", results.select("agreement"), rated
    cost, names = results.select("cost"), {"form": "kind", "queries": "calls"}
    once = cost["form"].isin(["image", "storage", "memory"])
    yield "Cost of a query", "cost", cost[~once], names
    yield "Cost of an image", "", cost[once], names
    names = {"form": "user", "system": "policy", "depth": "answers"}
    yield "Dialogs", "dialogs", results.select("dialogs"), names
    scaling, names = results.select("scaling"), {"form": "kind", "depth": "images"}
    form, needed = scaling["form"].astype(str), scaling["measure"] == "candidates needed"
    measured = form.isin(["measured", "hard synthetic"])
    yield "Gallery size, measured", "scaling", scaling[measured], names
    yield "Models of gallery size, checked", "held out", scaling[form.str.startswith("held out")], names
    yield "Gallery size, extrapolated", "extrapolated", scaling[form == "envelope"], names
    ceiling = facts.get("scaling", {}).get("ceiling", {"value": 0})["value"]
    yield "Candidates needed", _NOTES["needed"].format(100 * ceiling), scaling[needed], names


def _by_depth(results: Results, way: str) -> pd.DataFrame:
    """Rows of the curves, and those of the ceiling and (text to image) the cost at the same depths."""
    curve = results.select("curve", direction=way)
    points = curve[["system", "form", "direction", "depth"]].drop_duplicates()
    ceiling = results.select("ceiling", direction=way).drop(columns="system")
    cost = results.select("cost", form="system").drop(columns=["form", "direction"])
    at_depths = [ceiling.merge(points, on=["form", "direction", "depth"])]
    if way == "text to image":
        at_depths.append(cost.merge(points, on=["system", "depth"]))
    return cast(pd.DataFrame, pd.concat([curve, *at_depths]))


def _pivot(rows: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """One row of text for every form, system and depth; one column for every measure and its gain."""
    names = {"form": "queries", "depth": "candidates", "queries": "number", **names}
    keys = [name for name in ("form", "system", "depth") if rows[name].notna().any()]
    if set(rows["group"]) <= {"systems", "ablations"} and rows["depth"].nunique() < 2:
        keys = [name for name in keys if name != "depth"]  # one number of candidates, named elsewhere
    if rows["direction"].nunique() > 1:
        keys.insert(0, "direction")
    counted = rows["queries"].nunique() > 1 and "curve" not in set(rows["group"])
    against = rows["baseline"].dropna().unique()
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in records(rows):
        own = cells.setdefault(tuple(_text(row[name]) for name in keys), {})
        for name in (*keys, "queries") if counted else keys:
            own.setdefault(names.get(name, name), _text(row[name]))
        if len(against) > 1:
            own["compared with"] = _text(row["baseline"])
        if pd.notna(row["run"]):
            own["run"] = row["run"]
        unit = "GFLOP" if row["measure"] == "flops" else row["unit"]
        own[f"{row['measure']} ({unit})" if unit else row["measure"]] = number(row)
        compared = row["group"] not in ("systems", "ablations") or row["measure"] in COMPARED
        if compared and pd.notna(row["gain"]):
            base = f" against {against[0]}" if len(against) == 1 else ", difference"
            own[row["measure"] + base] = difference(row)
    return frame_of(cells.values())


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries by column."""
    return cast(list[dict[str, Any]], rows.to_dict("records"))


def frame_of(cells: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """A frame of text from its rows; missing cells are empty."""
    return cast(pd.DataFrame, pd.DataFrame(list(cells)).fillna(""))


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return value if isinstance(value, str) else f"{value:,}"


def number(row: Mapping[str, Any]) -> str:
    """The value and its 95 % interval, such as ``28.5 (25.7 to 31.4)``, in the row's unit."""
    value, low, high = (_digits(row[name], row) for name in ("value", "low", "high"))
    if not low:
        return value
    return f"{value} ({low} to {high})" if value else f"{low} to {high}"


def difference(row: Mapping[str, Any]) -> str:
    """The gain, its interval and p, such as ``+0.9 (-1.1 to +3.0), p = 0.83``."""
    gain, low, high = (_digits(row[name], row, "+") for name in ("gain", "gain_low", "gain_high"))
    return f"{gain} ({low} to {high})" + (f", {p_value(row['p'])}" if pd.notna(row["p"]) else "")


def p_value(p: float) -> str:
    """``p = 0.83``: two digits, or one below 0.001."""
    return f"p = {p:.2g}" if p >= 0.001 else f"p = {p:.1g}"


def _digits(value: float, row: Mapping[str, Any], sign: str = "") -> str:
    if pd.isna(value):
        return ""
    if row["unit"] == "%":
        return f"{100 * value:{sign}.1f}" if sign or value == 0 or value >= 0.001 else f"{100 * value:.2g}"
    if row["measure"] == "flops":
        return f"{value / 1e9:.3g}"
    if row["measure"].startswith("tau"):
        return f"{value:{sign}.3f}"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 or row["unit"] == "bytes" else f"{value:{sign}.3g}"


def _flat(facts: Mapping[str, Any]) -> pd.DataFrame:
    """Nested dictionaries as rows of name and value; lists are left out."""
    flat = pd.json_normalize(dict(facts), sep=", ").to_dict("records")[0] if facts else {}
    return frame_of(
        {"name": str(name).replace("_", " "), "value": f"{one:.4g}" if isinstance(one, float) else str(one)}
        for name, one in flat.items()
        if not isinstance(one, list)
    )


def _reranking_time(cost: Mapping[str, Any] | None) -> Table:
    """Seconds of re-ranking on a large accelerator, from the facts of scaling."""
    rows = [
        {"candidates": f"{one['candidates']:,}"}
        | {f"seconds, from {kept}": f"{seconds:,.3g}" for kept, seconds in one["seconds"].items()}
        for one in (cost or {}).get("per_query", ())
    ]
    return Table(
        "Time of re-ranking with Kosmos-2", frame_of(rows), _NOTES["time"].format_map(cost) if cost else ""
    )


def software(bench: Mapping[str, Any]) -> pd.DataFrame:
    """Times of other software beside this library, from the JSON of ``benchmarks.alternatives``."""
    rows = []
    for contest, spread in bench["spread"].items():
        for route, one in bench[contest].items():
            cells = {"contest": contest.replace("_", " "), "route": route}
            if one["missing"] is None:
                for name in ("seconds", "times_ours"):
                    low, high = one[f"{name}_range"]
                    cells[name.replace("_", " ")] = f"{one[name]:.3g} ({low:.3g} to {high:.3g})"
            unlike = f"{one['max_abs_diff']:.1g} (spread {spread:.1g})" if one["missing"] is None else ""
            rows.append(cells | {"largest difference": unlike or f"not installed: {one['missing']}"})
    return frame_of(rows)


_NOTES = {
    "systems": (
        "Mean over the queries and its 95 % interval, a percentile bootstrap over images with all their "
        "texts. Differences are paired, in points; p is from a permutation test over whole images, "
        "Holm-corrected over the systems. Equal scores are ranked against a system. Candidates that are "
        "not re-ranked keep their order below the others."
    ),
    "ablations": (
        "Each row replaces one part of the system that it is compared with, on a sample of the queries. "
        "`chance`: candidates in random order. Equal scores are ranked against a system, so one that "
        "cannot tell images apart has 0."
    ),
    "depth": (
        "Every depth comes from the scores of the largest. Ceiling: recall of the first stage at that "
        "depth; no recall at as many places or fewer can exceed it."
    ),
    "reliability": (
        "Expected calibration error over ten bins of equally many observations: the mean distance of "
        "predicted probabilities from observed frequencies. It is too high where observations are few. "
        "Tied: share of the candidates whose score another candidate of the query has too. Predicted "
        "probabilities:"
    ),
    "agreement": (
        "Kendall's tau between scores and human ratings of captions, by the conventions of CLIPScore; "
        "intervals are over images. CLIPScore with CLIP ViT-B/32 has 0.512 (Flickr8k-Expert) and 0.344 "
        "(Flickr8k-CrowdFlower) as published. Each system links to its scores of all pairs."
    ),
    "cost": (
        "One query at a time on this machine: median and its interval. GFLOP as torch counts them, a "
        "multiplication with its addition as two; empty where they were not counted."
    ),
    "dialogs": (
        "Hits@10: the target image has been among the first ten by then. R@10: it is among them now. "
        "BRI: best rank integral of the whole dialog, lower is better."
    ),
    "scaling": (
        "`@10` and `@50`: the first 10 or 50 candidates are re-ranked. Hard synthetic: vectors made up "
        "near the queries are added, a worst case."
    ),
    "held out": (
        "Each model of how hard queries are is fitted to a tenth of the images and predicts the whole "
        "gallery."
    ),
    "extrapolated": (
        "Not measured: from the lowest to the highest end of the intervals of all models, under the "
        "assumptions below."
    ),
    "needed": (
        "By model: candidates that the first stage must return to keep its ceiling in the measured "
        "gallery, {:.1f} % of the relevant images."
    ),
    "time": "{model}; {accelerator}. Not included: {left_out}.",
    "checks": "Counts and largest values, without interval.",
}

"""Answers in plain words: is a system better than the first stage, how sure is that, at what cost?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from zsqretrieval.evaluation.report.tables import COMPARED, difference, frame_of, number, p_value, records
from zsqretrieval.evaluation.results import Results

SIGNIFICANT = 0.05
"""Differences with a Holm-corrected p below this are called significant."""

_SUBJECTS = {
    "fused": "Combined with the score of {} (`fused`), the generator's likelihood",
    "likelihood": "Alone (`likelihood`), the generator's likelihood",
    "normalized+fused": "Combined with {} and a query bank (`normalized+fused`), the generator's likelihood",
    "yes_no": "Alone (`yes_no`), the generator's answer yes or no",
    "expanded": "With generated questions for every image (`expanded`), the first stage",
    "normalized": "With a query bank (`normalized`), the first stage",
}
"""Subjects of the sentences; the first two systems that were measured are told."""


def outcome(row: Mapping[str, Any]) -> str:
    """``better``, ``worse`` or ``no significant difference``, of a row with a gain."""
    if row["p"] >= SIGNIFICANT:
        return "no significant difference"
    return "better" if row["gain"] > 0 else "worse"


def answer(results: Results) -> list[str]:
    """Three sentences: the generator combined with the first stage, the generator alone, the cost.

    Other systems take the place of those that were not measured; without times there is no sentence on cost.
    Text to image if it was measured, else image to text.
    """
    first, way = results.facts["first_stage"], _direction(results)
    rows = results.select("systems", direction=way, measure="R@1")
    compared = rows[rows["gain"].notna()]
    if not len(compared):
        told = "; ".join(f"{number(row)} % of {row['form']} queries" for row in records(rows))
        return [f"Only {first} was measured. Its first result is right for {told}."] if told else []
    named = [name for name in _SUBJECTS if name in set(compared["system"])][:2]
    sentences = [_sentence(compared[compared["system"] == name], name, first, way) for name in named]
    slow, fast = (_time(results, name) for name in (*named[:1], first))
    if way == "text to image" and slow is not None and fast is not None:
        times = f"{slow['value'] / fast['value']:.2g} times as long"
        sentences.append(f"A query takes {number(slow)} ms instead of {number(fast)} ms, {times}.")
    return sentences


def _sentence(rows: pd.DataFrame, system: str, first: str, way: str) -> str:
    items = "images" if way == "text to image" else "texts"
    verbs = {
        "better": f"finds more {items} than {first}",
        "worse": f"finds fewer {items} than {first}",
        "no significant difference": "makes no significant difference",
    }
    clauses: dict[str, list[str]] = {}
    for row in records(rows):
        gain, low, high = (f"{100 * row[name]:+.1f}" for name in ("gain", "gain_low", "gain_high"))
        sure = f"R@1 {gain} points, 95 % CI {low} to {high}, {p_value(row['p'])}"
        clauses.setdefault(verbs[outcome(row)], []).append(f"{row['form']} queries ({sure})")
    told = "; it ".join(f"{verb} for {' and '.join(forms)}" for verb, forms in clauses.items())
    return f"{_SUBJECTS[system].format(first)} {told}."


def _direction(results: Results) -> str:
    ways = set(results.select("systems")["direction"])
    return "text to image" if "text to image" in ways else "image to text"


def _time(results: Results, system: str) -> dict[str, Any] | None:
    """The row of the time of a query, with as many candidates as the system re-ranks."""
    times = results.select("cost", form="system", measure="time", system=system)
    by_depth = {row["depth"] if pd.notna(row["depth"]) else 0: row for row in records(times)}
    measured = results.select("systems", system=system)["depth"].dropna()
    return next((by_depth[depth] for depth in (*measured, 0) if depth in by_depth), None)


def summary(results: Results) -> pd.DataFrame:
    """The table that answers: R@1 and R@10 of every system, the comparison in words, the time of a query."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in records(results.select("systems", direction=_direction(results))):
        form, system = row["form"], row["system"]
        own = cells.setdefault((form, system), {"queries": form, "system": system})
        own["run"] = row["run"] if pd.notna(row["run"]) else ""
        if row["measure"] in COMPARED:
            own[f"{row['measure']} (%)"] = number(row)
            against = "" if pd.isna(row["gain"]) else f"{outcome(row)}: {difference(row)}"
            own[f"{row['measure']} against {results.facts['first_stage']}"] = against
    for own in cells.values():
        if _direction(results) == "text to image" and (time := _time(results, own["system"])) is not None:
            own["ms a query"] = number(time)
    return frame_of(cells.values())

"""Comparison of runs, and the table of results."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.evaluation.datasets import Task
from zsqretrieval.evaluation.results import COLUMNS, Results, compare, row, table_of
from zsqretrieval.evaluation.run import Run


def three_runs() -> list[Run]:
    """40 images with two captions and a question each; ``good`` finds every caption's image, ``bad`` half."""
    images = tuple(f"i{n}" for n in range(40))
    queries = tuple(f"{image}#{n}" for image in images for n in range(3))
    forms = ("caption", "caption", "question") * 40
    owner = np.repeat(np.arange(40), 3)
    task = Task("toy", queries, images, {q: {q.split("#")[0]: 1} for q in queries}, owner, forms)
    candidates = np.stack([owner, (owner + 1) % 40], 1)
    right = np.stack([np.ones(120), np.zeros(120)], 1)
    wrong = np.where((owner % 2 == 0)[:, None], right, right[:, ::-1])
    runs = [Run("bad", task, candidates, wrong), Run("good", task, candidates, right)]
    return [*runs, Run("same", task, candidates, wrong * 3)]


def test_systems_are_compared_per_form() -> None:
    runs = three_runs()
    rows = compare(runs, baseline="bad", measures=["R@1", "MRR"], permutations=499, depth=2)
    assert [(one["form"], one["measure"], one["system"]) for one in rows] == [
        (form, name, run.name) for form in ("caption", "question") for name in ("R@1", "MRR") for run in runs
    ]
    by_key = {(one["form"], one["measure"], one["system"]): one for one in rows}
    good = by_key["caption", "R@1", "good"]
    assert (good["queries"], good["value"], good["low"], good["high"]) == (80, 1.0, 1.0, 1.0)
    assert (good["baseline"], good["gain"], good["depth"]) == ("bad", 0.5, 2)
    assert good["p"] == 2 * 2 / 500, "Holm-corrected for two systems"
    low, high = good["gain_low"], good["gain_high"]
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / np.sqrt(40), abs=0.03) and high > 0.6
    bad, same = by_key["question", "MRR", "bad"], by_key["question", "MRR", "same"]
    assert "baseline" not in bad and bad["value"] == same["value"] == 0.75
    assert (same["gain"], same["p"]) == (0, 1)
    assert compare(runs, baseline="bad", measures=["R@1", "MRR"], permutations=499, depth=2) == rows


def test_runs_of_other_names_or_queries_are_refused() -> None:
    runs = three_runs()
    for some, baseline in (([runs[0], runs[0]], "bad"), (runs, "clip")):
        with pytest.raises(InvalidInputError, match=f"need different names, one of them '{baseline}'"):
            compare(some, baseline=baseline)
    other = replace(runs[0], name="other", task=replace(runs[0].task))
    with pytest.raises(MismatchError, match="run 'other' is of another task than 'bad', toy"):
        compare([*runs, other], baseline="bad")


def test_results_survive_json_and_missing_values_are_null() -> None:
    rows = [row("systems", "mini", "R@1", 0.25, form="caption", depth=3), row("cost", "process", "size", 7)]
    results = Results(table_of(rows), {"first_stage": "mini"})
    text = results.to_json()
    document = json.loads(text)
    assert list(document["table"][0]) == list(COLUMNS) and document["table"][0]["low"] is None
    again = Results.from_json(text)
    assert again.table.equals(results.table) and again.table.dtypes.equals(results.table.dtypes)
    assert again.facts == results.facts and len(again.select("systems", depth=3)) == 1
    more = results.plus([row("dialogs", "mini", "R@1", 0.5)], dialogs={"rounds": 5})
    assert list(more.table["group"]) == ["systems", "cost", "dialogs"]
    assert more.facts == {"first_stage": "mini", "dialogs": {"rounds": 5}}
    assert more.table.dtypes.equals(results.table.dtypes)


def test_unknown_columns_and_other_documents_are_refused() -> None:
    with pytest.raises(TypeError, match="no column 'colour'"):
        table_of([row("systems", "mini", "R@1", 0.25, colour="red")])
    for text in ("", "[]", '{"facts": {}}'):
        with pytest.raises(InvalidInputError, match="not the results of an evaluation"):
            Results.from_json(text)

"""Systems with something taken away, on a sample of the queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.evaluation.comparison import Result, compare
from zsqretrieval.evaluation.findings import Choice
from zsqretrieval.evaluation.runs import (
    GeneratorSystem,
    Run,
    first_stage,
    fused_run,
    rerank_depth,
    shallow,
    some_queries,
    some_rows,
)
from zsqretrieval.evaluation.systems import WORDINGS, NoImage, Shuffled
from zsqretrieval.evaluation.workbench import Scores, Workbench, labelled
from zsqretrieval.search.scoring import Likelihood

__all__ = ["ablated", "pixels_against_states"]

_ABLATED = ("R@1", "R@10", "MRR")
_COMPARED = 20, 10  # queries and candidates whose pixels are read again


def ablated(
    bench: Workbench, scores: Scores, choice: Choice, rows: NDArray[np.int64]
) -> tuple[dict[str, tuple[Result, ...]], tuple[Run, ...]]:
    """Compare systems that lack something with what they lack it of.

    Args:
        bench: computes what is not known yet.
        scores: of a direction and form.
        choice: the parameters.
        rows: int64 [r], places of the queries that are looked at.

    Returns:
        By the name of the whole system, results of it and of those that lack something; and the runs of the
        latter.
    """
    plan, data = bench.plan, scores.dataset
    task, first = some_queries(scores.task, rows), some_rows(scores.first, rows)
    read = shallow(first, plan.candidates)
    groups: dict[str, list[Run]] = {"likelihood": [], "yes_no": [], "fused": []}
    if plan.wants("no_image"):
        texts = {query.id: query.text for query in data.queries}
        asked = read.queries if scores.priors is None else read.items
        known = scores.priors if scores.priors is not None else bench.priors([texts[id] for id in asked])
        priors = dict(zip(asked, known.tolist(), strict=True))
        groups["likelihood"].append(NoImage(priors).run(data, read))
    if plan.wants("shuffled"):
        shuffled = Shuffled(bench.system(Likelihood()), plan.seed)
        told = labelled(bench.told, "shuffled")
        groups["likelihood"].append(shuffled.run(data, read, progress=told))
    if plan.wants("wording"):
        for name, scoring in WORDINGS.items():
            told = labelled(bench.told, name)
            if scoring.name == "likelihood" or scores.yes_no is not None:
                run = bench.system(scoring).run(data, read, progress=told)
                groups[scoring.name].append(replace(run, name=name))
    if plan.wants("mean"):
        believed = shallow(some_rows(scores.believed(choice.alpha), rows), plan.candidates)
        believed = bench.per_token(data, believed)
        fusion = choice.fusion_of_mean[first.direction]
        groups["fused"].append(fused_run(read, believed, fusion, "fused: mean"))
    if plan.wants("prior") and scores.priors is not None and scores.likelihood is not None:
        likelihood = some_rows(scores.likelihood, rows)
        fusion = choice.fusion[first.direction]
        groups["fused"].append(fused_run(read, likelihood, fusion, "fused: no prior"))
    answers = {
        base: [replace(rerank_depth(first, run, plan.candidates), name=run.name) for run in without]
        for base, without in groups.items()
        if without
    }
    results = {
        base: compare(
            task,
            [some_rows(scores.answer(base, choice, plan.candidates), rows), *runs],
            baseline=base,
            measures=_ABLATED,
            resamples=plan.resamples,
            permutations=plan.permutations,
            seed=plan.seed,
        )
        for base, runs in answers.items()
    }
    return results, tuple(run for runs in answers.values() for run in runs)


def pixels_against_states(bench: Workbench) -> dict[str, Any]:
    """How far likelihoods from pixels lie from those of stored states, for a few queries and candidates.

    Returns:
        ``largest_difference`` in nats, beside the ``largest_score``, over so many ``pairs``; and of how many
        ``queries`` the candidates come in another order.
    """
    queries, candidates = _COMPARED
    form = bench.dataset.forms[0]
    data = bench.dataset.of_form(form).sample(queries, seed=bench.plan.seed)
    first = first_stage(bench.encoder, data, candidates=candidates)
    by_state = GeneratorSystem(bench.generator, Likelihood(), bench.shown).run(data, first)
    by_pixels = GeneratorSystem(bench.generator, Likelihood(), data.gallery).run(data, first)
    orders = [np.argsort(-run.scores, axis=1, kind="stable") for run in (by_state, by_pixels)]
    return {
        "form": form,
        "pairs": int(first.candidates.size),
        "largest_difference": float(np.abs(by_state.scores - by_pixels.scores).max()),
        "largest_score": float(np.abs(by_pixels.scores).max()),
        "queries": len(first.queries),
        "queries_in_another_order": int((orders[0] != orders[1]).any(axis=1).sum()),
    }

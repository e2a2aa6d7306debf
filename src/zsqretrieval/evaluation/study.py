"""A whole comparison on one data set: systems, directions, forms, depths, ablations, cost.

    Dataset --per direction and form--> first stage --scoring, once, at the largest depth--> Runs
        Runs --compare--> results          --rerank_depth--> curves of quality against depth
             --calibration--> reliability  --> examples won and lost, ablations on a sample of the queries
    another split --tuning--> weights, before anything is measured

All that takes long is kept in a folder under names of what it was computed of, so an interrupted study goes
on where it was, and one with another system or form computes only what is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.evaluation.ablations import ablated, pixels_against_states
from zsqretrieval.evaluation.agreement import agreement
from zsqretrieval.evaluation.calibration import first_place_reliability, relevant, yes_no_reliability
from zsqretrieval.evaluation.comparison import compare
from zsqretrieval.evaluation.cost import Cost, bytes_per_image, image_costs, peak_memory, query_costs
from zsqretrieval.evaluation.datasets import Dataset, Qrels
from zsqretrieval.evaluation.findings import Choice, Example, Part, Point, Study
from zsqretrieval.evaluation.human import Judgments
from zsqretrieval.evaluation.intervals import ClusterBootstrap
from zsqretrieval.evaluation.measures import break_ties, measure
from zsqretrieval.evaluation.plan import BASELINE, NORMALIZED, Plan, with_forms
from zsqretrieval.evaluation.progress import Progress, encode_in_parts, untold
from zsqretrieval.evaluation.remembered import kept_vectors
from zsqretrieval.evaluation.runs import Direction, Run, shallow, some_rows
from zsqretrieval.evaluation.tuning import check_tuning, tuned
from zsqretrieval.evaluation.workbench import Scores, Workbench, labelled, sample_places
from zsqretrieval.protocols import Encoder, Generator, ImageStates, Index
from zsqretrieval.search.fusion import WeightedSum
from zsqretrieval.search.scoring import Likelihood, Scoring, YesNo

__all__ = ["measure_cost", "measure_part", "run_study"]

_CURVE = ("R@1", "R@5", "R@10", "MRR")
_EXAMPLES = 4  # won, and as many lost, of each form
_SHOWN = 3  # images of an example
_TIMED = 10  # queries asked one at a time
_TIMED_IMAGES = 32


def run_study(
    encoder: Encoder,
    generator: Generator,
    dataset: Dataset,
    plan: Plan,
    *,
    work: Path,
    forms: Sequence[str] | None = None,
    tune_on: Dataset | None = None,
    judgments: Sequence[Judgments] = (),
    index: Index | None = None,
    cost: bool = True,
    progress: Progress | None = None,
) -> Study:
    """Measure systems on a data set.

    Args:
        encoder: the first stage; compares exactly.
        generator: reads the candidates, and asks the images.
        dataset: as it was read.
        plan: what is measured.
        work: folder that keeps vectors, scores and questions; made when missing.
        forms: as :func:`with_forms`.
        tune_on: another split, on which the weights of both fusions, of the expansion and of the prior are
            chosen: the best mean R@1 over the forms, then R@5, then R@10, the smallest of equal ones.
        judgments: human ratings of pairs of the data set's images and captions.
        index: an empty one, whose size is measured.
        cost: measure times and arithmetic.
        progress: told how far it is.

    Raises:
        InvalidInputError: no such form; weights tuned on the images they are measured on, or of fusions
            without a weight.
        ZsqError: a scorer gave a number that is none; names the text and the image.
        OSError: ``work`` cannot be written to.
    """
    told = progress or untold
    dataset = with_forms(dataset, forms)
    if tune_on is not None:
        tune_on = with_forms(tune_on, dataset.forms)
        check_tuning(plan, dataset, tune_on)
    work = Path(work)
    with kept_vectors(encoder, work) as keeping:
        same = dict.fromkeys(plan.directions, plan.fusion)
        choice = Choice(same, same, plan.alpha, plan.expansion, plan.fusion_from)
        if tune_on is not None:
            # Yes or no has nothing to tune, and curves are not drawn here, so nobody has to read for them.
            reading = tuple(name for name in plan.systems if name != "yes_no")
            needed = replace(plan, systems=reading, curve_candidates=None)
            labels = labelled(told, tune_on.name)
            choice = tuned(Workbench(keeping, generator, tune_on, needed, work, labels), choice)
        bench = Workbench(keeping, generator, dataset, plan, work, told)
        parts = []
        for direction, form in bench.parts():
            bench.told = labelled(told, f"{direction}, {form}")
            parts.append(measure_part(bench, direction, form, choice))
        bench.told = told
        checks: dict[str, Any] = {}
        if plan.wants("expand") and "text to image" in plan.directions:
            asked = bench.questions()
            checks["questions"] = {"generated": asked.generated, "kept": len(asked.texts)}
        if plan.wants(*NORMALIZED) and "text to image" in plan.directions:
            written = bench.questions("search")
            checks["query bank"] = {"generated": written.generated, "kept": len(written.texts)}
        if plan.wants("pixels") and isinstance(generator, ImageStates):
            checks["pixels"] = pixels_against_states(bench)
        agreed = agreement(bench, judgments, choice)
        spent = measure_cost(bench, encoder, choice, index) if cost else None
        names = {"encoder": encoder.fingerprint, "generator": generator.fingerprint}
        return Study(dataset, plan, tuple(parts), choice, agreed, spent, checks, names)


def measure_part(bench: Workbench, direction: Direction, form: str, choice: Choice) -> Part:
    """Measure all systems in one direction, with texts of one form.

    Args:
        bench: on the data set.
        direction: who looks for whom.
        form: of the texts.
        choice: the parameters.
    """
    plan = bench.plan
    scores = bench.scores(direction, form, plan.queries)
    reading = scores.systems(plan)
    runs = [scores.first, *(scores.answer(name, choice, plan.candidates) for name in reading)]
    if plan.wants("expand") and direction == "text to image":
        system = bench.expanded(choice.expansion)
        runs.append(system.run(scores.dataset, scores.first, progress=bench.told))
    if plan.wants(*NORMALIZED) and direction == "text to image":
        runs += bench.normalized(scores, choice)
    drawn = {"resamples": plan.resamples, "seed": plan.seed}
    results = compare(
        scores.task,
        runs,
        baseline=BASELINE,
        measures=plan.measures,
        permutations=plan.permutations,
        **drawn,
    )
    depths = plan.curve(direction, len(scores.task.items))
    bootstrap = ClusterBootstrap(scores.task.clusters, **drawn)
    qrels = scores.task.qrels

    def points(system: str, run: Run, depth: int, measures: Sequence[str]) -> list[Point]:
        found = measure(run, qrels, measures)
        return [
            Point(system, depth, name, float(one.mean()), bootstrap.interval(lambda mean: mean, one))
            for name, one in found.items()
        ]

    curve = [
        point
        for system in reading
        for depth in depths
        for point in points(system, scores.answer(system, choice, depth), depth, _CURVE)
    ]
    ceiling = [
        point
        for depth in depths
        if depth > 0
        for point in points("first stage", scores.first, depth, [f"R@{depth}"])
    ]
    nearest = shallow(scores.first, plan.candidates)
    found = [first_place_reliability(nearest, scores.task, scale=_scale(choice, direction), **drawn)]
    for name in reading:
        run = scores.read(name, choice, plan.candidates)
        if name == "yes_no":
            found.append(yes_no_reliability(run, scores.task, **drawn))
        else:
            found.append(first_place_reliability(run, scores.task, **drawn))
    rows = sample_places(len(scores.task.queries), plan.ablation_queries, plan.seed)
    ablations, without = ablated(bench, scores, choice, rows)
    won, lost = (
        _examples(scores, runs[0], runs[len(reading)])
        if direction == "text to image" and reading
        else ((), ())
    )
    return Part(
        direction,
        form,
        scores.task,
        tuple(runs),
        results,
        tuple(curve),
        tuple(ceiling),
        tuple(found),
        {name: _tied(scores.read(name, choice, plan.candidates)) for name in reading},
        ablations,
        without,
        len(rows),
        _chance(some_rows(nearest, rows), qrels),
        won,
        lost,
    )


def measure_cost(bench: Workbench, encoder: Encoder, choice: Choice, index: Index | None) -> Cost:
    """Time queries of the first form one by one, texts looking for images.

    Args:
        bench: on the data set.
        encoder: without a cache around it.
        choice: the parameters.
        index: an empty one, whose size is measured.
    """
    plan = bench.plan
    data = bench.dataset.of_form(bench.dataset.forms[0]).sample(_TIMED, seed=plan.seed)
    gallery = encode_in_parts(bench.encoder.encode_image, data.gallery, "encoding images")
    expands = plan.wants("expand") and "text to image" in plan.directions
    system = bench.expanded(choice.expansion) if expands else None
    rules: list[Scoring] = [Likelihood()] if plan.wants("likelihood", "fused") else []
    rules += [YesNo()] if plan.wants("yes_no") else []
    stages, systems = query_costs(
        encoder,
        bench.generator,
        rules,
        [query.text for query in data.queries],
        gallery,
        bench.shown,
        plan.curve("text to image", len(gallery)),
        joined="likelihood" if plan.wants("fused") else None,
        expand=None if system is None else lambda vector: system.search(gallery, vector),
        batch_size=plan.batch_size,
        progress=bench.told,
    )
    questions = plan.questions if expands else 0
    images = image_costs(encoder, bench.generator, data.gallery[:_TIMED_IMAGES], questions=questions)
    asked = len(bench.questions().texts) if expands else 0
    stored = bytes_per_image(gallery, bench.generator, index=index, questions=asked)
    return Cost(stages, systems, images, stored, peak_memory())


def _tied(run: Run) -> float:
    """The share of the candidates whose score another one of the same query has as well."""
    tied = sum(int(counts[counts > 1].sum()) for counts in map(_counts, run.scores))
    return tied / max(int(np.isfinite(run.scores).sum()), 1)


def _counts(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.unique(scores[np.isfinite(scores)], return_counts=True)[1]


def _chance(run: Run, qrels: Qrels) -> float:
    """R@1 of putting the candidates in any order: the share of them that is relevant."""
    candidates = np.maximum((run.candidates >= 0).sum(axis=1), 1)
    return float((relevant(run, qrels).sum(axis=1) / candidates).mean())


def _scale(choice: Choice, direction: Direction) -> float:
    """What makes logits of cosines: what the fusion takes them times, else CLIP's 100."""
    fusion = choice.fusion[direction]
    if isinstance(fusion, WeightedSum) and fusion.scale == "raw":
        return fusion.first_stage_scale
    return 100.0


def _examples(scores: Scores, baseline: Run, run: Run) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The queries whose reciprocal rank rose most, and fell most."""
    qrels = scores.task.qrels
    ranked = [break_ties(one, qrels) for one in (baseline, run)]
    ranks = [_first_relevant(one, qrels) for one in ranked]
    change = 1 / ranks[1] - 1 / ranks[0]
    order = np.argsort(-change, kind="stable")
    texts = {query.id: query.text for query in scores.dataset.queries}

    def example(row: int) -> Example:
        query = run.queries[row]
        before, after = (int(one[row]) if np.isfinite(one[row]) else None for one in ranks)
        first = [
            tuple(one.items[place] for place in one.candidates[row, :_SHOWN] if place >= 0) for one in ranked
        ]
        relevant = tuple(item for item, grade in qrels[query].items() if grade > 0)
        return Example(query, texts[query], run.name, before, after, relevant, first[0], first[1])

    won = tuple(example(row) for row in order[:_EXAMPLES].tolist() if change[row] > 0)
    lost = tuple(example(row) for row in order[::-1][:_EXAMPLES].tolist() if change[row] < 0)
    return won, lost


def _first_relevant(run: Run, qrels: Mapping[str, Mapping[str, int]]) -> NDArray[np.float64]:
    """Rank of the first relevant item of a run best first, from 1; inf where there is none."""
    place = {item: n for n, item in enumerate(run.items)}
    ranks = np.full(len(run.queries), np.inf)
    for row, query in enumerate(run.queries):
        right = [place[item] for item, grade in qrels[query].items() if grade > 0]
        hits = np.flatnonzero(np.isin(run.candidates[row], right))
        if len(hits):
            ranks[row] = hits[0] + 1
    return ranks

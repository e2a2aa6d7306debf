"""An evaluation of systems on one data set.

Dataset --Bench.part--> first stage --System.run--> {system: Run} --compare--> rows of the table
--depths--> curves, --sample--> ablations
another split --tune--> Choice, before anything is measured
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zsqretrieval._util.cache import Cache
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.evaluation.calibration import first_place, reliability_rows, yes_no
from zsqretrieval.evaluation.cost import cost_rows
from zsqretrieval.evaluation.datasets import Dataset, Direction, Judgments
from zsqretrieval.evaluation.estimate import Clock, estimate
from zsqretrieval.evaluation.human import agreement_row
from zsqretrieval.evaluation.metrics import (
    MISSING,
    break_ties,
    first_ranks,
    measure,
    tied_share,
)
from zsqretrieval.evaluation.results import Results, compare, paired_rows, row, table_of
from zsqretrieval.evaluation.run import Run, relevant, shallow, was_scored
from zsqretrieval.evaluation.scores import Bench, Part
from zsqretrieval.evaluation.settings import Settings, with_forms
from zsqretrieval.evaluation.stats import ClusterBootstrap
from zsqretrieval.evaluation.systems import CHECKS, LIKELIHOOD, SYSTEMS, YES_NO, Choice
from zsqretrieval.evaluation.trec import ratings_path, run_path
from zsqretrieval.evaluation.usable import digests_of, notes_of, some_pairs
from zsqretrieval.protocols import Encoder, Generator, ImageStates, Index, truncated
from zsqretrieval.search.fusion import Fusion, Maximum, ReciprocalRank, WeightedSum, fuse
from zsqretrieval.search.scoring import Scoring, score_pairs
from zsqretrieval.types import Progress

Rows = list[dict[str, Any]]

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the prior that are tried in tuning."""

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Weights of a weighted sum that are tried in tuning a fusion."""

GRID: Mapping[type[Fusion], Sequence[Fusion]] = {
    WeightedSum: [WeightedSum(weight) for weight in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)],
    Maximum: [Maximum(shift) for shift in (-3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5)],
    ReciprocalRank: [ReciprocalRank(constant) for constant in (0.0, 5.0, 20.0, 60.0, 200.0)],
}
"""Expansions that are tried in tuning, by kind."""

_RECALLS = ("R@1", "R@5", "R@10")
_CURVE = ("R@1", "R@5", "R@10", "MRR")
_ABLATED = ("R@1", "R@10", "MRR")
_EXAMPLES, _SHOWN = 4, 3  # examples won, and as many lost, of each form; images of an example
_COMPARED = 20, 10  # queries and candidates of the pixels check


def evaluate(
    dataset: Dataset,
    encoder: Encoder,
    generator: Generator | None = None,
    settings: Settings = Settings(),  # noqa: B008  # frozen
    *,
    work: Path | None = None,
    forms: Sequence[str] | None = None,
    tune_on: Dataset | None = None,
    judgments: Sequence[Judgments] = (),
    index: Index | None = None,
    cost: bool = True,
    progress: Progress | None = None,
    notice: Callable[[str], object] | None = None,
) -> Results:
    """Measure systems on a data set.

    Args:
        dataset: as it was read.
        encoder: the first stage, with exact search.
        generator: scores the candidates and asks the images; None for the first stage alone.
        settings: systems, samples and sizes.
        work: folder of the cache, made when missing, from which an interrupted evaluation continues; None to
            keep everything in memory.
        forms: forms of the queries, as :func:`~zsqretrieval.evaluation.settings.with_forms` takes them.
        tune_on: another split on which fusions, expansion and alpha are tuned: the best mean R@1 over the
            forms, then R@5, then R@10, and of equal ones the first tried.
        judgments: human ratings of pairs of the data set's images and captions.
        index: an empty one, whose size on disk is measured.
        cost: measure times and arithmetic.
        progress: called with the step, the estimated seconds that are done, and those in total.
        notice: called with the estimated time, in a sentence, before the long work begins.

    Raises:
        InvalidInputError: no such form; a system needs a generator and there is none; tuning on images that
            are measured.
        ZsqError: a score is not finite; names text and image.
        OSError: ``work`` cannot be written to.
    """
    systems = [name for name in settings.systems if name not in CHECKS]
    if settings.systems and generator is None:
        raise InvalidInputError(f"the system {settings.systems[0]!r} needs a generator, and there is none")
    dataset = with_forms(dataset, forms)
    if tune_on is not None:
        tune_on = with_forms(tune_on, dataset.forms)
        check_leaks(dataset, tune_on)
    choice = Choice(settings.fusion, settings.expansion, settings.alpha, settings.origin)
    with closing(Cache(None if work is None else Path(work) / "cache.sqlite")) as cache:
        clock = Clock(progress, cache)
        bench = Bench(encoder, generator, dataset, settings, cache, clock)
        benches = [bench]
        if tune_on is not None:
            # Curves, ablations and scores without a parameter are not needed for tuning.
            reduced = replace(
                settings,
                systems=tuple(name for name in systems if SYSTEMS[name].tunes),
                queries=settings.tuning_queries,
                curve_candidates=None,
            )
            step = clock.labelled(tune_on.name)
            benches.insert(0, Bench(encoder, generator, tune_on, reduced, cache, step))
        clock.start(estimate(benches, clock, judgments, cost=cost), notice)
        if tune_on is not None:
            choice = tune(benches[0], choice)
            clock.finish(f"{tune_on.name}: ")
        rows: Rows = []
        facts: dict[str, Any] = {"examples": [], "probabilities": {}}
        runs: dict[str, Run] = {}
        for direction in settings.directions:
            for form in bench.dataset.forms:
                part = bench.part(direction, form, settings.queries)
                rows += _measure_part(part, systems, choice, runs, facts)
                clock.finish(f"{direction}, {form}: ")
        rated = [bench.usable.kept(one) for one in judgments]
        pairs = {ratings_path(one.name): _rated(bench, one, choice, rows) for one in rated}
        if cost:
            rows += cost_rows(bench, encoder, choice, index)
        facts = _facts(bench, encoder, choice, systems) | facts
        clock.finish("")
    return Results(table_of(rows), facts, runs, pairs, bench.dataset)


def check_leaks(dataset: Dataset, tune_on: Dataset) -> None:
    """Refuse to tune on images that are measured, whatever their files are called.

    Raises:
        InvalidInputError: an image is in both data sets, byte for byte; names it.
    """
    measured = {one for one in digests_of(dataset.gallery) if isinstance(one, str)}
    pairs = zip(tune_on.gallery, digests_of(tune_on.gallery), strict=True)
    shared = [image.source for image, one in pairs if one in measured]
    if shared:
        raise InvalidInputError(
            f"{tune_on.name} and {dataset.name} share {len(shared)} images, such as {min(shared)}; "
            "tune on another split, else the parameters have seen the answers"
        )


# --- one direction and form -------------------------------------------------------------------------------


def _measure_part(
    part: Part, systems: Sequence[str], choice: Choice, runs: dict[str, Run], facts: dict[str, Any]
) -> Rows:
    """Rows of all groups for one direction and form; the runs and facts are added to those given."""
    settings, direction, form = part.bench.settings, part.direction, part.form
    here = [name for name in systems if direction in SYSTEMS[name].directions]
    complete = [name for name in here if SYSTEMS[name].base is None]
    depth = settings.candidates
    answers = [part.first, *(SYSTEMS[name].run(name, part, choice, depth) for name in complete)]
    drawn = {"resamples": settings.resamples, "seed": settings.seed}
    tested: dict[str, Any] = {**drawn, "permutations": settings.permutations}
    rows = compare(answers, baseline=part.first.name, measures=settings.measures, depth=depth, **tested)
    runs |= {run_path(direction, form, run.name): run for run in answers}
    reranking = [name for name in complete if SYSTEMS[name].reranks]
    rows += _curves(part, reranking, choice, ClusterBootstrap(part.task.clusters, **drawn))
    rows += _calibration(part, reranking, choice, facts, drawn)
    sampled = part.sample(settings.ablation_queries, depth)
    for base in dict.fromkeys(base for name in here if (base := SYSTEMS[name].base) is not None):
        ablations = [name for name in here if SYSTEMS[name].base == base]
        compared = [SYSTEMS[name].run(name, sampled, choice, depth) for name in (base, *ablations)]
        rows += compare(
            compared, baseline=base, group="ablations", measures=_ABLATED, depth=depth, **tested,
        )  # fmt: skip
        alone = compared[1:] if base in complete else compared
        runs |= {run_path(direction, form, run.name, ablation=True): run for run in alone}
    if len(here) > len(complete):
        right = relevant(shallow(sampled.first, depth))
        rows.append(
            row("ablations", "chance", "R@1", right.mean(), form=form, direction=direction, depth=depth,
                queries=len(right))
        )  # fmt: skip
    for one in rows:
        if one["group"] in ("systems", "ablations") and one["system"] != "chance":
            ablation = one["group"] == "ablations" and one["system"] not in complete
            one["run"] = run_path(direction, form, one["system"], ablation=ablation)
    if direction == "text to image" and reranking:
        name = "fused" if "fused" in reranking else reranking[-1]
        facts["examples"] += _examples(part, answers[1 + complete.index(name)])
    return rows


def _curves(part: Part, reranking: Sequence[str], choice: Choice, bootstrap: ClusterBootstrap) -> Rows:
    """Quality by number of re-ranked candidates, and the first-stage recall that limits it."""
    depths = part.bench.settings.curve(part.direction, len(part.task.items))
    where, rows = dict[str, Any](form=part.form, direction=part.direction), Rows()
    for name in reranking:
        for depth in depths:
            run = SYSTEMS[name].run(name, part, choice, depth)
            for measured, values in measure(run, _CURVE).items():
                rows += paired_rows("curve", measured, {name: values}, bootstrap, depth=depth, **where)
    for depth in depths:
        if depth > 0 and reranking:
            (values,) = measure(part.first, [f"R@{depth}"]).values()
            found = {part.first.name: values}
            rows += paired_rows("ceiling", "ceiling", found, bootstrap, depth=depth, **where)
    return rows


def _calibration(
    part: Part, reranking: Sequence[str], choice: Choice, facts: dict[str, Any], drawn: Mapping[str, int]
) -> Rows:
    """Reliability of the scores as probabilities, and the share of tied candidates."""
    settings, where = part.bench.settings, dict[str, Any](form=part.form, direction=part.direction)
    meaning = facts["probabilities"].setdefault(part.direction, {})
    rows = Rows()
    for name in (part.first.name, *reranking):
        if name == part.first.name:
            run, scale = shallow(part.first, settings.candidates), _logit_scale(choice, part.direction)
        else:
            run, scale = SYSTEMS[name].make(part, choice, settings.candidates), 1.0
            rows.append(row("reliability", name, "tied", tied_share(run), queries=len(run.scores), **where))
        if name == "yes_no":
            found, meaning[name] = yes_no(run), "P(yes) of every candidate"
        else:
            times = f", scores times {scale:g}" if scale != 1 else ""
            found = first_place(run, scale=scale)
            meaning[name] = f"softmax of the first candidate{times}"
        rows += reliability_rows(name, found, **drawn, **where)
    return rows


def _logit_scale(choice: Choice, direction: Direction) -> float:
    """Factor from cosine to logit: that of the fusion, else CLIP's 100."""
    fusion = choice.fusion_of("fused", direction)
    if isinstance(fusion, WeightedSum) and fusion.scale == "raw":
        return fusion.first_stage_scale
    return 100.0


def _examples(part: Part, run: Run) -> list[dict[str, Any]]:
    """The queries whose reciprocal rank rises most over the first stage, and falls most."""
    task = part.task
    ranked = [break_ties(one) for one in (part.first, run)]
    ranks = [first_ranks(one.scores, relevant(one)) for one in ranked]
    inverse = [np.where(one == MISSING, 0.0, 1 / (1.0 + one)) for one in ranks]
    change = inverse[1] - inverse[0]
    order = np.argsort(-change, kind="stable")

    def example(outcome: str, n: int) -> dict[str, Any]:
        query = task.queries[n]
        before, after = (None if one[n] == MISSING else int(one[n]) + 1 for one in ranks)
        first = [[task.items[place] for place in one.candidates[n, :_SHOWN] if place >= 0] for one in ranked]
        return {
            "direction": part.direction, "form": part.form, "outcome": outcome, "query": query,
            "text": part.texts[n], "system": run.name, "before": before, "after": after,
            "relevant": [item for item, grade in task.qrels[query].items() if grade > 0],
            "first_before": first[0], "first_after": first[1],
        }  # fmt: skip

    won = [example("won", n) for n in order[:_EXAMPLES].tolist() if change[n] > 0]
    return won + [example("lost", n) for n in order[::-1][:_EXAMPLES].tolist() if change[n] < 0]


# --- the whole data set -----------------------------------------------------------------------------------


def _rated(bench: Bench, judged: Judgments, choice: Choice, rows: Rows) -> Any:
    """Scores of the pairs that people rated, a column a system; the correlations are added to ``rows``.

    Captions are compared with each other, so the likelihood stands with and without its prior, and the
    corrected one is fused, over all pairs at once, with the fusion of image to text.
    """
    settings = bench.settings
    rows_of = bench.encode_each_text(judged.captions)
    judged = some_pairs(judged, np.array([not isinstance(one, InvalidInputError) for one in rows_of], bool))
    step = f"{judged.name}: scoring by"
    rules: dict[str, Scoring] = {"likelihood": LIKELIHOOD, "yes_no": YES_NO}
    wanted = {"likelihood" if name == "fused" else name for name in settings.systems} & {*rules}
    likelihoods = {
        name: bench.pair_scores(rules[name], judged.captions, judged.images.tolist(), f"{step} {name}")
        for name in sorted(wanted)
    }
    scored = np.all([np.isfinite(own) for own in likelihoods.values()] or [judged.images >= 0], axis=0)
    judged = some_pairs(judged, scored)
    likelihoods = {name: own[scored] for name, own in likelihoods.items()}
    texts = list(dict.fromkeys(judged.captions))
    place_of = {text: n for n, text in enumerate(texts)}
    of_text = np.array([place_of[text] for text in judged.captions])
    vectors = bench.encode_texts(texts)[of_text]
    first = (bench.gallery[judged.images].astype(np.float64) * vectors).sum(axis=1)
    scores: dict[str, NDArray[np.float64]] = {bench.name: first}
    if "likelihood" in wanted:
        likelihood = likelihoods["likelihood"]
        without = likelihood - choice.alpha * bench.log_priors(texts, f"{judged.name}: prior")[of_text]
        if "likelihood" in settings.systems:
            scores |= {"likelihood": likelihood, "likelihood - prior": without}
        if "fused" in settings.systems:
            scores["fused"] = fuse(choice.fusion_of("fused", settings.directions[-1]), first, without)
    if "yes_no" in wanted:
        scores["yes_no"] = likelihoods["yes_no"]
    for name, own in scores.items():
        if np.ptp(own):  # constant scores have no rank correlation
            rows.append(agreement_row(judged, name, own, resamples=settings.resamples, seed=settings.seed))
    ids = [str(bench.dataset.gallery[place].id) for place in judged.images.tolist()]
    return pd.DataFrame({"image": ids, **scores})


def _facts(bench: Bench, encoder: Encoder, choice: Choice, systems: Sequence[str]) -> dict[str, Any]:
    dataset, settings = bench.dataset, bench.settings
    counts = Counter(query.form for query in dataset.queries)
    checks: dict[str, Any] = {}
    if "text to image" in settings.directions:
        needed = {need for name in systems for need in SYSTEMS[name].needs}
        for need, what, style, count in (
            ("questions", "questions", settings.style, settings.questions),
            ("bank", "query bank", "search", settings.bank),
        ):
            if need in needed:
                asked = bench.questions(style, count)
                checks[what] = {"generated": asked.generated, "kept": len(asked.texts)}
    if "pixels" in settings.systems and isinstance(bench.generator, ImageStates):
        checks["pixels"] = _pixels_check(bench)
    fingerprints = {"encoder": encoder.fingerprint}
    if systems:
        fingerprints["generator"] = bench.generator.fingerprint
    written = {**asdict(settings), "fusion": repr(settings.fusion), "expansion": repr(settings.expansion)}
    return {
        "dataset": {
            "name": dataset.name,
            "images": len(dataset.gallery),
            "forms": {form: min(count, settings.queries or count) for form, count in counts.items()},
            "notes": [*dataset.notes, *notes_of(_cut(bench) | _unscored(bench))],
            "left_out": dict(bench.usable.facts),
            "unscored": [
                {"text": text, "image": source, "reason": str(why)}
                for (text, source), why in bench.unscored.items()
            ],
        },
        "first_stage": bench.name,
        "settings": {name: list(one) if isinstance(one, tuple) else one for name, one in written.items()},
        "fingerprints": fingerprints,
        "choice": choice.to_json(systems),
        "ablations": {name: SYSTEMS[name].about for name in systems if SYSTEMS[name].base},
        "checks": checks,
    }


def _cut(bench: Bench) -> dict[str, list[str]]:
    """The texts that the encoder cuts, behind a sentence."""
    queries = bench.dataset.queries
    cut = truncated(bench.encoder, [query.text for query in queries])
    ids = [query.id for query, one in zip(queries, cut, strict=True) if one]
    what = f"{len(ids)} of {len(queries)} texts are longer than the encoder reads, which knows only their"
    return {f"{what} beginning": ids}


def _unscored(bench: Bench) -> dict[str, list[str]]:
    """The texts and images that the generator cannot take, behind a sentence."""
    images = {source for (_, source), why in bench.unscored.items() if isinstance(why, ImageError)}
    texts = {text for (text, _), why in bench.unscored.items() if not isinstance(why, ImageError)}
    ids = [query.id for query in bench.dataset.queries if query.text in texts]
    what = (
        f"the generator cannot score {len(bench.unscored)} pairs, which stay below those that it scores, in "
        f"the order of the first stage: {len(texts)} texts and {len(images)} images are too much for it, "
        "alone or together"
    )
    return {what: [*ids, *sorted(images)]}


def _pixels_check(bench: Bench) -> dict[str, Any]:
    """Differences of likelihoods from pixels and from cached image features, for a few pairs."""
    queries, candidates = _COMPARED
    form, gallery = bench.dataset.forms[0], bench.dataset.gallery
    part = bench.part("text to image", form, queries)
    first = shallow(part.first, candidates)
    by_features = part.score(first, LIKELIHOOD, "pixels check")
    texts = np.repeat(part.texts, first.candidates.shape[1]).tolist()
    shown = [gallery[n] for n in first.candidates.ravel()]
    pixels = score_pairs(bench.generator, LIKELIHOOD, texts, shown, faults={}).reshape(first.scores.shape)
    both = was_scored(by_features) & np.isfinite(pixels)
    features, by_pixels = (np.where(both, scores, 0.0) for scores in (by_features.scores, pixels))
    orders = [np.argsort(-scores, axis=1, kind="stable") for scores in (features, by_pixels)]
    return {
        "form": form,
        "pairs": int(both.sum()),
        "largest_difference": float(np.abs(features - by_pixels).max()),
        "largest_score": float(np.abs(by_pixels).max()),
        "queries": len(first.scores),
        "queries_in_another_order": int((orders[0] != orders[1]).any(axis=1).sum()),
    }


# --- tuning -----------------------------------------------------------------------------------------------


def tune(bench: Bench, choice: Choice) -> Choice:
    """Choose the parameters that do best on the data set of a bench.

    The best is the best mean over the forms of R@1, then of R@5, then of R@10, and of equal ones the first,
    which has the smallest weight. Alpha is chosen for the likelihood alone, before the fusions.

    Args:
        bench: of the split to tune on; each of its systems with a parameter is tuned.
        choice: stays where nothing is tuned.

    Raises:
        InvalidInputError: the fusion has no weight, or the expansion no known parameter.
    """
    settings, sweep = bench.settings, list[Mapping[str, Any]]()
    if not isinstance(settings.fusion, WeightedSum):
        raise InvalidInputError(f"only a WeightedSum has a weight to tune, not {settings.fusion!r}")
    weighted = [replace(settings.fusion, weight=weight) for weight in WEIGHTS]
    first = {"alpha": 0, "expansion": 1, "fusion": 2}
    ordered = sorted(settings.systems, key=lambda name: first[str(SYSTEMS[name].tunes)])
    for direction in settings.directions:
        parts = [bench.part(direction, form, settings.queries) for form in bench.dataset.forms]
        for name in ordered:
            if direction not in SYSTEMS[name].directions:
                continue
            tried = _variants(choice, name, direction, weighted)
            found = [_mean_recalls(parts, name, one, settings) for one in tried.values()]
            sweep += [
                {"direction": direction, "system": name, "parameter": SYSTEMS[name].tunes, "value": value,
                 **dict(zip(_RECALLS, recalls, strict=True))}
                for value, recalls in zip(tried, found, strict=True)
            ]  # fmt: skip
            choice = [*tried.values()][found.index(max(found))]
    return replace(choice, origin=f"tuned for R@1 on {bench.dataset.name}", sweep=tuple(sweep))


def _variants(
    choice: Choice, system: str, direction: Direction, fusions: Sequence[Fusion]
) -> dict[str, Choice]:
    """The choices that are tried for a system, by the value of its parameter."""
    if SYSTEMS[system].tunes == "alpha":
        return {str(alpha): replace(choice, alpha=alpha) for alpha in ALPHAS}
    if SYSTEMS[system].tunes == "expansion":
        grid = next((one for kind, one in GRID.items() if isinstance(choice.expansion, kind)), None)
        if grid is None:
            raise InvalidInputError(f"the expansion {choice.expansion!r} has no parameter to tune")
        return {str(one): replace(choice, expansion=one) for one in grid}
    own = [{**choice.fusions, (system, direction): one} for one in fusions]
    return {str(one): replace(choice, fusions=some) for one, some in zip(fusions, own, strict=True)}


def _mean_recalls(parts: Sequence[Part], name: str, choice: Choice, settings: Settings) -> list[float]:
    recalls = []
    for part in parts:
        run = SYSTEMS[name].make(part, choice, settings.candidates)
        recalls.append([float(one.mean()) for one in measure(run, _RECALLS).values()])
    return [round(float(mean), 12) for mean in np.mean(recalls, axis=0)]

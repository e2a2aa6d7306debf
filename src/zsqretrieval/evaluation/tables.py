"""What a study found as tables of text, the same for every kind of report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from zsqretrieval.evaluation.comparison import Against, Result
from zsqretrieval.evaluation.cost import Spent
from zsqretrieval.evaluation.findings import Part, Study
from zsqretrieval.evaluation.human import CLIPSCORE
from zsqretrieval.evaluation.plan import ABLATIONS, BASELINE, NORMALIZED

__all__ = [
    "Table",
    "answers",
    "by_system",
    "in_markdown",
    "markdown_cell",
    "milliseconds",
    "p_value",
    "percent",
    "points",
    "tables",
]

_COMPARED = ("R@1", "R@10", "MRR")
_SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        title: its heading.
        note: what a reader has to know.
        header: names of the columns.
        rows: cells, as many in each as the header has.
        words: how many columns from the left hold words; the others hold numbers.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def in_markdown(table: Table) -> list[str]:
    """The lines of a table with its heading."""
    sides = "|".join("---" if column < table.words else "--:" for column in range(len(table.header)))
    return [
        f"## {table.title}",
        "",
        *([table.note, ""] if table.note else []),
        "| " + " | ".join(map(markdown_cell, table.header)) + " |",
        f"|{sides}|",
        *("| " + " | ".join(map(markdown_cell, row)) + " |" for row in table.rows),
        "",
    ]


def markdown_cell(text: str) -> str:
    """A text on one line in which nothing is taken for Markdown's bars or for HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def answers(study: Study) -> list[str]:
    """A sentence for every direction and form: does it find more than the first stage, and at what cost?

    It is the last system that reads candidates without a query bank, else the last of the others; where there
    is none, nothing is said.
    """
    return [sentence for part in study.parts if (sentence := _answer(study, part))]


def _answer(study: Study, part: Part) -> str | None:
    rivals = [run.name for run in part.runs if run.name not in (BASELINE, "expand", *NORMALIZED)] or [
        run.name for run in part.runs if run.name != BASELINE
    ]
    found = {(one.system, one.measure): one for one in part.results}
    measured = part.results[0].measure
    if not rivals:
        return None
    own, base = found[rivals[-1], measured], found[BASELINE, measured]
    assert own.against is not None
    difference, p = own.against.difference, own.against.p_holm
    verdict = "finds more than" if difference > 0 else "finds less than"
    if p >= _SIGNIFICANT:
        verdict = "cannot be told from"
    cost = ""
    if study.cost is not None and part.direction == "text to image":
        reads = own.system not in ("expand", "normalized")
        depth = min(study.plan.candidates, len(study.dataset.gallery)) if reads else 0
        slow, fast = study.cost.of(own.system, depth), study.cost.of(BASELINE, 0)
        if slow is not None and fast is not None:
            cost = f" A query takes {milliseconds(slow)} ms instead of {milliseconds(fast)}."
    return (
        f"{part.direction.capitalize()}, {part.form}: {own.system} {verdict} {BASELINE}: "
        f"{measured} {percent(own.mean, own.interval)} against {percent(base.mean, base.interval)}, "
        f"a difference of {points(own.against)} points, p = {p_value(p)} after Holm's correction.{cost}"
    )


def tables(study: Study) -> list[Table]:
    """All tables of a study; every number with its interval, 95 % unless it is a count."""
    found: list[Table] = []
    for direction in dict.fromkeys(part.direction for part in study.parts):
        parts = [part for part in study.parts if part.direction == direction]
        found += [_results(direction, parts), _differences(direction, parts)]
        if any(part.curve for part in parts):
            found.append(_curves(study, direction, parts))
        if any(part.ablations for part in parts):
            found.append(_ablations(study, direction, parts))
        found.append(_reliability(direction, parts))
    found += [*_agreement(study), *_costs(study), *_checks(study), _parameters(study)]
    return found


def _results(direction: str, parts: Sequence[Part]) -> Table:
    measures = tuple(dict.fromkeys(one.measure for part in parts for one in part.results))
    rows = []
    for part in parts:
        for system, own in by_system(part.results).items():
            first = next(iter(own.values()))
            cells = map(_cell, own.values())
            rows.append((part.form, system, str(first.queries), str(first.clusters), *cells))
    return Table(
        f"Results, {direction}",
        "In percent, with 95 % intervals: percentile bootstrap over images, each with its queries. Forms are "
        "never averaged. What was not read stands behind what was, in the order of the first stage.",
        ("form", "system", "queries", "images", *measures),
        tuple(rows),
        2,
    )


def _differences(direction: str, parts: Sequence[Part]) -> Table:
    rows = [
        (
            part.form,
            one.system,
            one.measure,
            points(one.against),
            p_value(one.against.p),
            p_value(one.against.p_holm),
        )
        for part in parts
        for one in part.results
        if one.against is not None and one.measure in _COMPARED
    ]
    return Table(
        f"Differences from {BASELINE}, {direction}",
        "In points of percent, paired. p of a permutation test that exchanges whole images, two-sided; and "
        "the same by Holm's correction over the systems of a form and measure.",
        ("form", "system", "measure", "difference", "p", "p (Holm)"),
        tuple(rows),
        3,
    )


def _curves(study: Study, direction: str, parts: Sequence[Part]) -> Table:
    rows = []
    for part in parts:
        ceiling = {point.depth: percent(point.mean, point.interval) for point in part.ceiling}
        points: dict[tuple[str, int], dict[str, str]] = {}
        for point in part.curve:
            cell = percent(point.mean, point.interval)
            points.setdefault((point.system, point.depth), {})[point.measure] = cell
        for (system, depth), cells in points.items():
            spent = study.cost.of(system, depth) if study.cost and direction == "text to image" else None
            rows.append(
                (part.form, system, str(depth), *cells.values(), ceiling.get(depth, ""), *_spent(spent))
            )
    measures = tuple(dict.fromkeys(point.measure for part in parts for point in part.curve))
    return Table(
        f"Quality against cost, {direction}",
        "One scoring run at the largest number of candidates gives all of them. The ceiling is the recall of "
        "the first stage at that depth: no recall at that many places or fewer can exceed it.",
        ("form", "system", "candidates", *measures, "ceiling", "ms a query", "queries/s", "GFLOP a query"),
        tuple(rows),
        2,
    )


def _ablations(study: Study, direction: str, parts: Sequence[Part]) -> Table:
    rows = []
    for part in parts:
        for base, results in part.ablations.items():
            for system, own in by_system(results).items():
                first = next(iter(own.values()))
                last = first.against
                told = ("", "") if last is None else (points(last), p_value(last.p_holm))
                name = f"{base} (whole)" if system == base else system
                rows.append((part.form, base, name, str(first.queries), *map(_cell, own.values()), *told))
    chances = ", ".join(f"{100 * part.chance:.1f} % ({part.form})" for part in parts)
    asked = "; ".join(f"{name}: {what}" for name, what in ABLATIONS.items() if study.plan.wants(name))
    measures = tuple(
        dict.fromkeys(one.measure for part in parts for results in part.ablations.values() for one in results)
    )
    return Table(
        f"Ablations, {direction}",
        f"{asked}. On a sample of the queries. Equal scores are ranked against the system; candidates in any "
        f"order would have R@1 = {chances}.",
        ("form", "of", "system", "queries", *measures, f"difference in {measures[0]}", "p (Holm)"),
        tuple(rows),
        3,
    )


def _reliability(direction: str, parts: Sequence[Part]) -> Table:
    rows = [
        (part.form, one.system, one.of, str(one.observations), percent(one.error, one.interval))
        for part in parts
        for one in part.reliability
    ]
    return Table(
        f"Reliability of scores, {direction}",
        "Expected calibration error in percent, over ten bins of equally many observations: how far "
        "probabilities lie from what is so. It errs upward where there are few observations.",
        ("form", "system", "probability", "observations", "calibration error"),
        tuple(rows),
        3,
    )


def _agreement(study: Study) -> Iterable[Table]:
    if not study.agreement:
        return
    published = " and ".join(
        f"{CLIPSCORE[one.ratings]} ({one.ratings})" for one in study.agreement if one.ratings in CLIPSCORE
    )
    yield Table(
        "Agreement with people",
        "Kendall's tau between scores and human ratings of captions, times 100, by the conventions of "
        "CLIPScore, with 95 % intervals over images. Published for CLIPScore by CLIP ViT-B/32, and not ours: "
        f"{published}.",
        ("ratings", "system", "pairs", "images", "tau"),
        tuple(
            (one.ratings, system, f"{tau.pairs:,}", f"{tau.images:,}",
             f"{percent(tau.tau, tau.interval)} ({tau.variant})")
            for one in study.agreement
            for system, tau in one.taus.items()
        ),
        2,
    )  # fmt: skip


def _costs(study: Study) -> Iterable[Table]:
    cost = study.cost
    if cost is None:
        return
    yield Table(
        "Cost of a query",
        "One query at a time, median with its interval, on this machine and beside whatever else it did. "
        "FLOPs as torch counts them, a multiplication with its addition as two; empty where nothing was.",
        ("stage", "candidates", "ms", "per second", "GFLOP"),
        tuple(
            (one.what, "" if one.depth is None else str(one.depth), *_spent(one))
            for one in (*cost.stages, *cost.systems)
        ),
    )
    yield Table(
        "Cost of an image",
        "Once for every image, in batches; and what it takes up.",
        ("what", "ms", "per second", "GFLOP", "bytes"),
        (
            *((one.what, *_spent(one), "") for one in cost.images),
            *((name, "", "", "", f"{size:,.0f}") for name, size in cost.bytes_per_image.items()),
            *((f"peak memory, {name}", "", "", "", f"{size:,}") for name, size in cost.peak_memory.items()),
        ),
    )


def _checks(study: Study) -> Iterable[Table]:
    if not study.checks:
        return
    rows = [
        (what, name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
        for what, facts in study.checks.items()
        for name, value in facts.items()
    ]
    yield Table(
        "Checks", "Counts, and largest values, which have no interval.", ("of", "", ""), tuple(rows), 2
    )


def _parameters(study: Study) -> Table:
    choice = study.choice
    rows = [
        *((f"fusion, {way}", repr(fusion)) for way, fusion in choice.fusion.items()),
        *(
            (f"fusion with the mean, {way}", repr(fusion))
            for way, fusion in choice.fusion_of_mean.items()
            if study.plan.wants("mean")
        ),
        ("share of the prior", f"{choice.alpha:g}"),
        ("expansion", repr(choice.expansion)),
        ("origin", choice.origin),
    ]
    return Table("Parameters", "", ("what", "value"), tuple(rows), 2)


def by_system(results: Sequence[Result]) -> Mapping[str, Mapping[str, Result]]:
    """Results by system, then by measure, in their order."""
    found: dict[str, dict[str, Result]] = {}
    for one in results:
        found.setdefault(one.system, {})[one.measure] = one
    return found


def _cell(one: Result) -> str:
    return percent(one.mean, one.interval)


def percent(mean: float, interval: tuple[float, float]) -> str:
    """A share and its interval in percent."""
    low, high = interval
    return f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def points(against: Against | None) -> str:
    """A difference and its interval in points of percent."""
    assert against is not None
    low, high = against.interval
    return f"{100 * against.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def p_value(p: float) -> str:
    """Two digits, or one of a small one."""
    return f"{p:.2g}" if p >= 0.001 else f"{p:.1g}"


def milliseconds(spent: Spent) -> str:
    """A time and its interval."""
    low, high = spent.interval
    return f"{1000 * spent.seconds:.3g} ({1000 * low:.3g} to {1000 * high:.3g})"


def _spent(spent: Spent | None) -> tuple[str, str, str]:
    if spent is None:
        return "", "", ""
    low, high = (1 / end if end > 0 else float("inf") for end in reversed(spent.interval))
    flops = "" if spent.flops is None else f"{spent.flops / 1e9:.3g}"
    return milliseconds(spent), f"{spent.per_second:.3g} ({low:.3g} to {high:.3g})", flops

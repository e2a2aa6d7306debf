"""The answer to the question of this library, as one page: does question generation find images?

Study ---------------+
GalleryBench --------+--> verdict: answer first, then every number with its interval and its run file,
AlternativesBench ---+             then what others published, and what follows and what does not
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zsqretrieval.evaluation.alternatives import AlternativesBench
from zsqretrieval.evaluation.comparison import Result
from zsqretrieval.evaluation.figures import figures
from zsqretrieval.evaluation.findings import Part, Study
from zsqretrieval.evaluation.gallery_bench import GalleryBench
from zsqretrieval.evaluation.plan import ABLATIONS, BASELINE
from zsqretrieval.evaluation.published import RETRIEVAL, STATEMENTS
from zsqretrieval.evaluation.roofline import LAION_5B
from zsqretrieval.evaluation.run_files import run_file, scores_file, write_runs
from zsqretrieval.evaluation.tables import (
    Table,
    by_system,
    in_markdown,
    milliseconds,
    p_value,
    percent,
    points,
    tables,
)
from zsqretrieval.evaluation.writing import write_whole

__all__ = ["VERDICT_MEASURES", "verdict", "write_verdict"]

VERDICT_MEASURES = ("R@1", "R@5", "R@10")
"""What is told of every system: what its first ten places decide."""

_DEPTH = 10  # places of the run files beside the page
_SIGNIFICANT = 0.05
_DIFFERENCES = ("at 1", "p (Holm)", "at 10", "p (Holm)")
_SHOWN = ("forms-text-to-image.svg", "cost-text-to-image.svg", "forms-image-to-text.svg")


def write_verdict(
    study: Study,
    path: Path,
    *,
    command: str,
    gallery: GalleryBench | None = None,
    alternatives: AlternativesBench | None = None,
) -> None:
    """Write the page, and beside it a folder of its name with run files, figures and numbers.

    The folder holds what the page needs and nothing of the data set but ids: ``runs/``, the first ten places
    of every run, compressed; ``figures/``; ``numbers.json``.

    Args:
        study: what was found; its measures have to be :data:`VERDICT_MEASURES` or more.
        path: of the page, ``.md``.
        command: with which it can be done again.
        gallery: recall as the gallery grows.
        alternatives: other software.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OSError: the disk refuses.
    """
    path = Path(path)
    folder = path.with_suffix("")
    write_runs(study, folder / "runs", depth=_DEPTH, suffix=".gz")
    drawn = figures(study)
    shown = {name: drawn[name] for name in _SHOWN if name in drawn}
    for name, (svg, _) in shown.items():
        write_whole(folder / "figures" / name, [svg])
    facts = study.to_json()
    for part in facts["parts"]:
        part |= {"won": [], "lost": []}  # they hold texts of the data set
    facts |= {
        "command": command,
        "gallery": None if gallery is None else asdict(gallery),
        "alternatives": None if alternatives is None else asdict(alternatives),
    }
    write_whole(folder / "numbers.json", [json.dumps(facts, indent=1, allow_nan=False), "\n"])
    captions = {f"{folder.name}/figures/{name}": what for name, (_, what) in shown.items()}
    text = verdict(
        study, command=command, place=folder.name, shown=captions, gallery=gallery, alternatives=alternatives
    )
    write_whole(path, [text])


def verdict(
    study: Study,
    *,
    command: str,
    place: str,
    shown: Mapping[str, str],
    gallery: GalleryBench | None = None,
    alternatives: AlternativesBench | None = None,
) -> str:
    """The page in Markdown.

    Args:
        study: what was found.
        command: with which it can be done again.
        place: of the folder beside it, within links.
        shown: figures by their place, with what they show.
        gallery: recall as the gallery grows.
        alternatives: other software.
    """
    own = {table.title: table for table in tables(study)}
    lines = ["# Does question generation find images, and at what cost?", "", _answer(study), ""]
    lines += [_scope(study), "", *_setting(study, place)]
    for where, what in shown.items():
        lines += [f"![{what}]({where})", "", what, ""]
    for direction in dict.fromkeys(part.direction for part in study.parts):
        parts = [part for part in study.parts if part.direction == direction]
        lines += in_markdown(_results(direction, parts, f"{place}/runs"))
        lines += in_markdown(_ablations(study, direction, parts, f"{place}/runs"))
    for title in ("Quality against cost, text to image", "Agreement with people", "Cost of a query",
                  "Cost of an image", "Checks", "Parameters"):  # fmt: skip
        if title in own:
            lines += in_markdown(own[title])
        if title in own and title == "Agreement with people":
            scores = [
                f"[{one.ratings}]({place}/runs/{scores_file(one)}.gz)" for one in study.agreement if one.taus
            ]
            lines += [
                f"What every system makes of each pair, in the order of the ratings: {', '.join(scores)}.",
                "",
            ]
    if gallery is not None:
        lines += _growth(gallery, f"{place}/numbers.json")
    if alternatives is not None:
        lines += in_markdown(_software(alternatives, f"{place}/numbers.json"))
    lines += [*in_markdown(_published()), *(f"- {sentence}" for sentence in STATEMENTS), "", _FOLLOWS, ""]
    lines += [
        "## Do it again",
        "",
        "```sh",
        "pip install 'zsqretrieval[evaluation]'",
        command,
        "```",
        "",
        _REAL,
    ]
    return "\n".join(lines).rstrip() + "\n"


# --- the first paragraph ----------------------------------------------------------------------------------


def _answer(study: Study) -> str:
    """The answer, how sure, at what cost; of texts that look for images."""
    parts = [part for part in study.parts if part.direction == "text to image"] or list(study.parts)
    joined, alone = (_judged(parts, name) for name in ("fused", "likelihood"))
    sentences = [f"**Joined with the first stage: {joined}. By itself: {alone}.**"]
    for part in parts:
        found = by_system(part.results)
        base, fused, likelihood = (found[name]["R@1"] for name in (BASELINE, "fused", "likelihood"))
        ten = found["fused"]["R@10"].against
        assert fused.against is not None and likelihood.against is not None and ten is not None
        sentences.append(
            f"On {study.dataset.name} ({len(study.dataset.gallery):,} images), texts of the form "
            f"{part.form}: the first stage puts the right image first for {_told(base)} % of "
            f"{base.queries:,} texts; ranked by it and log P(text | image) together, it is {_told(fused)} "
            f"%, a difference of {points(fused.against)} points, p = {p_value(fused.against.p_holm)} after "
            f"Holm's correction (among the first ten, {points(ten)} points, p = {p_value(ten.p_holm)}); by "
            f"log P(text | image) alone {_told(likelihood)} %, {points(likelihood.against)} points."
        )
    if study.cost is not None:
        depth = min(study.plan.candidates, len(study.dataset.gallery))
        slow, fast = study.cost.of("fused", depth), study.cost.of(BASELINE, 0)
        if slow is not None and fast is not None:
            times = slow.seconds / fast.seconds if fast.seconds else float("inf")
            sentences.append(
                f"The cost: a query that reads {depth} candidates takes {milliseconds(slow)} ms in place of "
                f"{milliseconds(fast)} ms, {times:.0f} times as long."
            )
    return " ".join(sentences)


def _told(one: Result) -> str:
    return percent(one.mean, one.interval)


def _judged(parts: Sequence[Part], system: str) -> str:
    """What can be said of a system over all forms."""
    against = {
        part.form: one.against
        for part in parts
        for one in part.results
        if one.system == system and one.measure == "R@1" and one.against is not None
    }
    better = [form for form, one in against.items() if one.p_holm < _SIGNIFICANT and one.difference > 0]
    worse = [form for form, one in against.items() if one.p_holm < _SIGNIFICANT and one.difference < 0]
    if len(better) == len(against):
        return "yes, it finds more"
    if len(worse) == len(against):
        return "no, it finds less"
    alike = [form for form in against if form not in (*better, *worse)]
    told = {"it finds more": better, "it finds less": worse, "it cannot be told from the first stage": alike}
    return "; ".join(f"{what} for {' and '.join(forms)}" for what, forms in told.items() if forms)


def _scope(study: Study) -> str:
    if study.fingerprints["generator"].startswith("mini-"):
        return (
            "This is measured with the models in miniature that come with the library, far smaller than "
            "CLIP and Kosmos-2 and trained on 6,000 photographs. It says that the way of computing works "
            "and what it costs, and not what large models gain; what others published about those stands "
            "below, marked as theirs."
        )
    return (
        "These are numbers of the models named below, and of no others; what others published stands below."
    )


def _setting(study: Study, place: str) -> list[str]:
    plan = study.plan
    return [
        f"- Systems: `{BASELINE}` is the first stage (`{study.fingerprints['encoder']}`), compared exactly; "
        f"the generator is `{study.fingerprints['generator']}`. It reads the first {plan.candidates} "
        "candidates; what it does not read stays behind them in the order of the first stage.",
        f"- All parameters: {study.choice.origin}. The measured split was opened after that.",
        "- Intervals are 95 %, percentile bootstraps over images with all their texts; p by a permutation "
        f"test over whole images, with Holm's correction over systems. Seed {plan.seed}.",
        f"- Every row of a recall names its run file, TREC's format, cut to the first {_DEPTH} places; "
        f"qrels lie beside it. All numbers: [{place}/numbers.json]({place}/numbers.json). How each is "
        "computed: [evaluation.md](evaluation.md).",
        *(f"- {note}" for note in study.dataset.notes),
        "",
    ]


# --- tables -----------------------------------------------------------------------------------------------


def _results(direction: str, parts: Sequence[Part], runs: str) -> Table:
    rows = [
        (
            part.form,
            system,
            *_recalls(found, VERDICT_MEASURES),
            _ties(part, system),
            _link(part, system, runs),
        )
        for part in parts
        for system, found in by_system(part.results).items()
    ]
    return Table(
        direction.capitalize(),
        f"In percent. Differences from `{BASELINE}` are paired, in points. Ties: how many of the candidates "
        "have exactly the score of another one of the same text or image; they are ranked against the "
        "system.",
        ("texts", "system", *VERDICT_MEASURES, *_DIFFERENCES, "ties, %", "run"),
        tuple(rows),
        2,
    )


def _ablations(study: Study, direction: str, parts: Sequence[Part], runs: str) -> Table:
    rows = []
    for part in parts:
        for base, results in part.ablations.items():
            for system, found in by_system(results).items():
                name = f"{base}, whole" if system == base else system
                cells = _recalls(found, ("R@1", "R@10"))
                rows.append((part.form, name, str(part.ablation_queries), *cells, _link(part, system, runs)))
    chance = ", ".join(f"{100 * part.chance:.1f} ({part.form})" for part in parts)
    told = "; ".join(f"`{name}`: {what}" for name, what in ABLATIONS.items() if study.plan.wants(name))
    return Table(
        f"With a part taken away, {direction}",
        f"{told}. Differences are from the whole system on the same queries. Equal scores are ranked "
        "against a system, so one that cannot tell images apart has 0; candidates in any order would have "
        f"{chance}.",
        ("texts", "system", "queries", "R@1", "R@10", *_DIFFERENCES, "run"),
        tuple(rows),
        2,
    )


def _recalls(found: Mapping[str, Result], measures: Sequence[str]) -> tuple[str, ...]:
    cells = [_told(found[name]) for name in measures]
    for name in ("R@1", "R@10"):
        against = found[name].against
        cells += ["", ""] if against is None else [points(against), p_value(against.p_holm)]
    return tuple(cells)


def _ties(part: Part, system: str) -> str:
    return f"{100 * part.ties[system]:.1f}" if system in part.ties else ""


def _link(part: Part, system: str, runs: str) -> str:
    return f"[run]({runs}/{run_file(part, system)}.gz)"


def _growth(bench: GalleryBench, numbers: str) -> list[str]:
    setting = bench.setting
    measured = [
        (system.replace("_", " "), f"{row['gallery']:,}", _span(row, "R@1"), _span(row, "R@10"))
        for system, rows in bench.measured.items()
        for row in _spread(rows)
    ]
    beyond = [
        (
            system.replace("_", " "),
            f"{row['gallery']:.3g}",
            *(_interval(row, name) for name in ("R@1", "R@10")),
        )
        for system, models in bench.extrapolated.items()
        for row in models.get("envelope", ())
        if row["gallery"] in (10**6, 10**8, LAION_5B)
    ]
    whole = bench.measured["first_stage"][-1]
    held = [
        (row["model"], f"{row['gallery']:,}", _span(row, "R@10"), _span(whole, "R@10"),
         f"{row['R@10_off_ci'][0]:+.1f} to {row['R@10_off_ci'][1]:+.1f}")
        for row in bench.held_out
    ]  # fmt: skip
    stress = [
        (f"{row['synthetic']:,}", f"{row['gallery']:,}", _span(row, "R@1"), _span(row, "R@10"))
        for row in _spread(bench.hard_synthetic)
    ]
    cost = [
        (f"{row['candidates']:,}", *(f"{row['seconds'][kept]:,.3g}" for kept in row["seconds"]))
        for row in bench.cost["per_query"]
    ]
    kept = tuple(f"seconds, from {name}" for name in bench.cost["per_query"][0]["seconds"])
    needed = [
        (model, _span(row, "ceiling"), f"{row['gallery']:.3g}", _within(row["K"], row["K_ci"], ","))
        for model, rows in bench.candidates_needed.items()
        for row in rows
        if row["gallery"] in (10**6, LAION_5B)
    ]
    return [
        *in_markdown(Table(
            "As the gallery grows: measured",
            f"{setting['queries']:,} texts look for their images; {setting['images']:,} images, the other "
            f"splits among them, make the largest gallery. Numbers: [{numbers}]({numbers}).",
            ("system", "images", "R@1", "R@10"), tuple(measured), 1,
        )),
        *in_markdown(Table(
            "Beside made-up distractors",
            "Vectors between real images near the queries: no images, a stress test, fitted to nothing.",
            ("made up", "gallery", "R@1", "R@10"), tuple(stress), 0,
        )),
        *in_markdown(Table(
            "Fitted on a tenth, held against the whole",
            "Three models of how hard queries are ([laion.md](laion.md)), and how far off they were, in "
            "points.",
            ("model", "gallery", "R@10 predicted", "measured", "off, 95 %"), tuple(held), 1,
        )),
        *in_markdown(Table(
            "Extrapolated",
            "Not measured. From the lowest to the highest end of all models' intervals; how far that can be "
            "trusted stands in [laion.md](laion.md).",
            ("system", "images", "R@1", "R@10"), tuple(beyond), 1,
        )),
        *in_markdown(Table(
            "Candidates that keep the ceiling",
            "How many the first stage must hand on so that as many right images are among them as now.",
            ("model", "ceiling, %", "images", "candidates needed"), tuple(needed), 1,
        )),
        *in_markdown(Table(
            "What reading them costs by Kosmos-2",
            f"Computed and not measured: {bench.cost['accelerator']}; left out: {bench.cost['left_out']}.",
            ("candidates", *kept), tuple(cost), 0,
        )),
    ]  # fmt: skip


def _spread(rows: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The first, the middle and the last."""
    return [rows[n] for n in sorted({0, len(rows) // 2, len(rows) - 1})] if rows else []


def _span(row: Mapping[str, Any], name: str) -> str:
    return _within(row[name], row[f"{name}_ci"], ".1f")


def _within(value: float, ends: Sequence[float], style: str) -> str:
    low, high = ends
    return f"{value:{style}} ({low:{style}} to {high:{style}})"


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_ci"]
    return f"{low:.2g} to {high:.2g}"


def _software(bench: AlternativesBench, numbers: str) -> Table:
    rows = []
    for contest in ("images", "captions", "first_stage"):
        for name, route in getattr(bench, contest).items():
            cells = ("", "", f"not installed: {route.missing}")
            if route.missing is None:
                cells = (
                    _within(route.seconds, route.seconds_range, ".3g"),
                    _within(route.times_ours, route.times_ours_range, ".2f"),
                    f"{route.max_abs_diff:.1g} (spread {bench.spread[contest]:.1g})",
                )
            rows.append((contest.replace("_", " "), name, *cells))
    rounds = bench.setting["rounds"]
    return Table(
        "Beside other software",
        "The same model at random weights, the same candidates, routes in turns; medians, and the fastest "
        f"and the slowest of {rounds} rounds, between which the true median lies with probability "
        f"{100 - 100 * 0.5 ** (rounds - 1):.0f} %. {' '.join(bench.notes)} Numbers: [{numbers}]({numbers}).",
        ("contest", "route", "seconds", "times ours", "largest difference"),
        tuple(rows),
        2,
    )


def _published() -> Table:
    def cell(recall: float | None) -> str:
        return "" if recall is None else f"{recall:.1f}"

    return Table(
        "Published, and not ours",
        "Zero-shot, in percent, as printed, without intervals. Other models, other training, other numbers "
        "of candidates: between two rows there is more than the kind of scoring.",
        ("data", "direction", "system", "kind", "R@1", "R@5", "R@10", "source"),
        tuple(
            (one.dataset, one.direction, one.system, one.kind, *map(cell, one.recalls), one.source)
            for one in RETRIEVAL
        ),
        4,
    )


# --- what follows -----------------------------------------------------------------------------------------

_FOLLOWS = """\
## What follows for Kosmos-2 and CLIP on LAION-5B, and what does not

What follows:

- **Text to image, the likelihood carries over from passages to images where the generator is large.**
  BLIP's log P(text | image) ranks Flickr30k about as well as BLIP's own head for matching, which was
  trained to do it, and some twelve points above OpenAI's CLIP ViT-L/14. Newer dual encoders have closed
  most of that gap without reading anything, so a re-ranker has to be compared with the best encoder one can
  afford.
- **Image to text it does not, unless the prior of the texts is taken away**: without it, likely sentences
  win. The published rows show it; what it is worth here says the ablation `fused: no prior`.
- **Join the scores.** The first stage knows what the generator does not; the weight has to be chosen on
  other images.
- **The cost is that of reading.** It grows with the number of candidates and not with the gallery, but the
  ceiling, the recall of the first stage at that number, falls as the gallery grows.

What does not follow:

- **No number for LAION-5B.** It has no relevance labels, nobody has measured this there, and the
  extrapolation above spans orders of magnitude.
- **Known-item search on LAION favours CLIP.** Pairs were kept only if CLIP ViT-B/32 gave them a cosine of
  0.28 or more (0.26 for other languages, by a multilingual CLIP), so every alt text there is one that CLIP
  finds already like its image. What CLIP misses was thrown away.
- **Both sides have seen the answers.** Kosmos-1 was trained on LAION-2B and LAION-400M, open_clip's
  `laion2b` models on LAION-2B, and Kosmos-2 starts from Kosmos-1. A recall measured on LAION is in part
  memory, and of which of the two, it does not say. The safer test beds are INQUIRE, with labels by experts,
  and images of one's own.
- **Kosmos-1's weights were never published.** Kosmos-2 starts from them and keeps their architecture; its
  numbers are not Kosmos-1's.
- **Nothing from miniature to large.** What the embedded models gain says nothing about what large ones
  gain."""

_REAL = """\
On real models, with their weights on disk or the hub at hand, and a GPU; the first on Flickr30k in Karpathy's
splits, the second on a slice of LAION as img2dataset writes it, where there is no split to tune on:

```sh
zsq verdict karpathy:dataset_flickr30k.json,flickr30k-images/ --preset clip-l14-kosmos2 \\
  --tune-on val --work work/ --out verdict-flickr30k.md
zsq verdict laion:laion-slice/ --preset clip-l14-kosmos2 --work work/ --out verdict-laion.md
```

Neither has been run by us: the weights and the GPU were not at hand."""

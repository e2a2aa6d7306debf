"""Recall and time of re-ranking by adaptive depth, against fixed numbers of candidates.

python -m benchmarks.depth flickr8k:DIR --split dev --fit --work WORK --json
python -m benchmarks.depth flickr8k:DIR --split test --work WORK --plot docs/depth/test.svg

One caption of each image searches the others. ``--fit`` estimates the constants of the stopping rule on every
other query and measures the rest; without it, the constants are the preset's and all queries are measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.output import command_line, progress_bar, run, write_results
from zsqretrieval._util.cache import Cache
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import open_dataset
from zsqretrieval.evaluation.metrics import measure
from zsqretrieval.evaluation.report.figures import PALETTE
from zsqretrieval.evaluation.run import Run, fused_run, rerank_depth, shallow, some_rows, with_scores
from zsqretrieval.evaluation.scores import Bench, Part
from zsqretrieval.evaluation.settings import Settings
from zsqretrieval.evaluation.stats import ClusterBootstrap
from zsqretrieval.presets import preset_named
from zsqretrieval.search.depth import ROUND, Depth, fit
from zsqretrieval.search.fusion import WeightedSum
from zsqretrieval.search.scoring import Likelihood, score_pairs

MEASURES = ("R@1", "R@5", "R@10", "MRR")
FIXED = (10, 20, 30, 50, 100)
RISKS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
K = 10


@dataclass(frozen=True, slots=True)
class Scored:
    """Queries with the likelihoods of all their candidates."""

    first: Run  # all candidates of the first stage
    scored: Run  # likelihoods of the first of them

    def some(self, rows: NDArray[np.int64]) -> Scored:
        """Some of the queries."""
        first = some_rows(self.first, rows)
        scored = some_rows(self.scored, rows)
        return Scored(first, Run(scored.name, first.task, scored.candidates, scored.scores))

    def ranked(self, fusion: WeightedSum, depths: NDArray[np.int64]) -> Run:
        """The ranking if so many candidates of each query [q] are scored."""
        width = self.scored.candidates.shape[1]
        read = np.arange(width) < depths[:, None]
        scored = with_scores(self.scored, np.where(read, self.scored.scores, np.nan))
        fused = fused_run(shallow(self.first, width), scored, fusion)
        return rerank_depth(self.first, fused, width)


def depths_at(depth: Depth, fusion: WeightedSum, of: Scored, risk: float, k: int) -> NDArray[np.int64]:
    """Candidates that a search for k hits scores, int64 [q]."""
    width = of.scored.candidates.shape[1]
    found = []
    for first, scores in zip(of.first.scores[:, :width], of.scored.scores, strict=True):
        count = min(max(k, ROUND), width)
        while count < width and depth.missing(fusion, first, scores[:count], k) > risk:
            count = min(count + ROUND, width)
        found.append(count)
    return np.array(found, np.int64)


def cpu_seconds(
    part: Part, rows: NDArray[np.int64], reads: dict[str, tuple[NDArray[np.int64], int]], rounds: int
) -> dict[str, float]:
    """Mean CPU seconds of a query for scoring ``(depths [q], candidates in a round)``, by name.

    The ways take turns; the median of the rounds counts.
    """
    bench, found = part.bench, {name: np.zeros((rounds, len(rows))) for name in reads}
    for turn in range(rounds):
        for n, row in enumerate(rows.tolist()):
            states = bench.shown(part.first.candidates[row, : max(FIXED)].tolist())
            for name, (depths, size) in reads.items():
                begin = time.process_time()
                start, end = 0, int(depths[row])
                while start < end:
                    some = states[start : min(start + size, end)]
                    score_pairs(bench.generator, Likelihood(), [part.texts[row]] * len(some), some)
                    start += size
                found[name][turn, n] = time.process_time() - begin
    return {name: float(np.median(seconds, axis=0).mean()) for name, seconds in found.items()}


def rows_of(of: Scored, runs: dict[str, tuple[Run, float]], against: str) -> list[dict[str, Any]]:
    """Measures of every run, with its candidates, and intervals of the difference from one of them."""
    draws = ClusterBootstrap(of.first.task.clusters)
    values = {name: measure(one, MEASURES) for name, (one, _) in runs.items()}
    return [
        {
            "way": name,
            "candidates": candidates,
            **{
                what: {
                    "value": float(values[name][what].mean()),
                    "gain": float((values[name][what] - values[against][what]).mean()),
                    "interval": draws.mean_interval(values[name][what] - values[against][what]),
                }
                for what in MEASURES
            },
        }
        for name, (_, candidates) in runs.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "depth",
        "Measure recall and time of adaptive depth against fixed numbers of candidates.",
        queries=(200, "Queries, each of another image."),
        timed=(8, "Queries that are timed."),
        rounds=(3, "Rounds of the timing."),
    )
    parser.add_argument("dataset", help="As for zsq evaluate, such as flickr8k:DIR.")
    parser.add_argument("--split", help="Split of the data set [default: test, if there are splits].")
    parser.add_argument("--preset", default="mini", help="Encoder, generator and constants.")
    parser.add_argument("--work", type=Path, required=True, help="Folder of the cache.")
    parser.add_argument("--fit", action="store_true", help="Estimate the constants on every other query.")
    parser.add_argument("--risks", default=",".join(map(str, RISKS)), help="Bounds to measure.")
    parser.add_argument("--plot", type=Path, help="SVG of recall by time.")
    given = parser.parse_args(arguments)
    preset = preset_named(given.preset)
    fusion, generator = preset.calibration.fusion, preset.make_generator()
    if generator is None or not isinstance(fusion, WeightedSum):
        raise InvalidInputError(f"the preset {given.preset!r} has no generator with a raw weighted sum")
    risks = [float(one) for one in given.risks.split(",")]
    settings = Settings(queries=given.queries, candidates=max(FIXED))
    data = open_dataset(given.dataset, given.split)
    with Cache(given.work / "cache.sqlite") as cache, progress_bar("scoring") as advance:
        bench = Bench(
            preset.make_encoder(), generator.get(), data, settings, cache,
            lambda name, done, total: advance(name, round(done), total),
        )  # fmt: skip
        part = bench.part("text to image", data.forms[0], given.queries)
        scored = part.scored(Likelihood(), max(FIXED))
        whole = Scored(part.first, scored)
        measured, depth = np.arange(len(part.task.queries)), preset.calibration.depth
        if given.fit:
            fitted = whole.some(measured[::2])
            depth = fit(fitted.first.scores[:, : max(FIXED)], fitted.scored.scores)
            measured = measured[1::2]
        if depth is None:
            raise InvalidInputError(f"the preset {given.preset!r} has no constants of depth; use --fit")
        width = scored.candidates.shape[1]
        depths = {f"{n}": np.full(len(whole.first.scores), min(n, width)) for n in FIXED}
        depths |= {f"risk {one:g}": depths_at(depth, fusion, whole, one, K) for one in risks}
        sizes = {name: ROUND if name.startswith("risk") else width for name in depths}
        timed = measured[np.linspace(0, len(measured) - 1, given.timed).astype(int)]
        seconds = cpu_seconds(
            part, timed, {name: (depths[name], sizes[name]) for name in depths}, given.rounds
        )
    of = whole.some(measured)
    runs = {
        name: (of.ranked(fusion, some[measured]), float(some[measured].mean()))
        for name, some in depths.items()
    }
    rows = rows_of(of, runs, f"{max(FIXED)}")
    full = next(row for row in rows if row["way"] == f"{max(FIXED)}")
    rate = {name: seconds[name] / max(float(depths[name][timed].mean()), 1) for name in depths}
    for row in rows:
        row["ms_per_candidate"] = 1000 * rate[row["way"]]
        row["seconds"] = rate[row["way"]] * row["candidates"]
    for row in rows:
        row["time_ratio"] = row["seconds"] / full["seconds"]
    if given.plot:
        _draw(rows, given.plot)
    write_results(
        {
            "dataset": given.dataset.partition(":")[0],
            "split": given.split,
            "queries": len(measured),
            "depth": asdict(depth),
            "fitted": given.fit,
            "fusion": repr(fusion),
            "k": K,
            "ways": rows,
        },
        ("way", "candidates", "CPU s", "of 100", *(f"{what}, gain" for what in MEASURES)),
        [_line(row) for row in rows],
        [
            f"{len(measured)} queries, gains over {max(FIXED)} candidates in points with 95 % intervals",
            f"{depth}",
        ],
        as_json=given.json,
    )


def _line(row: dict[str, Any]) -> Sequence[str]:
    gains = [
        f"{100 * one['value']:.1f} {100 * one['gain']:+.1f} "
        f"({100 * one['interval'][0]:+.1f} to {100 * one['interval'][1]:+.1f})"
        for one in (row[what] for what in MEASURES)
    ]
    return (
        row["way"],
        f"{row['candidates']:.1f}",
        f"{row['seconds']:.2f}",
        f"{row['time_ratio']:.2f}",
        *gains,
    )


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """R@1 and R@10 by time, fixed and adaptive."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure((3.75, 3.0), layout="constrained")
    axes = figure.subplots()
    for what, colour in (("R@1", PALETTE[0]), ("R@10", PALETTE[1])):
        for adaptive, marker in ((False, "s--"), (True, "o-")):
            some = sorted((one for one in rows if one["way"].startswith("risk") == adaptive),
                          key=lambda one: one["seconds"])  # fmt: skip
            label = f"{what}, {'adaptive' if adaptive else 'fixed'}"
            axes.plot([one["seconds"] for one in some], [100 * one[what]["value"] for one in some],
                      marker, ms=4, lw=1.3, color=colour, label=label)  # fmt: skip
    axes.set(xlabel="CPU seconds of scoring a question", ylabel="%", ylim=(0, 100), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "zsqretrieval"}):  # the same file every time
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    run(main)

"""Recall and time of re-ranking by adaptive depth, against fixed numbers of candidates.

python -m benchmarks.depth flickr8k:DIR --split dev --fit --work WORK --json
python -m benchmarks.depth flickr8k:DIR --split test --work WORK --plot docs/depth/test.svg

One caption of each image searches the others. ``--fit`` estimates the constants of the stopping rule on every
other query and measures the rest; without it, the constants are the preset's and all queries are measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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


def seconds_per_candidate(part: Part, width: int, rows: NDArray[np.int64], rounds: int) -> dict[int, float]:
    """CPU seconds of a candidate by the number scored in one call: all, or a round.

    Both ways score the candidates of the queries ``rows`` from cached image features, in turns.
    """
    bench = part.bench
    found: dict[int, list[float]] = {width: [], ROUND: []}
    for _ in range(rounds):
        for row in rows.tolist():
            states = bench.shown(part.first.candidates[row, :width].tolist())
            for size, seconds in found.items():
                begin = time.process_time()
                for start in range(0, len(states), size):
                    some = states[start : start + size]
                    score_pairs(bench.generator, Likelihood(), [part.texts[row]] * len(some), some)
                seconds.append((time.process_time() - begin) / len(states))
    return {size: float(np.median(seconds)) for size, seconds in found.items()}


def rows_of(
    of: Scored, fusion: WeightedSum, depths: dict[str, NDArray[np.int64]], against: str
) -> list[dict[str, Any]]:
    """Measures at the depths [q] of every way, and the differences from one of them with intervals.

    ``missing`` is the mean number of its first results that another way lacks, ``same`` the share of queries
    with none missing.
    """
    draws = ClusterBootstrap(of.first.task.clusters)
    runs = {name: of.ranked(fusion, some) for name, some in depths.items()}
    values = {name: measure(one, MEASURES) for name, one in runs.items()}
    best = best_of(runs[against])
    rows = []
    for name, some in depths.items():
        missing = np.array([len(np.setdiff1d(*both)) for both in zip(best, best_of(runs[name]), strict=True)])
        row: dict[str, Any] = {"way": name, "candidates": float(some.mean())}
        row |= {"missing": float(missing.mean()), "same": float((missing == 0).mean())}
        for what in MEASURES:
            gain = values[name][what] - values[against][what]
            row[what] = {"value": float(values[name][what].mean()), "gain": float(gain.mean())}
            row[what]["interval"] = draws.mean_interval(gain)
        rows.append(row)
    return rows


def best_of(run: Run) -> NDArray[np.int64]:
    """The first results of every query, int64 [q, K]."""
    order = np.argsort(-run.scores, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(run.candidates, order, 1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "depth",
        "Measure recall and time of adaptive depth against fixed numbers of candidates.",
        queries=(200, "Queries, of different images as far as there are."),
        candidates=(100, "Candidates at most."),
        timed=(4, "Queries that are timed."),
        rounds=(2, "Rounds of the timing."),
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
    settings = Settings(queries=given.queries, candidates=given.candidates)
    data = open_dataset(given.dataset, given.split)
    with Cache(given.work / "cache.sqlite") as cache, progress_bar("scoring") as advance:
        bench = Bench(
            preset.make_encoder(), generator.get(), data, settings, cache,
            lambda name, done, total: advance(name, round(done), total),
        )  # fmt: skip
        part = bench.part("text to image", data.forms[0], given.queries)
        scored = part.scored(Likelihood(), given.candidates)
        width, of, depth = scored.candidates.shape[1], Scored(part.first, scored), preset.calibration.depth
        every = np.arange(len(part.task.queries))
        timed = every[np.linspace(0, len(every) - 1, given.timed).astype(int)]
        seconds = seconds_per_candidate(part, width, timed, given.rounds)
    if given.fit:
        fitted, of = of.some(every[::2]), of.some(every[1::2])
        depth = fit(fitted.first.scores[:, :width], fitted.scored.scores)
    if depth is None:
        raise InvalidInputError(f"the preset {given.preset!r} has no constants of depth; use --fit")
    depths = {f"{n}": np.full(len(of.first.scores), n) for n in sorted({*FIXED, width}) if n <= width}
    depths |= {f"risk {one:g}": depths_at(depth, fusion, of, one, K) for one in risks}
    rows = rows_of(of, fusion, depths, f"{width}")
    for row in rows:
        row["seconds"] = seconds[ROUND if row["way"].startswith("risk") else width] * row["candidates"]
    slowest = max(row["seconds"] for row in rows if row["way"] == f"{width}")
    for row in rows:
        row["time_ratio"] = row["seconds"] / slowest
    if given.plot:
        _draw(rows, given.plot)
    write_results(
        {
            "dataset": given.dataset.partition(":")[0],
            "split": given.split,
            "queries": len(of.first.scores),
            "candidates": width,
            "depth": asdict(depth),
            "fitted": given.fit,
            "fusion": repr(fusion),
            "k": K,
            "ms_per_candidate": {"at once": 1000 * seconds[width], "in rounds": 1000 * seconds[ROUND]},
            "ways": rows,
        },
        ("way", "candidates", "CPU s", "of all", "missing", "same", *(f"{what}, gain" for what in MEASURES)),
        [_line(row) for row in rows],
        [
            f"{len(of.first.scores)} queries; gains over {width} candidates in points, with 95 % intervals",
            f"missing: of its first {K} results; same: % of queries; {depth}",
        ],
        as_json=given.json,
    )


def _line(row: dict[str, Any]) -> Sequence[str]:
    gains = [
        f"{100 * one['value']:.1f} {100 * one['gain']:+.1f} "
        f"({100 * one['interval'][0]:+.1f} to {100 * one['interval'][1]:+.1f})"
        for one in (row[what] for what in MEASURES)
    ]
    spent = f"{row['candidates']:.1f}", f"{row['seconds']:.2f}", f"{row['time_ratio']:.2f}"
    return (row["way"], *spent, f"{row['missing']:.2f}", f"{100 * row['same']:.1f}", *gains)


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Recalls, and the share of questions with the same first results, by time: fixed and adaptive."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure((3.75, 3.4), layout="constrained")
    axes = figure.subplots()
    values: dict[str, Callable[[dict[str, Any]], float]] = {
        "R@1": lambda one: one["R@1"]["value"],
        "R@10": lambda one: one["R@10"]["value"],
        f"same first {K}": lambda one: one["same"],
    }
    for (what, value), colour in zip(values.items(), PALETTE, strict=False):
        for adaptive, marker in ((False, "s--"), (True, "o-")):
            some = [one for one in rows if one["way"].startswith("risk") == adaptive]
            some.sort(key=lambda one: float(one["seconds"]))
            label = f"{what}, {'adaptive' if adaptive else 'fixed'}"
            shares = [100 * value(one) for one in some]
            axes.plot(
                [one["seconds"] for one in some], shares, marker, ms=4, lw=1.3, color=colour, label=label
            )
    axes.set(xlabel="CPU seconds of scoring a question", ylabel="%", ylim=(0, 103), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "zsqretrieval"}):  # the same file every time
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    run(main)

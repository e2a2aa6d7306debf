"""The sections of ``docs/performance.md``: commands that measure, and goals of their numbers.

A section stays out of the page while its JSON is missing. Where a goal is missed, ``reason`` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]
ANSWERS = ("first stage", "re-ranked")


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of a number of a JSON file, or of a table of numbers."""

    text: str
    value: Callable[[Facts], Any]  # the number or {name: number}; None or a KeyError where not measured
    bound: float
    unit: str = "x"  # "x" for ratios, "%" for shares, else printed after the number
    at_most: bool = False
    reason: str = ""

    def measured(self, facts: Facts) -> dict[str, float | None]:
        """Numbers by name, "" for a single one."""
        try:
            found = self.value(facts)
        except KeyError:
            found = None
        return dict(found) if isinstance(found, Mapping) else {"": found}

    def reached(self, values: Mapping[str, float | None]) -> bool:
        """Whether every number was measured and is within the bound."""
        numbers = list(values.values())
        return None not in numbers and all(
            (value <= self.bound) if self.at_most else (value >= self.bound)
            for value in numbers
            if value is not None
        )


@dataclass(frozen=True, slots=True)
class Section:
    """Numbers of one JSON file."""

    title: str
    file: str  # under docs/data
    command: str  # after "python -m", prints the JSON with --json
    goals: tuple[Goal, ...]
    kind: str = ""  # "index": with the table of systems and the plot; "depth": with the plot


_REFINING = (
    "missed: that would be 0.012 ms a query, of which its reduction, the choice of its lists and the "
    "comparison with 20 whole vectors of 1,408 numbers take 0.011, before any list is read"
)
_PYTHON = (
    "missed: the checks, locks and small arrays of a call take 0.06 ms in Python; beside the work of a query "
    "in a batch, 3x would leave 0.005 to 0.06 ms for them"
)
_MEMORY = (
    "missed: a query reads 3 MB of codes, which do not fit into the cache, at 11 GB/s; another processor of "
    "the family gave 3.8x to 3.9x"
)
_SCANN = (
    "missed: ScaNN reads codes of 4 bits, and takes 13 times the memory and 8 times the build; faiss's own "
    "4-bit codes lose too many neighbours there"
)


def _index(batch: float, single: float, missed: str, *best: str, built: str = "") -> tuple[Goal, ...]:
    def of(key: str) -> Callable[[Facts], Any]:
        return lambda facts: facts[key]

    return (
        Goal("queries in batch, to hnswlib", of("qps_ratio_to_hnswlib"), batch, reason=missed),
        Goal("queries one by one, to hnswlib", of("qps_ratio_to_hnswlib_one_by_one"), single, reason=_PYTHON),
        *(
            Goal("queries in batch, to the best other", of("qps_ratio_to_best_peer"), 2, reason=why)
            for why in best
        ),
        Goal(
            "CPU time of the build, to hnswlib", of("build_ratio_to_hnswlib"), 0.2, at_most=True, reason=built
        ),
        Goal("resident memory, to hnswlib", of("memory_ratio_to_hnswlib"), 0.15, at_most=True),
    )


_SCORING = "benchmarks.scoring --candidates 100 --profile --dtype float32"


def _scoring(missed: str = "") -> tuple[Goal, ...]:
    return (
        Goal(
            "fastest route to pair by pair, 100 candidates", lambda facts: facts["speedup"], 6, reason=missed
        ),
        Goal(
            "from pixels: of the ceiling of matrix products",
            lambda facts: facts["routes"]["batched"]["ceiling_share"], 0.5, "%",
        ),
    )  # fmt: skip


def _depth(facts: Facts) -> Facts:
    """What stopping at the preset's bound gave."""
    return next(way for way in facts["ways"] if way["way"] == "risk 0.5")


SECTIONS = (
    Section(
        "Index, 100,000 synthetic vectors", "performance-index.json",
        "benchmarks.index --vectors 100000 --threads 1 --systems "
        "compressed,hnswlib,faiss-hnsw-sq8,faiss-ivf-sq8,usearch-i8,scann",
        (
            *_index(4, 3, "", _SCANN),
            Goal("exact search, to the product alone", lambda f: f["exact"]["share_of_product"], 0.6, "%"),
        ),
        "index",
    ),
    Section(
        "Index, 1,000,000 synthetic vectors", "performance-index-1m.json",
        "benchmarks.index --vectors 1000000 --threads 1 --systems compressed,hnswlib",
        _index(4, 3, _MEMORY), "index",
    ),
    Section(
        "Index, real vectors of photographs and captions", "performance-index-real.json",
        "benchmarks.index --vectors photos.npy --queries captions.npy --threads 1 --systems "
        "compressed,hnsw,hnswlib,faiss-hnsw-sq8,faiss-ivf-sq8,usearch-i8,scann",
        _index(
            6, 3, _REFINING, _REFINING,
            built="missed: half of the time for 8,000 vectors goes into components of 1,408 numbers",
        ),
        "index",
    ),
    Section(
        "Index, two threads", "performance-threads.json",
        "benchmarks.index --vectors 100000 --threads 2 --systems compressed",
        (
            Goal(
                "build, two threads to one", lambda f: f["scaling"]["compressed"]["build_speedup"], 1.8,
                reason="missed: k-means, half of a build, gains 1.7x; digests of the vectors and the choice "
                "of the components take one thread",
            ),
            Goal(
                "batch, two threads to one", lambda f: f["scaling"]["compressed"]["batch_speedup"], 1.8,
                reason="missed by a little; single runs gave 1.5x to 1.8x",
            ),
        ),
    ),
    Section(
        "Scoring engine, processor with AVX2", "performance-scoring.json", _SCORING, _scoring(),
    ),
    Section(
        "Scoring engine, processor with AVX-512", "performance-scoring-avx512.json", _SCORING,
        _scoring(
            "missed: pair by pair reaches 83 % of the ceiling by itself there, and its arithmetic is only "
            "4.7 times that of the fastest route"
        ),
    ),
    Section(
        "Questions re-ranked in a batch, mini", "performance-batches-mini.json",
        "benchmarks.batches --tar FLICKR8K/dev-00000.tar --images 1000 --questions 100 --candidates 50",
        (
            Goal(
                "to one by one", lambda facts: facts["rate_ratio"], 2,
                reason="missed: an image, which is read once for all its questions, costs this generator "
                "little beside the question and its vocabulary",
            ),
        ),
    ),
    Section(
        "Questions re-ranked in a batch, Kosmos at full width, 4 layers, random weights",
        "performance-batches-kosmos.json",
        "benchmarks.batches --tar FLICKR8K/dev-00000.tar --images 200 --questions 20 --kosmos-layers 4",
        (Goal("to one by one", lambda facts: facts["rate_ratio"], 2),),
    ),
    Section(
        "Adaptive depth", "performance-depth.json",
        "benchmarks.depth flickr8k:DIR --split test --queries 100 --risks 0.05,0.1,0.2,0.5,1,2 --work WORK",
        (
            Goal(
                "with risk=0.5, of the time of all candidates", lambda f: _depth(f)["time_ratio"],
                1 / 3, "%", at_most=True,
            ),
            Goal(
                "with risk=0.5, recall to that of all candidates",
                lambda f: {name: 100 * _depth(f)[name]["gain"] for name in ("R@1", "R@5", "R@10")},
                0, "points",
            ),
        ),
        "depth",
    ),
    Section(
        "Image features on disk", "performance-states.json", "benchmarks.states",
        (
            Goal(
                "100 features, page cache empty",
                lambda f: {name: f[name]["cold"]["wall_ms"] for name in ("mini", "kosmos")},
                50, "ms", at_most=True,
            ),
        ),
    ),
    Section(
        "Adding a folder", "performance-add.json", "benchmarks.add --images 64",
        (
            Goal(
                "of the encoder alone, by wall time and by CPU time", lambda f: f["of_ceiling"], 0.9, "%",
                reason="missed by CPU time: of the 15 ms an image takes, 1.6 are spent on decoding it, which "
                "a second core does in parallel",
            ),
        ),
    ),
    Section(
        "First question", "performance-latency.json", "benchmarks.latency",
        (
            Goal(
                "from zsq search to the answer",
                lambda f: {name: f["commands"][name]["wall_s"]["median"] for name in ANSWERS},
                3, "s", at_most=True,
            ),
        ),
    ),
)  # fmt: skip

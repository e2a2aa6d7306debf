"""Generate questions about photographs, search them, and explain the results; prints Markdown.

    python -m benchmarks.ask_photographs

The photographs are those of the demo, so it runs offline with the mini models. Nothing
is selected: errors of the small model are printed as well.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
from itertools import islice

from zsqretrieval import PRESETS, Retriever
from zsqretrieval.data.samples import photographs
from zsqretrieval.search.explain import words
from zsqretrieval.types import Hit

SHOWN = 6  # questions that are printed
SEARCHED = ("what is the cat doing?", "where is the rocket?", "how many people are there?")


def main() -> None:
    """Print the first questions, and three searches with and without all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--top-k", type=int, default=3)
    args = parser.parse_args()
    preset = PRESETS[args.preset].variant(index="exact")
    with Retriever.from_preset(preset) as retriever:
        retriever.add(photographs())
        report = retriever.questions.generate(3, answers=True, top_k=args.top_k)
        counts = f"{report.questions} questions of {report.asked} photographs, {report.kept} kept"
        print(f"{counts} (`top_k={args.top_k}`).\n")
        print("| image | question | answer | own rank | kept |\n|---|---|---|---|---|")
        for one in islice(retriever.questions.list(), SHOWN):
            rank = one.judgement.rank or f"> {args.top_k}"
            kept = "yes" if one.judgement.kept else ""
            print(f"| {one.id} | {one.text} | {one.answer or ''} | {rank} | {kept} |")
        print("\n| searched | without questions | with questions | matched question |\n|---|---|---|---|")
        for text in SEARCHED:
            plain = retriever.search(text, 1, rerank=None)[0]
            found = retriever.search(text, 1, expand=True, rerank=None)[0]
            print(f"| {text} | {plain.id} | {found.id} | {found.matched_question or ''} |")
        ranking = retriever.search(SEARCHED[0], 3, explain=True)
        print(f"\nExplained for “{ranking.query}”:\n")
        print("| image | answers | nats that the image adds to each word |\n|---|---|---|")
        for hit in ranking:
            print(f"| {hit.id} | {_answer(hit)} | {_words(hit)} |")


def _answer(hit: Hit) -> str:
    return hit.explanation.answer if hit.explanation else ""


def _words(hit: Hit) -> str:
    if hit.explanation is None:
        return ""
    return " ".join(f"{word.text} ({word.gain:+.1f})" for word in words(hit.explanation))


if __name__ == "__main__":
    main()

"""Re-rank with a model from elsewhere, and use a generator of the library as a cross-encoder elsewhere.

    python examples/rerank_with_a_cross_encoder.py
    python examples/rerank_with_a_cross_encoder.py --model Qwen/Qwen3-VL-Reranker-2B

``--model`` is a folder or hub repository of a CrossEncoder that takes images (``pip install
sentence-transformers``); a GPU is advisable. Without it, the mini generator scores log-odds of yes: the same
interface, offline, in half a minute. The mini generator ranks worse by this than by the likelihood.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse

from zsqretrieval import Rerank, Retriever, as_cross_encoder
from zsqretrieval.data.samples import photographs
from zsqretrieval.rerankers.cross_encoder import CrossEncoderReranker
from zsqretrieval.rerankers.generative import YesNoReranker


def main() -> None:
    """Print the order before and after, then the same scores through ``CrossEncoder.rank``."""
    parser = argparse.ArgumentParser(description="Re-rank with a cross-encoder.")
    parser.add_argument("question", nargs="?", default="an animal with fur")
    parser.add_argument("--model", help="the mini generator without it")
    parser.add_argument("--candidates", type=int, default=8)
    given = parser.parse_args()
    with Retriever.from_preset("mini") as retriever:
        assert retriever.generator is not None
        retriever.add(photographs())
        reranker = CrossEncoderReranker(given.model) if given.model else YesNoReranker(retriever.generator)
        first = retriever.search(given.question, k=given.candidates, rerank=None)
        print("first stage:", ", ".join(str(id) for id in first.ids))
        found = retriever.search(
            given.question, k=given.candidates, rerank=Rerank(reranker, candidates=given.candidates)
        )
        print(f"{reranker.name}:", ", ".join(f"{hit.id} ({hit.score:.2f})" for hit in found))

        model = as_cross_encoder(retriever.generator)  # predict and rank as in sentence-transformers
        ranked = model.rank(given.question, [hit.source for hit in first], top_k=3)
        print(
            "as_cross_encoder:",
            ", ".join(f"{first[one['corpus_id']].id} ({one['score']:.2f})" for one in ranked),
        )


if __name__ == "__main__":
    main()

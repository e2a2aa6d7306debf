"""Re-rank with Kosmos-2 on a GPU: scores, and time per candidate.

    python examples/kosmos2_gpu.py --weights microsoft/kosmos-2-patch14-224

Downloads 6.7 GB unless ``--weights`` is a folder of ``Kosmos1Generator.save_pretrained``. About a minute on a
GPU after the download, most of it loading; on a CPU give ``--candidates 4``. Not yet run with the real
weights: the tests run it with a small random model of the same architecture.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import time

from zsqretrieval import Kosmos1Generator, Rerank, Retriever
from zsqretrieval.data.samples import photographs
from zsqretrieval.mini.encoder import MiniEncoder
from zsqretrieval.tasks import caption


def main() -> None:
    """Search twice, so that the second search has cached image features."""
    parser = argparse.ArgumentParser(description="Re-rank with Kosmos-2.")
    parser.add_argument("question", nargs="?", default="Is a rocket still standing on its launch pad?")
    parser.add_argument("--weights", default="microsoft/kosmos-2-patch14-224", help="folder or repository")
    parser.add_argument("--device", help="cuda, mps or cpu; the best by default")
    parser.add_argument("--candidates", type=int, default=50)
    given = parser.parse_args()
    generator = Kosmos1Generator.from_pretrained(given.weights, device=given.device)
    with Retriever(MiniEncoder.from_pretrained(), generator=generator) as retriever:
        retriever.add(photographs())
        for run in ("from pixels", "cached features"):
            start = time.perf_counter()
            ranking = retriever.search(given.question, 3, rerank=Rerank(candidates=given.candidates))
            count = min(given.candidates, len(retriever))
            print(f"{run}: {(time.perf_counter() - start) / count * 1000:.1f} ms per candidate")
        for hit in ranking:
            print(f"  {hit.id:<16} log P(question | image) {hit.scores['likelihood']:.2f}")
        best = next(image for image in photographs() if image.id == ranking[0].id)
        print(f"caption of the first: {caption(generator, [best])[0]}")


if __name__ == "__main__":
    main()

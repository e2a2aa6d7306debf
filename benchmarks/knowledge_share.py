"""Recall of the mini encoder by the share of its knowledge (docs/mini-encoder.md).

    python -m benchmarks.knowledge_share dev:PATH/TO/flickr8k test:STAMPS --json

Takes folders of WebDataset shards, each behind the name of a split; ``benchmarks.zero_shot_stamps`` makes
one. A vector has the heads first and then the knowledge; the share weighs their cosines, so that one encoding
serves for all shares.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.nothing_found import vectors_of
from benchmarks.output import command_line, run, write_results
from zsqretrieval.evaluation.metrics import first_ranks
from zsqretrieval.mini.encoder import HEAD_DIM, MiniEncoder

SHARES = (0.0, 0.25, 0.5, 1.0)
DEPTHS = (1, 5, 10)


def recalls(
    images: NDArray[np.float32], captions: NDArray[np.float32], own: NDArray[np.int64]
) -> dict[str, list[float]]:
    """Recall at 1, 5 and 10 by share, of captions for their own images; a tie counts as a miss."""
    parts = [
        captions[:, some] @ images[:, some].T * 2  # cosines: with the share 0.5 each part has half the length
        for some in (slice(2 * HEAD_DIM), slice(2 * HEAD_DIM, None))
    ]
    found, right = {}, np.arange(len(images)) == own[:, None]
    for share in SHARES:
        scores = (1 - share) * parts[0] + share * parts[1]
        ranks = first_ranks(scores, right)
        found[f"{share:g}"] = [float((ranks < depth).mean()) for depth in DEPTHS]
    return found


def main() -> None:
    """Run the command line."""
    parser = command_line("knowledge_share", "Recall of the mini encoder by the share of its knowledge.")
    parser.add_argument("data", nargs="+", help="SPLIT:FOLDER of WebDataset shards")
    parser.add_argument("--work", type=Path, help="folder that keeps the vectors [default: temporary]")
    given = parser.parse_args()
    encoder = MiniEncoder.from_pretrained(knowledge_share=0.5)
    facts = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, one in enumerate(given.data):
            split, folder = one.split(":", 1)
            work = (given.work or Path(temporary)) / str(number)
            facts[f"{split} of {Path(folder).name}"] = recalls(
                *vectors_of(encoder, Path(folder), split, work)
            )
    write_results(
        facts, ("data", "share", *(f"R@{depth}" for depth in DEPTHS)),
        [
            (name, share, *(f"{100 * one:.1f}" for one in values))
            for name, shares in facts.items()
            for share, values in shares.items()
        ],
        [], as_json=given.json,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)

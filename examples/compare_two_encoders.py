"""Compare two encoders on labelled questions, with the uncertainty that few questions leave.

    python examples/compare_two_encoders.py
    python examples/compare_two_encoders.py --b clip '{"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}'

An encoder is a plugin name and settings. By default the mini encoder is compared with its untrained part,
the names of ImageNet's classes, on the questions of the demo: twenty seconds on two cores. For a data set of
your own use ``zsq evaluate`` (docs/evaluation.md).
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from zsqretrieval import plugins
from zsqretrieval.data.samples import QUESTIONS, photographs
from zsqretrieval.encoders.checked import encode_images, encode_texts


def ranks(name: str, settings: str, questions: dict[str, str]) -> NDArray[np.int64]:
    """The position of the expected photograph of each question, from 1; a tie counts as a miss."""
    images = photographs()
    place = {image.id: n for n, image in enumerate(images)}
    encoder = plugins.create("encoder", name, json.loads(settings))
    cosines = encode_texts(encoder, list(questions)) @ encode_images(encoder, images).T
    right = cosines[range(len(questions)), [place[id] for id in questions.values()]]
    return np.asarray((cosines >= right[:, None]).sum(1))


def main() -> None:
    """Print both recalls, the questions on which the encoders differ, and a sign test."""
    parser = argparse.ArgumentParser(description="Compare two encoders on the questions of the demo.")
    parser.add_argument("--a", nargs=2, default=["mini", "{}"], metavar=("NAME", "SETTINGS"))
    parser.add_argument(
        "--b", nargs=2, default=["mini", '{"knowledge_share": 1}'], metavar=("NAME", "SETTINGS")
    )
    given = parser.parse_args()
    questions = {one.text: one.expected for one in QUESTIONS if one.expected is not None}
    a, b = ranks(*given.a, questions), ranks(*given.b, questions)
    print("| encoder | R@1 | R@3 | MRR |\n|---|--:|--:|--:|")
    for encoder, found in ((given.a, a), (given.b, b)):
        recalls = [100 * float((found <= k).mean()) for k in (1, 3)]
        print(f"| {' '.join(encoder)} | {recalls[0]:.0f} | {recalls[1]:.0f} | {(1 / found).mean():.2f} |")
    print("\n| question | rank by the first | by the second |\n|---|--:|--:|")
    for question, one, other in zip(questions, a, b, strict=True):
        if one != other:
            print(f"| {question} | {one} | {other} |")
    better, worse = int((a < b).sum()), int((a > b).sum())
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    print(f"\nThe first ranks higher {better} times, the second {worse} times: p = {p:.2g} (sign test).")


if __name__ == "__main__":
    main()

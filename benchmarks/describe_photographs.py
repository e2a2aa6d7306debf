"""Captions, questions and answers of a generator for photographs; prints a Markdown table.

    python -m benchmarks.describe_photographs --data flickr8k:PATH --split dev --count 20

The first photographs of a split, unselected, each with a person's caption and the generator's texts.
"""

from __future__ import annotations

import argparse

from zsqretrieval import plugins
from zsqretrieval.evaluation.datasets import open_dataset
from zsqretrieval.generators.prompts import PROMPTS


def main() -> None:
    """Print one row for each photograph."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="data set, as for zsq evaluate")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--generator", default="mini", help="plugin name")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    generator = plugins.create("generator", args.generator, {})
    dataset = open_dataset(args.data, args.split)
    images = dataset.gallery[: args.count]
    human = {  # the first caption of each image
        image: query.text for query in reversed(dataset.queries) for image in dataset.qrels[query.id]
    }
    captions = generator.generate([PROMPTS["captioning"].context(image) for image in images])
    asked = [PROMPTS["ask"].context(image) for image in images]
    questions = generator.generate(asked, temperature=0.7, seed=args.seed)
    answers = generator.generate(
        [
            PROMPTS["vqa"].context(image, question=question[0])
            for image, question in zip(images, questions, strict=True)
        ]
    )
    print("| | human caption | generated caption | question | answer |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    rows = zip(images, captions, questions, answers, strict=True)
    for number, (image, caption, question, answer) in enumerate(rows, 1):
        cells = (human[image.id or ""].strip(), caption[0], question[0], answer[0])
        print(f"| {number} | {' | '.join(cell.replace('|', '/') for cell in cells)} |")  # noqa: T201


if __name__ == "__main__":
    main()

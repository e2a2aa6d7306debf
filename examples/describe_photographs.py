"""Let a generator describe photographs, ask about them and answer; prints a Markdown table.

    python examples/describe_photographs.py --data PATH/TO/flickr8k --split dev --count 20

The first photographs of a split, unselected: what a person wrote, and what the generator writes.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from zsqretrieval import plugins
from zsqretrieval.evaluation.encoder_bench import read_captioned
from zsqretrieval.generators.prompts import PROMPTS, Prompt

ASK = Prompt("<image>A question about this picture:")


def main() -> None:
    """Print one row for each photograph."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of WebDataset shards")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--generator", default="mini", help="plugin name")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    generator = plugins.create("generator", args.generator, {})
    samples = list(itertools.islice(read_captioned(args.data, args.split), args.count))
    images = [sample.image for sample in samples]
    captions = generator.generate([PROMPTS["captioning"].context(image) for image in images])
    questions = generator.generate([ASK.context(image) for image in images], temperature=0.7, seed=args.seed)
    answers = generator.generate(
        [
            PROMPTS["vqa"].context(image, question=asked[0])
            for image, asked in zip(images, questions, strict=True)
        ]
    )
    print("| | a person wrote | the generator writes | it asks | and answers |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    rows = zip(samples, captions, questions, answers, strict=True)
    for number, (sample, caption, question, answer) in enumerate(rows, 1):
        cells = (sample.captions[0].strip(), caption[0], question[0], answer[0])
        print(f"| {number} | {' | '.join(cell.replace('|', '/') for cell in cells)} |")  # noqa: T201


if __name__ == "__main__":
    main()

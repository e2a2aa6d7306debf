"""Compare query banks of different texts; prints a Markdown table.

    python -m benchmarks.query_banks --data PATH/TO/flickr8k --split dev --work /tmp/banks

All captions of a split, as captions and as questions, search for their images by the encoder alone, with and
without a query bank (docs/rerank.md). The banks: texts that the generator writes about the images of the
split in three styles, all of them and those whose search finds their image; captions that people wrote for
other photographs; and, as controls, names of classes, random words, and other photographs. The table has R@1,
and the gain of each bank with its paired 95 % interval.

``--work`` holds a cache of vectors and texts, from which the same command continues. With the mini models it
takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zsqretrieval import plugins
from zsqretrieval._util.cache import Cache
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.evaluation.datasets import Dataset, read_shards
from zsqretrieval.evaluation.metrics import first_ranks
from zsqretrieval.evaluation.query_forms import with_questions
from zsqretrieval.evaluation.scores import Bench
from zsqretrieval.evaluation.settings import Settings
from zsqretrieval.evaluation.stats import ClusterBootstrap
from zsqretrieval.protocols import Encoder
from zsqretrieval.search.query_bank import SCALE, STRENGTH, QueryBank

TEXTS = 2000  # of a bank that nobody generated
STYLES = ("search", "captions", "questions")


def main() -> None:
    """Print one row for every bank."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of WebDataset shards")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--train-split", default="train", help="split of the other photographs")
    parser.add_argument("--work", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--encoder", default="mini", help="plugin name")
    parser.add_argument("--generator", default="mini", help="plugin name")
    parser.add_argument("--questions", type=int, default=4, help="texts generated for each image")
    parser.add_argument("--scale", type=float, default=SCALE)
    parser.add_argument("--strength", type=float, default=STRENGTH)
    args = parser.parse_args()

    dataset = with_questions(read_shards(args.data, args.split))
    encoder: Encoder = plugins.create("encoder", args.encoder, {})
    generator = plugins.create("generator", args.generator, {})
    cache = Cache(args.work / "cache.sqlite")
    bench = Bench(encoder, generator, dataset, Settings(systems=()), cache, lambda *_: None)
    banks = generated_banks(bench, args.questions)
    banks |= other_banks(bench, read_shards(args.data, args.train_split))
    queries = {form: queries_of(bench, form) for form in dataset.forms}

    print(f"| bank | texts | {' | '.join(queries)} |")  # noqa: T201
    print(f"|---|--:|{'--:|' * len(queries)}")  # noqa: T201
    cells = [f"{recall(cosines, answers).mean():.1f}" for cosines, answers in queries.values()]
    print(f"| none | | {' | '.join(cells)} |")  # noqa: T201
    for name, vectors in banks.items():
        bank = QueryBank(vectors, encoder.fingerprint, args.scale, args.strength)
        cells = [cell(bank, bench.gallery, cosines, answers) for cosines, answers in queries.values()]
        print(f"| {name} | {len(vectors)} | {' | '.join(cells)} |")  # noqa: T201


def queries_of(bench: Bench, form: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines of the queries of a form with all images [q, N], and the position of the right image [q]."""
    place = {image.id: n for n, image in enumerate(bench.dataset.gallery)}
    some = bench.dataset.of_form(form)
    vectors = bench.encode_texts([query.text for query in some.queries])
    answers = [place[image] for query in some.queries for image in some.qrels[query.id]]
    return vectors @ bench.gallery.T, np.array(answers, np.int64)


def generated_banks(bench: Bench, count: int) -> dict[str, NDArray[np.float32]]:
    """Vectors of generated texts, by style: the kept ones and all."""
    images = len(bench.dataset.gallery)
    everything = replace(bench.settings, top_k=images)
    keep_all = Bench(
        bench.encoder.encoder, bench.generator, bench.dataset, everything, bench.cache, bench.step
    )
    return {
        f"`{style}`, {name}": one.questions(style, count).vectors
        for style in STYLES
        for name, one in (("kept", bench), ("all", keep_all))
    }


def other_banks(bench: Bench, others: Dataset) -> dict[str, NDArray[np.float32]]:
    """Vectors of people's captions of other photographs, and of the controls."""
    ensure_torchvision()
    from timm.data import ImageNetInfo

    random = np.random.default_rng(0)
    people = [query.text for query in others.queries]
    photographs = [others.gallery[n] for n in random.permutation(len(others.gallery))[:TEXTS]]
    some = [people[n] for n in random.permutation(len(people))[:TEXTS]]
    words = sorted({word for text in people for word in text.lower().split() if word.isalpha()})
    mixed = [" ".join(random.choice(words, 10)) for _ in range(TEXTS)]
    classes = ImageNetInfo()
    names = [classes.index_to_description(n).split(",")[0] for n in range(classes.num_classes())]
    return {
        "captions of other photographs, by people": bench.encode_texts(some),
        '"a photo of a ..." and the classes of ImageNet': bench.encode_texts(
            [f"a photo of a {name}" for name in names]
        ),
        "ten words in any order": bench.encode_texts(mixed),
        "other photographs themselves": bench.encoder.encode_image(photographs),
    }


def recall(scores: NDArray[np.floating], answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """100 for every query whose image alone has the best score, else 0."""
    right = np.arange(scores.shape[1]) == answers[:, None]
    return np.where(first_ranks(scores, right) == 0, 100.0, 0.0)


def cell(
    bank: QueryBank, gallery: NDArray[np.float32], cosines: NDArray[np.float32], answers: NDArray[np.int64]
) -> str:
    """R@1 with the bank, and its difference from R@1 without."""
    before, after = recall(cosines, answers), recall(bank.normalized(cosines, gallery), answers)
    low, high = ClusterBootstrap(answers).interval(lambda one, other: one - other, after, before)
    return f"{after.mean():.1f} ({(after - before).mean():+.1f}, {low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()

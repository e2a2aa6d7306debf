"""Which questions tell best what images fit any question? Query banks side by side; prints a Markdown table.

    python examples/compare_query_banks.py --data PATH/TO/flickr8k --split dev --work /tmp/banks

Every caption of a split looks for its image by the encoder alone, as it is and asked as a question, with and
without a query bank (docs/rerank.md). The banks: what the generator writes about the images of the split in
three styles, all of it and what leads back to its image; captions that people wrote of other photographs;
and, to see whether just anything would do, names of classes, words in any order, and other photographs
themselves. Told are R@1, and by how many points a bank moves it, with paired 95 % intervals.

``--work`` keeps vectors and texts: the same command goes on there. With the mini models it takes a quarter of
an hour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from zsqretrieval.evaluation.encoder_bench import Captioned, read_captioned
from zsqretrieval.evaluation.expand_bench import RULES
from zsqretrieval.evaluation.intervals import ClusterBootstrap
from zsqretrieval.evaluation.remembered import kept_vectors
from zsqretrieval.evaluation.score_matrix import Seen

from zsqretrieval import plugins
from zsqretrieval._util.torch import ensure_torchvision
from zsqretrieval.evaluation.query_forms import as_question
from zsqretrieval.evaluation.systems import ask_gallery
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.search.query_bank import SCALE, STRENGTH, QueryBank
from zsqretrieval.types import Image

TEXTS = 2000  # of a bank that nobody generated
STYLES = ("search", "captions", "questions")


def main() -> None:
    """Print one row for every bank."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of WebDataset shards")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--train-split", default="train", help="of the other photographs")
    parser.add_argument("--work", type=Path, required=True, help="folder to keep vectors and texts in")
    parser.add_argument("--encoder", default="mini", help="plugin name")
    parser.add_argument("--generator", default="mini", help="plugin name")
    parser.add_argument("--questions", type=int, default=4, help="texts written of each image")
    parser.add_argument("--scale", type=float, default=SCALE)
    parser.add_argument("--strength", type=float, default=STRENGTH)
    args = parser.parse_args()

    samples = list(read_captioned(args.data, args.split))
    others = list(read_captioned(args.data, args.train_split))
    images = [sample.image for sample in samples]
    generator: Generator = plugins.create("generator", args.generator, {})
    encoder: Encoder = plugins.create("encoder", args.encoder, {})
    with kept_vectors(encoder, args.work) as keeping:
        gallery = keeping.encode_image(images)
        banks = written_banks(keeping, generator, images, args.questions, args.work)
        banks |= other_banks(keeping, others)
        asked = {
            form: (keeping.encode_text(texts), answers) for form, (texts, answers) in queries(samples).items()
        }
    print(f"| bank | texts | {' | '.join(asked)} |")  # noqa: T201
    print(f"|---|--:|{'--:|' * len(asked)}")  # noqa: T201
    cells = [f"{recall(vectors @ gallery.T, answers).mean():.1f}" for vectors, answers in asked.values()]
    print(f"| none | | {' | '.join(cells)} |")  # noqa: T201
    for name, texts in banks.items():
        bank = QueryBank(texts, encoder.fingerprint, args.scale, args.strength)
        cells = [told(bank, gallery, vectors, answers) for vectors, answers in asked.values()]
        print(f"| {name} | {len(texts)} | {' | '.join(cells)} |")  # noqa: T201


def queries(samples: list[Captioned]) -> dict[str, tuple[list[str], NDArray[np.int64]]]:
    """By form: the texts, and which image each looks for."""
    captions = [(text, n) for n, sample in enumerate(samples) for text in sample.captions]
    forms = {"caption": captions}
    for rule in RULES:
        questions = [(as_question(text, rule), n) for text, n in captions]
        forms[f"question/{rule}"] = [(text, n) for text, n in questions if text is not None]
    return {
        form: ([text for text, _ in some], np.array([n for _, n in some], np.int64))
        for form, some in forms.items()
        if some
    }


def written_banks(
    encoder: Encoder, generator: Generator, images: list[Image], count: int, work: Path
) -> dict[str, NDArray[np.float32]]:
    """What the generator writes about the images, by style and by what is kept."""
    shown = Seen(generator, images, batch_size=64)
    settings = {"shown": shown, "n": count, "batch_size": 64, "work": work}
    banks = {}
    for style in STYLES:
        for name, top_k in (("kept", 10), ("all", len(images))):
            written = ask_gallery(encoder, generator, images, style=style, top_k=top_k, **settings)
            banks[f"`{style}`, {name}"] = written.vectors
    return banks


def other_banks(encoder: Encoder, others: list[Captioned]) -> dict[str, NDArray[np.float32]]:
    """What people wrote of other photographs, and what nobody would ask."""
    ensure_torchvision()
    from timm.data import ImageNetInfo

    random = np.random.default_rng(0)
    people = [text for sample in others for text in sample.captions]
    photographs = [others[n].image for n in random.permutation(len(others))[:TEXTS]]
    some = [people[n] for n in random.permutation(len(people))[:TEXTS]]
    words = sorted({word for text in people for word in text.lower().split() if word.isalpha()})
    mixed = [" ".join(random.choice(words, 10)) for _ in range(TEXTS)]
    classes = ImageNetInfo()
    names = [classes.index_to_description(n).split(",")[0] for n in range(classes.num_classes())]
    return {
        "captions of other photographs, by people": encoder.encode_text(some),
        '"a photo of a ..." and the classes of ImageNet': encoder.encode_text(
            [f"a photo of a {name}" for name in names]
        ),
        "ten words in any order": encoder.encode_text(mixed),
        "other photographs themselves": encoder.encode_image(photographs),
    }


def recall(scores: NDArray[np.floating], answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """100 for every query whose image stands alone at the top, else 0."""
    own = np.take_along_axis(scores, answers[:, None], 1)
    return np.where((scores >= own).sum(1) == 1, 100.0, 0.0)


def told(
    bank: QueryBank, gallery: NDArray[np.float32], vectors: NDArray[np.float32], answers: NDArray[np.int64]
) -> str:
    """R@1 with the bank, and its difference from R@1 without."""
    similarity = vectors @ gallery.T
    before, after = recall(similarity, answers), recall(bank.normalized(similarity, gallery), answers)
    low, high = ClusterBootstrap(answers).interval(lambda one, other: one - other, after, before)
    return f"{after.mean():.1f} ({(after - before).mean():+.1f}, {low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()

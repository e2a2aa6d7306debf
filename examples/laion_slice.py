"""A slice of LAION the whole way: tars, safety, embeddings, an album, filtered search, removal.

python examples/laion_slice.py

The slice is made of the photographs of the demo, with metadata as LAION has them, so nothing is fetched. It
takes about a minute. With your own, start at step 2: img2dataset writes such tars.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zsqretrieval import Field, Retriever
from zsqretrieval.data.samples import photographs
from zsqretrieval.laion.embed import Embed
from zsqretrieval.laion.image_shards import open_image_shards, write_image_shard
from zsqretrieval.laion.plan import plan
from zsqretrieval.laion.shards import run_shards
from zsqretrieval.mini.encoder import MiniEncoder


def rows() -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Encoded images, with what LAION's tables say of each."""
    for n, image in enumerate(photographs()):
        content = Path(image.source).read_bytes()
        unsafe = {0: 0.97, 1: None}.get(n, 0.01)  # one found unsafe, one not judged
        yield (
            content,
            {
                "url": f"https://photos.example.org/{image.id}.jpg",
                "caption": image.caption or image.id,
                "punsafe": unsafe,
                "pwatermark": 0.02,
                "similarity": 0.31,
                "original_width": 320 + 64 * n,
                "md5": hashlib.md5(content).hexdigest(),
            },
        )


def main(folder: Path, question: str) -> None:
    """Take every step in a folder, and print what came of it."""
    pool = list(rows())

    # 1. Tars as img2dataset writes them: images, tables and statistics.
    half = len(pool) // 2
    for number, part in enumerate((pool[:half], pool[half:])):
        write_image_shard(folder / "downloaded", number, part)
    print(f"1. {len(pool)} images in two tars")

    # 2. Embeddings: any number of workers may share this; `zsq laion embed` is the same.
    shards = open_image_shards(str(folder / "downloaded"))
    made = run_shards(Embed(MiniEncoder.from_pretrained()), shards, folder / "embeddings")
    print(f"2. {made.images} images embedded in {made.seconds:.1f} s, {made.refused} refused")

    with Retriever.open(folder / "album", preset="mini") as retriever:
        # 3. Into an album; rows that are not known to be safe stay outside.
        added = retriever.add_embeddings(folder / "embeddings")
        print(f"3. {len(added.added)} rows added, denied: {dict(added.denied)}")

        # 4. Search, with and without a filter.
        for where in (None, Field("original_width") >= 800):
            found = retriever.search(question, 3, where=where, rerank=None)
            names = ", ".join(f"{hit.caption} ({hit.score:.2f})" for hit in found)
            asked = repr(question) if where is None else f"{question!r} where {where}"
            print(f"4. {asked}: {names}")

        # 5. Someone asks to have an image removed: for good, and verified by a search.
        gone = found[0]
        report = retriever.remove_listed([str(gone.metadata["url"])])
        print(f"5. removed {report.removed}; a search finds {report.found_after} of it")
        again = retriever.add_embeddings(folder / "embeddings")
        print(f"   added again: {len(again.added)}, denied: {dict(again.denied)}")

    # 6. What all of LAION-5B would take.
    for one in plan(5.85e9, 768, qps=100).indexes:
        print(f"6. LAION-5B, {one.index}: {one.bytes / 1e12:.1f} TB, {one.machines} machines")


def run() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Take a slice of LAION the whole way.")
    parser.add_argument("--question", default="a cat", help="what to search for")
    parser.add_argument("--work", type=Path, help="folder to keep [default: temporary]")
    given = parser.parse_args()
    if given.work is not None:
        given.work.mkdir(parents=True)
        main(given.work, given.question)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary), given.question)


if __name__ == "__main__":
    run()

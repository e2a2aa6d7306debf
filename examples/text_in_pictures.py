"""Find pictures by the text in them, which any OCR program reads, and by a question.

    python examples/text_in_pictures.py Pictures "a letter" --contains invoice --ocr "tesseract {} stdout"

The library recognises no text. This adds every picture with the output of the program as metadata, in lower
case, and searches among the pictures whose text contains some words.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zsqretrieval import Field, Retriever


def rows(folder: Path, ocr: str) -> Iterator[dict[str, Any]]:
    """The pictures of a folder with their text."""
    for path in sorted(folder.iterdir()):
        command = [part.replace("{}", str(path)) for part in shlex.split(ocr)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
        yield {"image": path, "text": " ".join(done.stdout.lower().split())}


def main() -> None:
    """Print the pictures whose text contains the words, best first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder of pictures only")
    parser.add_argument("question")
    parser.add_argument("--contains", required=True, help="words in the picture")
    parser.add_argument("--ocr", required=True, help="command that prints the text of the picture {}")
    parser.add_argument("--preset", default="mini")
    args = parser.parse_args()
    with Retriever.from_preset(args.preset) as retriever:
        retriever.add(rows(args.folder, args.ocr))
        has_words = Field("text").contains(args.contains.lower())
        for hit in retriever.search(args.question, rerank=None, where=has_words):
            print(f"{hit.score:.3f}  {Path(hit.source).name}  {hit.metadata['text'][:60]}")


if __name__ == "__main__":
    main()

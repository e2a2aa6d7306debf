"""A toy generator with more words."""

from __future__ import annotations

import re
from pathlib import Path

from zsqretrieval.testing.toys import ToyGenerator


def worded(path: Path) -> ToyGenerator:
    """A generator that knows the words of a file and of sentiments: unknown words are all the same token."""
    generator = ToyGenerator()
    words = {"positive", "negative", *re.findall(r"\w+", path.read_text(encoding="utf-8").lower())}
    generator.vocabulary += tuple(sorted(words.difference(generator.vocabulary)))
    return generator

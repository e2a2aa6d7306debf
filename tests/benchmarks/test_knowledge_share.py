"""Recall by share is that of vectors whose heads know the images and whose knowledge does not."""

from __future__ import annotations

import numpy as np

from benchmarks.knowledge_share import recalls
from zsqretrieval.mini.encoder import HEAD_DIM


def test_share_weighs_the_heads_and_the_knowledge() -> None:
    images, captions = np.zeros((2, 3, 2 * HEAD_DIM + 384), np.float32)
    for n in range(3):
        images[n, n] = captions[n, n] = 0.5**0.5
        images[n, 2 * HEAD_DIM + n] = captions[n, 2 * HEAD_DIM + (n + 1) % 3] = 0.5**0.5
    found = recalls(images, captions, np.arange(3))
    assert [found[share][0] for share in ("0", "0.25", "0.5", "1")] == [1, 1, 0, 0]  # a tie at 0.5
    assert found["1"] == [0, 1, 1]

"""Checks of arrays of floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def all_finite(values: NDArray[np.floating[Any]]) -> bool:
    """Whether no number of an array of floats is infinite or nan."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    # NumPy converts 16 bits one by one, which took longer than all else that is done with image features.
    # Read as whole numbers, infinity and nan are the largest of their sign.
    positive, negative = values.view(np.int16), values.view(np.uint16)
    return bool(positive.max(initial=0) < 0x7C00 and negative.max(initial=0) < 0xFC00)

"""The check of a vision-language model at load time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as PILImage

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.types import Image

if TYPE_CHECKING:
    from zsqretrieval.generators.vlm.model import VLMGenerator


def check_scores(generator: VLMGenerator, name: str) -> None:
    """Check that a model's scores are log-probabilities of a text after an image.

    It protects users of families and versions of transformers that nobody has tested, where a wrong score
    would be silent. :mod:`zsqretrieval.testing` checks much more.

    Raises:
        InvalidInputError: they are not; says why, with the family's name.
    """
    reader, score = generator._reader, generator._score
    what = f"{name} is a {generator._model.config.model_type} model and cannot be scored by this class: "
    try:
        seen, other = (reader.prompt((_plaid(shift), "Question:"), "the check") for shift in (0, 7))
        longer = reader.prompt((_plaid(0), "The picture is shown here. Question:"), "the check")
        text = reader.continuation("what is the colour of the house?", "the check") * 2
        changed = [*text[:-1], next((one for one in text if one != text[-1]), text[-1] - 1)]
        pairs = ((seen, text), (seen, changed), (other, text))
        scores, swapped, unlike = (score([prompt], [answer])[0] for prompt, answer in pairs)
        beside = score([seen, longer], [text, text])[0] if generator._family.batched else scores
    except (InvalidInputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model's code may raise anything
        raise InvalidInputError(
            f"{what}it failed on an image and a question: {type(error).__name__}: {error}"
        ) from error
    # the first tolerance compares equal shapes, which round alike
    exact, rounded = (1e-4, 1e-3) if generator._model.dtype == torch.float32 else (1e-2, 1.0)
    leak, finite = np.abs(scores - swapped)[:-1].max(), np.isfinite([scores, swapped, unlike, beside]).all()
    faults = {
        "its log-probabilities are not finite; try another dtype": not finite,
        "later tokens change the log-probabilities of earlier ones": leak > exact,
        "another image changes nothing": np.array_equal(scores, unlike),
        "padding changes its log-probabilities": np.abs(scores - beside).max() > rounded,
    }
    for fault, found in faults.items():
        if found:
            raise InvalidInputError(what + fault)


def _plaid(shift: int) -> Image:
    """A small picture without symmetry."""
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    pixels = np.stack([3 * x + shift * y, 2 * y + 11 * shift, x + y + 29 * shift], axis=-1) % 256
    return Image(PILImage.fromarray(pixels.astype(np.uint8)), "the check's picture")

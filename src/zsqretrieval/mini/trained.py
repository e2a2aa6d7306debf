"""Reads the trained part of a mini model, which lies in the package or where a training script wrote it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from zsqretrieval.errors import WeightsError

if TYPE_CHECKING:
    import torch

__all__ = ["read_trained"]


def read_trained(path: Path, model: str) -> tuple[dict[str, torch.Tensor], str]:
    """Read a safetensors file.

    Args:
        path: the file.
        model: ``"encoder"`` or ``"generator"``, for the message.

    Returns:
        The tensors by name, and the hexadecimal SHA-256 of the very bytes they were read from.

    Raises:
        WeightsError: it is not there or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
        return load(content), hashlib.sha256(content).hexdigest()
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} is not a readable trained part of the mini {model} ({error}); reinstall zsqretrieval, "
            f"or write one with examples/train_mini_{model}.py"
        ) from error

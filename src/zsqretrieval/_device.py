"""Which device a model runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

__all__ = ["resolve_device"]


def resolve_device(device: str | None) -> torch.device:
    """The device of that name; the best there is for None.

    Raises:
        InvalidInputError: there is no such device here.
    """
    import torch

    if device is None:
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = next(name for name, there in available.items() if there)
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidInputError(
            f"device {device!r} cannot be used here: {str(error).splitlines()[0]}; device=None chooses one"
        ) from error

"""Which device a model runs on, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "resolve_device", "resolve_dtype"]

DTYPES = ("float32", "bfloat16", "float16")


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


def resolve_dtype(dtype: str | None, device: torch.device) -> tuple[str, torch.dtype]:
    """The dtype of that name; for None bfloat16 where the device has arithmetic for it, else float32.

    That is CUDA from Ampere on, and CPUs with AMX or AVX512-BF16.

    Returns:
        Its name and torch's own.

    Raises:
        InvalidInputError: it is none of :data:`DTYPES`.
    """
    import torch

    if dtype is None:
        on_cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        fast = {"cuda": torch.cuda.is_bf16_supported, "cpu": lambda: on_cpu}.get(device.type, lambda: False)()
        dtype = "bfloat16" if fast else "float32"
    if dtype not in DTYPES:
        raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    kind: torch.dtype = getattr(torch, dtype)
    return dtype, kind

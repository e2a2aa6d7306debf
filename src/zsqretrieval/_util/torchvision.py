"""Makes ``import torchvision`` work beside a torch that cannot load its compiled operators.

A torchvision built for CUDA cannot load its extension beside a CPU build of torch; its import then fails
with ``operator torchvision::nms does not exist``, and takes open_clip, timm and the image models of
transformers down with it (pytorch/vision#9085, pytorch/pytorch#157648). None of them needs the operator
for what this library does, so declaring its schema, without an implementation, is enough.
"""

from __future__ import annotations

import importlib
import re
import sys
import threading
from typing import Any

__all__ = ["ensure_importable"]

_OPERATORS = ("nms", "qnms")
_MISSING_OPERATOR = re.compile(rf"operator torchvision::({'|'.join(_OPERATORS)}) does not exist")

_lock = threading.Lock()
_library: Any = None  # the declarations live as long as this torch.library.Library does


def ensure_importable() -> None:
    """Import torchvision, declaring its missing operators if that is what stands in the way.

    Call it before importing open_clip, timm, or an image model of transformers. Does nothing when
    torchvision is not installed or already imported; may be called again, from any thread.

    Raises:
        Exception: whatever ``import torchvision`` raises for any other reason.
    """
    with _lock:
        try:
            importlib.import_module("torchvision")
        except ModuleNotFoundError as error:
            if error.name != "torchvision":
                raise
        except RuntimeError as error:
            if not _MISSING_OPERATOR.search(str(error)):
                raise
            _declare_operators()
            _forget_partial_import()
            importlib.import_module("torchvision")


def _declare_operators() -> None:
    global _library
    if _library is None:
        import torch

        torch_library: Any = torch.library  # its stubs leave out some annotations
        library = torch_library.Library("torchvision", "FRAGMENT")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library = library


def _forget_partial_import() -> None:
    """Drop the submodules that a failed import leaves behind, so that the next one starts afresh."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]

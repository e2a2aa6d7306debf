"""Find images by asking questions of them.

CLIP and an HNSW index fetch candidates in milliseconds; a multimodal language model then says how likely
the very question is given each image, log P(question | image) (UPR, arXiv 2204.07496, carried from
passages to images).

Public names are imported on first use (PEP 562), so that ``import zsqretrieval`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsqretrieval.encoders.clip import CLIPEncoder as CLIPEncoder
    from zsqretrieval.encoders.mini import MiniEncoder as MiniEncoder
    from zsqretrieval.errors import ZsqError as ZsqError
    from zsqretrieval.indexes.exact import ExactIndex as ExactIndex
    from zsqretrieval.indexes.hnsw import HNSWIndex as HNSWIndex
    from zsqretrieval.protocols import Encoder as Encoder
    from zsqretrieval.protocols import Generator as Generator
    from zsqretrieval.protocols import Index as Index
    from zsqretrieval.retriever import Retriever as Retriever
    from zsqretrieval.types import Context as Context
    from zsqretrieval.types import Hit as Hit
    from zsqretrieval.types import Image as Image
    from zsqretrieval.types import LogLikelihood as LogLikelihood
    from zsqretrieval.types import Neighbors as Neighbors
    from zsqretrieval.types import Ranking as Ranking

__version__ = "0.1.0.dev0"

_HOME = {
    "CLIPEncoder": "encoders.clip",
    "Context": "types",
    "Encoder": "protocols",
    "ExactIndex": "indexes.exact",
    "Generator": "protocols",
    "HNSWIndex": "indexes.hnsw",
    "Hit": "types",
    "Image": "types",
    "Index": "protocols",
    "LogLikelihood": "types",
    "MiniEncoder": "encoders.mini",
    "Neighbors": "types",
    "Ranking": "types",
    "Retriever": "retriever",
    "ZsqError": "errors",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

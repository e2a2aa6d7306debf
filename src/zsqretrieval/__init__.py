"""Find images by asking questions of them.

CLIP and a vector index fetch candidates in milliseconds; a multimodal language model then scores the question
given each image, log P(question | image) (UPR, arXiv 2204.07496, carried from passages to images).

Public names are imported on first use (PEP 562), so that ``import zsqretrieval`` imports no torch. Import
everything else from its submodule.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsqretrieval.album.filters import Field as Field
    from zsqretrieval.album.filters import Filter as Filter
    from zsqretrieval.encoders.clip import CLIPEncoder as CLIPEncoder
    from zsqretrieval.errors import ZsqError as ZsqError
    from zsqretrieval.generators.kosmos import Kosmos1Generator as Kosmos1Generator
    from zsqretrieval.generators.vlm.model import VLMGenerator as VLMGenerator
    from zsqretrieval.indexes.hnsw import HNSWIndex as HNSWIndex
    from zsqretrieval.plugins import register as register
    from zsqretrieval.presets import PRESETS as PRESETS
    from zsqretrieval.protocols import Encoder as Encoder
    from zsqretrieval.protocols import Generator as Generator
    from zsqretrieval.protocols import Index as Index
    from zsqretrieval.rerankers.as_cross_encoder import as_cross_encoder as as_cross_encoder
    from zsqretrieval.retriever import Retriever as Retriever
    from zsqretrieval.search.fusion import WeightedSum as WeightedSum
    from zsqretrieval.search.query import Query as Query
    from zsqretrieval.search.ranking import Ranking as Ranking
    from zsqretrieval.search.rerank import Rerank as Rerank
    from zsqretrieval.search.scoring import Likelihood as Likelihood
    from zsqretrieval.search.scoring import YesNo as YesNo
    from zsqretrieval.types import Hit as Hit
    from zsqretrieval.types import Image as Image

__version__ = "0.1.0"

_HOME = {
    "CLIPEncoder": "encoders.clip",
    "Encoder": "protocols",
    "Field": "album.filters",
    "Filter": "album.filters",
    "Generator": "protocols",
    "HNSWIndex": "indexes.hnsw",
    "Hit": "types",
    "Image": "types",
    "Index": "protocols",
    "Kosmos1Generator": "generators.kosmos",
    "Likelihood": "search.scoring",
    "PRESETS": "presets",
    "Query": "search.query",
    "Ranking": "search.ranking",
    "Rerank": "search.rerank",
    "Retriever": "retriever",
    "VLMGenerator": "generators.vlm.model",
    "WeightedSum": "search.fusion",
    "YesNo": "search.scoring",
    "ZsqError": "errors",
    "as_cross_encoder": "rerankers.as_cross_encoder",
    "register": "plugins",
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

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
    from zsqretrieval.asking import CaptionDialog as CaptionDialog
    from zsqretrieval.asking import InformationGain as InformationGain
    from zsqretrieval.asking import RandomQuestion as RandomQuestion
    from zsqretrieval.dialog import Dialog as Dialog
    from zsqretrieval.encoders.clip import CLIPEncoder as CLIPEncoder
    from zsqretrieval.encoders.mini import MiniEncoder as MiniEncoder
    from zsqretrieval.errors import ZsqError as ZsqError
    from zsqretrieval.generators.kosmos import Kosmos1Generator as Kosmos1Generator
    from zsqretrieval.generators.mini import MiniGenerator as MiniGenerator
    from zsqretrieval.generators.vlm import VLMGenerator as VLMGenerator
    from zsqretrieval.indexes.exact import ExactIndex as ExactIndex
    from zsqretrieval.indexes.hnsw import HNSWIndex as HNSWIndex
    from zsqretrieval.prompts import PROMPTS as PROMPTS
    from zsqretrieval.prompts import Prompt as Prompt
    from zsqretrieval.protocols import Encoder as Encoder
    from zsqretrieval.protocols import Generator as Generator
    from zsqretrieval.protocols import ImageStates as ImageStates
    from zsqretrieval.protocols import Index as Index
    from zsqretrieval.query_bank import QueryBank as QueryBank
    from zsqretrieval.questions import STYLES as STYLES
    from zsqretrieval.questions import Question as Question
    from zsqretrieval.questions import Style as Style
    from zsqretrieval.questions import generate_questions as generate_questions
    from zsqretrieval.rerank import Fusion as Fusion
    from zsqretrieval.rerank import Likelihood as Likelihood
    from zsqretrieval.rerank import Maximum as Maximum
    from zsqretrieval.rerank import Prior as Prior
    from zsqretrieval.rerank import ReciprocalRank as ReciprocalRank
    from zsqretrieval.rerank import RerankOnly as RerankOnly
    from zsqretrieval.rerank import Scoring as Scoring
    from zsqretrieval.rerank import WeightedSum as WeightedSum
    from zsqretrieval.rerank import YesNo as YesNo
    from zsqretrieval.retriever import Retriever as Retriever
    from zsqretrieval.texts import TextHit as TextHit
    from zsqretrieval.texts import TextRanking as TextRanking
    from zsqretrieval.types import Context as Context
    from zsqretrieval.types import Explanation as Explanation
    from zsqretrieval.types import Hit as Hit
    from zsqretrieval.types import Image as Image
    from zsqretrieval.types import LogLikelihood as LogLikelihood
    from zsqretrieval.types import Neighbors as Neighbors
    from zsqretrieval.types import Ranking as Ranking

__version__ = "0.1.0.dev0"

_HOME = {
    "CLIPEncoder": "encoders.clip",
    "CaptionDialog": "asking",
    "Context": "types",
    "Dialog": "dialog",
    "Encoder": "protocols",
    "ExactIndex": "indexes.exact",
    "Explanation": "types",
    "Fusion": "rerank",
    "Generator": "protocols",
    "HNSWIndex": "indexes.hnsw",
    "Hit": "types",
    "Image": "types",
    "ImageStates": "protocols",
    "Index": "protocols",
    "InformationGain": "asking",
    "Kosmos1Generator": "generators.kosmos",
    "Likelihood": "rerank",
    "LogLikelihood": "types",
    "Maximum": "rerank",
    "MiniEncoder": "encoders.mini",
    "MiniGenerator": "generators.mini",
    "Neighbors": "types",
    "PROMPTS": "prompts",
    "Prior": "rerank",
    "Prompt": "prompts",
    "QueryBank": "query_bank",
    "Question": "questions",
    "RandomQuestion": "asking",
    "Ranking": "types",
    "ReciprocalRank": "rerank",
    "RerankOnly": "rerank",
    "Retriever": "retriever",
    "STYLES": "questions",
    "Scoring": "rerank",
    "Style": "questions",
    "TextHit": "texts",
    "TextRanking": "texts",
    "VLMGenerator": "generators.vlm",
    "WeightedSum": "rerank",
    "YesNo": "rerank",
    "ZsqError": "errors",
    "generate_questions": "questions",
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

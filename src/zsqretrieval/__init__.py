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
    from zsqretrieval.dialog.dialog import Dialog as Dialog
    from zsqretrieval.dialog.policies import CaptionDialog as CaptionDialog
    from zsqretrieval.dialog.policies import InformationGain as InformationGain
    from zsqretrieval.dialog.policies import RandomQuestion as RandomQuestion
    from zsqretrieval.encoders.clip import CLIPEncoder as CLIPEncoder
    from zsqretrieval.errors import ZsqError as ZsqError
    from zsqretrieval.generators.kosmos import Kosmos1Generator as Kosmos1Generator
    from zsqretrieval.generators.prompts import PROMPTS as PROMPTS
    from zsqretrieval.generators.prompts import Prompt as Prompt
    from zsqretrieval.generators.vlm.model import VLMGenerator as VLMGenerator
    from zsqretrieval.indexes.exact import ExactIndex as ExactIndex
    from zsqretrieval.indexes.hnsw import HNSWIndex as HNSWIndex
    from zsqretrieval.mini.encoder import MiniEncoder as MiniEncoder
    from zsqretrieval.mini.generator import MiniGenerator as MiniGenerator
    from zsqretrieval.protocols import Encoder as Encoder
    from zsqretrieval.protocols import Generator as Generator
    from zsqretrieval.protocols import ImageStates as ImageStates
    from zsqretrieval.protocols import Index as Index
    from zsqretrieval.retriever import Retriever as Retriever
    from zsqretrieval.search.fusion import Fusion as Fusion
    from zsqretrieval.search.fusion import Maximum as Maximum
    from zsqretrieval.search.fusion import ReciprocalRank as ReciprocalRank
    from zsqretrieval.search.fusion import RerankOnly as RerankOnly
    from zsqretrieval.search.fusion import WeightedSum as WeightedSum
    from zsqretrieval.search.image_to_text import TextHit as TextHit
    from zsqretrieval.search.image_to_text import TextRanking as TextRanking
    from zsqretrieval.search.priors import Prior as Prior
    from zsqretrieval.search.query_bank import QueryBank as QueryBank
    from zsqretrieval.search.scoring import Likelihood as Likelihood
    from zsqretrieval.search.scoring import Scoring as Scoring
    from zsqretrieval.search.scoring import YesNo as YesNo
    from zsqretrieval.tasks.questions import STYLES as STYLES
    from zsqretrieval.tasks.questions import Question as Question
    from zsqretrieval.tasks.questions import Style as Style
    from zsqretrieval.tasks.questions import generate_questions as generate_questions
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
    "CaptionDialog": "dialog.policies",
    "Context": "types",
    "Dialog": "dialog.dialog",
    "Encoder": "protocols",
    "ExactIndex": "indexes.exact",
    "Explanation": "types",
    "Fusion": "search.fusion",
    "Generator": "protocols",
    "HNSWIndex": "indexes.hnsw",
    "Hit": "types",
    "Image": "types",
    "ImageStates": "protocols",
    "Index": "protocols",
    "InformationGain": "dialog.policies",
    "Kosmos1Generator": "generators.kosmos",
    "Likelihood": "search.scoring",
    "LogLikelihood": "types",
    "Maximum": "search.fusion",
    "MiniEncoder": "mini.encoder",
    "MiniGenerator": "mini.generator",
    "Neighbors": "types",
    "PROMPTS": "generators.prompts",
    "Prior": "search.priors",
    "Prompt": "generators.prompts",
    "QueryBank": "search.query_bank",
    "Question": "tasks.questions",
    "RandomQuestion": "dialog.policies",
    "Ranking": "types",
    "ReciprocalRank": "search.fusion",
    "RerankOnly": "search.fusion",
    "Retriever": "retriever",
    "STYLES": "tasks.questions",
    "Scoring": "search.scoring",
    "Style": "tasks.questions",
    "TextHit": "search.image_to_text",
    "TextRanking": "search.image_to_text",
    "VLMGenerator": "generators.vlm.model",
    "WeightedSum": "search.fusion",
    "YesNo": "search.scoring",
    "ZsqError": "errors",
    "generate_questions": "tasks.questions",
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

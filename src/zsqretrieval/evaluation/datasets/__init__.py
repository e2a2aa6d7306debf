"""Data sets in any format as one record: :class:`Dataset`."""

from __future__ import annotations

from zsqretrieval.evaluation.datasets.dataset import (
    ALT_TEXT,
    CAPTION,
    DIRECTIONS,
    EXPERT_QUERY,
    HUMAN_QUESTION,
    Dataset,
    Direction,
    Qrels,
    Query,
    Task,
)
from zsqretrieval.evaluation.datasets.judgments import (
    Judgments,
    read_crowdflower,
    read_expert,
    read_judgments,
)
from zsqretrieval.evaluation.datasets.open import KINDS, open_dataset, open_distractors, open_judgments
from zsqretrieval.evaluation.datasets.readers import (
    read_coco,
    read_flickr,
    read_folder,
    read_karpathy,
    read_laion,
    read_shards,
)
from zsqretrieval.evaluation.datasets.relevance import read_chatir, read_inquire, read_retvqa

__all__ = [
    "ALT_TEXT", "CAPTION", "DIRECTIONS", "EXPERT_QUERY", "HUMAN_QUESTION", "KINDS", "Dataset",
    "Direction", "Judgments", "Qrels", "Query", "Task", "open_dataset", "open_distractors",
    "open_judgments", "read_chatir", "read_coco", "read_crowdflower", "read_expert", "read_flickr",
    "read_folder", "read_inquire", "read_judgments", "read_karpathy", "read_laion", "read_retvqa",
    "read_shards",
]  # fmt: skip

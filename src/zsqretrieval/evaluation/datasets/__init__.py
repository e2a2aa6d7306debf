"""Data sets, whatever format they come in, behind one small record: :class:`Dataset`.

Readers read what is on disk and download nothing; what is missing is named, with who gives it out.
"""

from __future__ import annotations

from zsqretrieval.evaluation.datasets.captions import read_coco, read_flickr, read_folder, read_karpathy
from zsqretrieval.evaluation.datasets.dataset import (
    ALT_TEXT,
    CAPTION,
    HUMAN_QUESTION,
    Dataset,
    Qrels,
    Query,
    Task,
)
from zsqretrieval.evaluation.datasets.dialogs import read_chatir
from zsqretrieval.evaluation.datasets.relevance import EXPERT_QUERY, read_inquire, read_retvqa
from zsqretrieval.evaluation.datasets.shards import read_laion, read_shards

__all__ = [
    "ALT_TEXT",
    "CAPTION",
    "EXPERT_QUERY",
    "HUMAN_QUESTION",
    "Dataset",
    "Qrels",
    "Query",
    "Task",
    "read_chatir",
    "read_coco",
    "read_flickr",
    "read_folder",
    "read_inquire",
    "read_karpathy",
    "read_laion",
    "read_retvqa",
    "read_shards",
]

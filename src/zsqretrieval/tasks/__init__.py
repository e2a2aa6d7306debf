"""The tasks of Kosmos-1, each a prompt over the two methods of a generator.

an image                      -> caption, answer, classify, recognize, classify_sentiment
examples, then an image       -> the same with examples= (from labelled, k_shot, answered)
an image and its description  -> answer_step_by_step, choose_step_by_step
a matrix with a gap           -> score_raven
"""

from __future__ import annotations

from zsqretrieval.tasks.accuracy import Accuracy
from zsqretrieval.tasks.choice import (
    Choice,
    choose,
    classify,
    classify_sentiment,
    count_correct,
    recognize,
)
from zsqretrieval.tasks.few_shot import (
    Reasoned,
    answer_step_by_step,
    answered,
    choose_step_by_step,
    k_shot,
    labelled,
)
from zsqretrieval.tasks.raven import (
    RavenAnswer,
    RavenItem,
    RavenScore,
    read_raven,
    score_raven,
    write_raven,
)
from zsqretrieval.tasks.raven_matrices import Matrix, Panel, generate_matrices, raven_item
from zsqretrieval.tasks.render import render_text
from zsqretrieval.tasks.writing import answer, caption

__all__ = [
    "Accuracy", "Choice", "Matrix", "Panel", "RavenAnswer", "RavenItem", "RavenScore", "Reasoned", "answer",
    "answer_step_by_step", "answered", "caption", "choose", "choose_step_by_step", "classify",
    "classify_sentiment", "count_correct", "generate_matrices", "k_shot", "labelled", "raven_item",
    "read_raven", "recognize", "render_text", "score_raven", "write_raven",
]  # fmt: skip

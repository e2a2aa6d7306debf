"""Everything else that Kosmos-1 does, each a prompt over the two methods of a generator.

    an image                      -> caption, answer, classify, recognize, classify_sentiment
    examples, then an image       -> the same with examples= (labelled, k_shot, answered make them)
    an image, its description     -> answer_step_by_step, choose_step_by_step
    a matrix with a gap           -> score_raven

Whatever chooses among given texts returns :class:`Choice`; whatever counts returns :class:`Accuracy`, which
has an interval. ``docs/tasks.md`` shows each with its output.
"""

from __future__ import annotations

from zsqretrieval.tasks.accuracy import Accuracy
from zsqretrieval.tasks.captioning import caption
from zsqretrieval.tasks.chain_of_thought import Reasoned, answer_step_by_step, choose_step_by_step
from zsqretrieval.tasks.choice import Choice, choose, count_correct
from zsqretrieval.tasks.few_shot import answered, k_shot, labelled
from zsqretrieval.tasks.raven import (
    RavenAnswer,
    RavenItem,
    RavenScore,
    read_raven,
    score_raven,
    write_raven,
)
from zsqretrieval.tasks.raven_matrices import Matrix, Panel, generate_matrices, raven_item
from zsqretrieval.tasks.recognition import classify, recognize
from zsqretrieval.tasks.sentiment import classify_sentiment, render_text
from zsqretrieval.tasks.vqa import answer

__all__ = [
    "Accuracy",
    "Choice",
    "Matrix",
    "Panel",
    "RavenAnswer",
    "RavenItem",
    "RavenScore",
    "Reasoned",
    "answer",
    "answer_step_by_step",
    "answered",
    "caption",
    "choose",
    "choose_step_by_step",
    "classify",
    "classify_sentiment",
    "count_correct",
    "generate_matrices",
    "k_shot",
    "labelled",
    "raven_item",
    "read_raven",
    "recognize",
    "render_text",
    "score_raven",
    "write_raven",
]

"""Do the systems of a study rank captions as people do?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.evaluation.findings import Choice
from zsqretrieval.evaluation.human import (
    Correlation,
    Judgments,
    correlate,
    encoder_scores,
    generator_scores,
)
from zsqretrieval.evaluation.plan import BASELINE
from zsqretrieval.evaluation.workbench import CORRECTED, Workbench, labelled
from zsqretrieval.rerank import Likelihood, Scoring, YesNo

__all__ = ["agreement"]


def agreement(
    bench: Workbench, judgments: Sequence[Judgments], choice: Choice
) -> Mapping[str, tuple[Correlation, ...]]:
    """Correlate the scores of all systems that score a pair with human ratings.

    Captions are compared with each other here, as where images look for texts: the likelihood stands there
    as it is and without ``choice.alpha`` of the prior, and it is the latter that is fused, by the fusion of
    that direction, over all pairs at once.

    Args:
        bench: on the data set that was judged.
        judgments: of pairs of an image and a caption.
        choice: the parameters.

    Returns:
        By system, a correlation for each of ``judgments``. One that says the same of every pair has none.
    """
    found: dict[str, list[Correlation]] = {}
    told = bench.told
    for judged in judgments:
        bench.told = labelled(told, judged.name)
        for system, scores in _scores(bench, judged, choice).items():
            if np.ptp(scores):
                tau = correlate(judged, scores, resamples=bench.plan.resamples, seed=bench.plan.seed)
                found.setdefault(system, []).append(tau)
    bench.told = told
    return {system: tuple(taus) for system, taus in found.items()}


def _scores(bench: Workbench, judged: Judgments, choice: Choice) -> dict[str, NDArray[np.float64]]:
    plan, gallery = bench.plan, bench.dataset.gallery

    def read(scoring: Scoring) -> NDArray[np.float64]:
        return generator_scores(
            bench.generator, scoring, judged, gallery, shown=bench.shown, batch_size=plan.batch_size,
            work=bench.work / "scores", progress=bench.told,
        )  # fmt: skip

    scores = {BASELINE: encoder_scores(bench.encoder, judged, gallery)}
    if plan.wants("likelihood", "fused"):
        likelihood = read(Likelihood())
        texts = list(dict.fromkeys(judged.captions))
        prior = dict(zip(texts, bench.priors(texts), strict=True))
        corrected = likelihood - choice.alpha * np.array([prior[text] for text in judged.captions])
        if plan.wants("likelihood"):
            scores |= {"likelihood": likelihood, CORRECTED: corrected}
        if plan.wants("fused"):
            fusion = choice.fusion.get("image to text") or choice.fusion["text to image"]
            scores["fused"] = fusion.fuse(scores[BASELINE], corrected)
    if plan.wants("yes_no"):
        scores["yes_no"] = read(YesNo())
    return scores

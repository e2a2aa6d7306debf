"""Do the systems of a study rank captions as people do?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.evaluation.findings import Agreement, Choice
from zsqretrieval.evaluation.human import (
    Judgments,
    correlate,
    encoder_scores,
    generator_scores,
)
from zsqretrieval.evaluation.plan import BASELINE
from zsqretrieval.evaluation.workbench import CORRECTED, Workbench, labelled
from zsqretrieval.search.scoring import Likelihood, Scoring, YesNo

__all__ = ["agreement"]


def agreement(bench: Workbench, judgments: Sequence[Judgments], choice: Choice) -> tuple[Agreement, ...]:
    """Correlate the scores of all systems that score a pair with human ratings.

    Captions are compared with each other here, as where images look for texts: the likelihood stands there
    as it is and without ``choice.alpha`` of the prior, and it is the latter that is fused, by the fusion of
    that direction, over all pairs at once.

    Args:
        bench: on the data set that was judged.
        judgments: of pairs of an image and a caption.
        choice: the parameters.
    """
    plan, gallery, told = bench.plan, bench.dataset.gallery, bench.told
    found = []
    for judged in judgments:
        bench.told = labelled(told, judged.name)
        scores = _scores(bench, judged, choice)
        taus = {
            system: correlate(judged, own, resamples=plan.resamples, seed=plan.seed)
            for system, own in scores.items()
            if np.ptp(own)
        }
        images = tuple(str(gallery[n].id) for n in judged.images)
        found.append(Agreement(judged.name, images, scores, taus))
    bench.told = told
    return tuple(found)


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

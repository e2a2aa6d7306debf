"""What a study computes on one data set, each thing once: scores, priors, questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.evaluation.datasets import Dataset, Task
from zsqretrieval.evaluation.findings import Choice
from zsqretrieval.evaluation.plan import BASELINE, Plan
from zsqretrieval.evaluation.progress import Progress
from zsqretrieval.evaluation.runs import (
    Direction,
    GeneratorSystem,
    Run,
    first_stage,
    fused_run,
    prior_corrected,
    rerank_depth,
    shallow,
    some_queries,
    some_rows,
    task_of,
)
from zsqretrieval.evaluation.score_matrix import Seen
from zsqretrieval.evaluation.systems import (
    ExpandSystem,
    GalleryQuestions,
    NormalizedSystem,
    ask_gallery,
    bank_of,
    log_priors,
    token_counts,
)
from zsqretrieval.protocols import Encoder, Generator
from zsqretrieval.search.fusion import Fusion
from zsqretrieval.search.scoring import Likelihood, Scoring, YesNo

__all__ = ["CORRECTED", "Scores", "Workbench", "labelled", "sample_places"]

CORRECTED = "likelihood - prior"
"""Name of the likelihood without the prior of the texts."""

_DEEP = 100  # candidates of the first stage that are ranked, read or not: as many as R@100 looks at


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What is known of one direction and form.

    Attributes:
        dataset: with the texts of this form.
        task: what is answered.
        first: the first stage, best first, deeper than what is read.
        likelihood: of the first few candidates; None when no system needs it.
        yes_no: log-odds of the same candidates; None when no system needs it.
        priors: float64 [n], log P of the texts that images look for; None where texts look for images, whose
            order it cannot change.
    """

    dataset: Dataset
    task: Task
    first: Run
    likelihood: Run | None
    yes_no: Run | None
    priors: NDArray[np.float64] | None

    def systems(self, plan: Plan) -> list[str]:
        """Those that read candidates, as far as they are asked for."""
        names = [name for name in ("likelihood", "yes_no", "fused") if plan.wants(name)]
        if self.priors is not None and plan.wants("likelihood"):
            names.insert(1, CORRECTED)
        return names

    def believed(self, alpha: float) -> Run:
        """The likelihoods that are fused: ``alpha`` of the prior taken away where there is one."""
        assert self.likelihood is not None
        if self.priors is None:
            return self.likelihood
        return prior_corrected(self.likelihood, self.priors, alpha)

    def read(self, system: str, choice: Choice, depth: int) -> Run:
        """The scores of a system that reads so many candidates, one or more."""
        if system == "fused":
            fusion = choice.fusion[self.first.direction]
            return fused_run(shallow(self.first, depth), shallow(self.believed(choice.alpha), depth), fusion)
        run = {"likelihood": self.likelihood, "yes_no": self.yes_no}.get(system)
        if system == CORRECTED:
            run = self.believed(choice.alpha)
        assert run is not None
        return shallow(run, depth)

    def answer(self, system: str, choice: Choice, depth: int) -> Run:
        """All candidates: those read by their scores, the others behind them."""
        if depth == 0:
            return replace(self.first, name=system)
        return replace(rerank_depth(self.first, self.read(system, choice, depth), depth), name=system)


@final
class Workbench:
    """Everything that is computed on one data set, each thing once.

    Args:
        encoder: makes the vectors, and remembers them.
        generator: reads, and asks.
        dataset: with the forms to be measured.
        plan: what is measured.
        work: folder that keeps scores and questions.
        told: progress; may be replaced from part to part.
    """

    def __init__(
        self,
        encoder: Encoder,
        generator: Generator,
        dataset: Dataset,
        plan: Plan,
        work: Path,
        told: Progress,
    ) -> None:
        self.encoder, self.generator, self.dataset = encoder, generator, dataset
        self.plan, self.work, self.told = plan, work, told
        self.shown = Seen(generator, dataset.gallery, progress=lambda *done: self.told(*done))
        self._asked: dict[str, GalleryQuestions] = {}  # by style

    def parts(self) -> list[tuple[Direction, str]]:
        """Directions and forms, in the order of the report."""
        return [(way, form) for way in self.plan.directions for form in self.dataset.forms]

    def system(self, scoring: Scoring) -> GeneratorSystem:
        """The generator with a rule; its scores are kept."""
        folder = self.work / "scores"
        return GeneratorSystem(self.generator, scoring, self.shown, self.plan.batch_size, folder)

    def scores(self, direction: Direction, form: str, queries: int | None) -> Scores:
        """Run the first stage, and let the generator read what it found.

        Args:
            direction: who looks for whom.
            form: of the texts.
            queries: how many ask, taken evenly. Images that ask do so among all texts of the form, as
                CLIP's papers have it.
        """
        # The sample is drawn form by form, so that another form more changes nothing about this one.
        plan, data = self.plan, self.dataset.of_form(form)
        if direction == "text to image" and queries is not None:
            data = data.sample(queries, seed=plan.seed)
        deepest = plan.deepest(direction)
        first = first_stage(
            self.encoder, data, candidates=max(deepest, _DEEP), direction=direction, name=BASELINE,
            progress=self.told,
        )  # fmt: skip
        task = task_of(data, direction)
        if direction == "image to text" and queries is not None:  # fewer images ask, among all texts
            rows = sample_places(len(task.queries), queries, plan.seed)
            first, task = some_rows(first, rows), some_queries(task, rows)
        read = shallow(first, deepest)
        reads = plan.wants(
            *("likelihood", "fused", "no_image", "shuffled", "wording", "mean", "prior", "normalized_fused")
        )
        likelihood = self.system(Likelihood()).run(data, read, progress=self.told) if reads else None
        yes_no = self.system(YesNo()).run(data, read, progress=self.told) if plan.wants("yes_no") else None
        priors = None
        if likelihood is not None and direction == "image to text":
            priors = self.priors([query.text for query in data.queries])
        return Scores(data, task, first, likelihood, yes_no, priors)

    def priors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log P of texts given null images, float64 [n]."""
        return log_priors(
            self.generator, Likelihood(), texts,
            batch_size=self.plan.batch_size, work=self.work / "scores", progress=labelled(self.told, "prior"),
        )  # fmt: skip

    def questions(self, style: str = "questions") -> GalleryQuestions:
        """What the images of the gallery were asked, or in the style ``"search"`` what fills the bank."""
        if style not in self._asked:
            plan = self.plan
            self._asked[style] = ask_gallery(
                self.encoder, self.generator, self.dataset.gallery, shown=self.shown,
                n=plan.bank if style == "search" else plan.questions, style=style,
                top_k=plan.top_k, seed=plan.seed, work=self.work, progress=self.told,
            )  # fmt: skip
        return self._asked[style]

    def normalized(self, scores: Scores, choice: Choice) -> list[Run]:
        """The first stage with a query bank, alone and joined with the likelihood, as far as wanted.

        Raises:
            InvalidInputError: the bank is empty.
        """
        bank = bank_of(self.questions("search"), self.encoder.fingerprint)
        system, depth = NormalizedSystem(self.encoder, bank), self.plan.candidates
        normalized = system.run(scores.dataset, scores.first)
        runs = [normalized] if self.plan.wants("normalized") else []
        if self.plan.wants("normalized_fused"):
            believed = shallow(scores.believed(choice.alpha), depth)
            joined = fused_run(shallow(normalized, depth), believed, choice.fusion[scores.first.direction])
            runs.append(replace(rerank_depth(scores.first, joined, depth), name="normalized_fused"))
        return runs

    def expanded(self, expansion: Fusion) -> ExpandSystem:
        """The first stage with the questions of the images."""
        return ExpandSystem(self.encoder, self.questions(), expansion)

    def per_token(self, data: Dataset, run: Run) -> Run:
        """Sums of log-likelihoods divided by the length of their texts."""
        texts = {query.id: query.text for query in data.queries}
        by_text = run.direction == "text to image"
        ids = run.queries if by_text else run.items
        counts = token_counts(
            self.generator, Likelihood(), [texts[id] for id in ids],
            batch_size=self.plan.batch_size, work=self.work / "scores",
        )  # fmt: skip
        return replace(run, scores=run.scores / (counts[:, None] if by_text else counts[run.candidates]))


def labelled(told: Progress, label: str) -> Progress:
    """Progress that says of what part it is."""
    return lambda what, done, total: told(f"{label}: {what}", done, total)


def sample_places(count: int, some: int, seed: int) -> NDArray[np.int64]:
    """Places of some of ``count`` things, rising; all when there are no more."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:some]).astype(np.int64)

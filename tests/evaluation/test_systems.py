"""Expansion and ablations, with an encoder and a generator whose every number is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sets import write_colours
from test_runs import WAYS, Plane, Speller, data

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation import systems as systems_module
from zsqretrieval.evaluation.datasets import Dataset, Query, read_shards
from zsqretrieval.evaluation.expand_bench import expanded_ranks
from zsqretrieval.evaluation.measures import measure
from zsqretrieval.evaluation.runs import Direction, GeneratorSystem, System, first_stage
from zsqretrieval.evaluation.score_matrix import Seen
from zsqretrieval.evaluation.systems import (
    WORDINGS,
    ExpandSystem,
    GalleryQuestions,
    NoImage,
    Shuffled,
    ask_gallery,
    log_priors,
    token_counts,
)
from zsqretrieval.search.fusion import RerankOnly, WeightedSum
from zsqretrieval.search.priors import log_prior, null_images
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Context, Image, ImageState

# --- what is taken away -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_shuffled_is_the_same_of_other_images(way: Direction) -> None:
    first = first_stage(Plane(), data(), candidates=3, direction=way)
    shuffled = Shuffled(GeneratorSystem(Speller(), Likelihood()), seed=3)
    assert isinstance(shuffled, System)
    run = shuffled.run(data(), first)
    assert np.array_equal(run.candidates, first.candidates) and run.queries == first.queries
    number = {query.id: int(query.text.split()[1]) for query in data().queries}
    stands_for: dict[int, int] = {}
    for row, query in enumerate(run.queries):
        for place, score in zip(run.candidates[row], run.scores[row], strict=True):
            image, text = (run.items[place], query) if way == WAYS[0] else (query, run.items[place])
            # The score tells how far the image that was shown lies from the text's, in either direction.
            possible = {n for n in range(4) if -abs(n - number[text]) == score}
            known = stands_for.setdefault(int(image[1:]), -1)
            if len(possible) == 1:
                assert known in (-1, *possible)
                stands_for[int(image[1:])] = possible.pop()
    assert all(shown != own for own, shown in stands_for.items())
    assert not np.array_equal(run.scores, GeneratorSystem(Speller(), Likelihood()).run(data(), first).scores)
    assert np.array_equal(shuffled.run(data(), first).scores, run.scores)


def test_a_single_image_cannot_be_shuffled() -> None:
    alone = Dataset("one", data().gallery[:1], data().queries[:1], {"q0": {"i0": 1}})
    with pytest.raises(InvalidInputError, match="single image"):
        Shuffled(GeneratorSystem(Speller(), Likelihood())).run(alone, first_stage(Plane(), alone))


def test_without_an_image_nothing_can_be_ranked_but_texts() -> None:
    priors = {query.id: -float(n) for n, query in enumerate(data().queries)}
    first = first_stage(Plane(), data(), candidates=3)
    run = NoImage(priors).run(data(), first)
    assert (run.scores == run.scores[:, :1]).all()
    assert not measure(run, data().qrels, ["R@1"])["R@1"].any(), "ties count against it"
    back = NoImage(priors).run(data(), first_stage(Plane(), data(), direction="image to text"))
    orders = np.take_along_axis(back.candidates, np.argsort(-back.scores, axis=1), 1)
    assert (orders == np.arange(6)).all(), "every image gets the likeliest texts"


@pytest.mark.parametrize("generator", [ToyGenerator(), ToyStatesGenerator()])
def test_priors_are_those_of_the_retriever(generator: ToyGenerator, tmp_path: Path) -> None:
    texts = ["what is red?", "the colour of the picture", "no"]
    found = log_priors(generator, Likelihood(), texts, work=tmp_path)
    assert found == pytest.approx(log_prior(generator, Likelihood(), null_images(), texts))
    assert np.array_equal(log_priors(generator, Likelihood(), texts, work=tmp_path), found)
    with pytest.raises(InvalidInputError, match="'sum'"):
        log_priors(generator, Likelihood(aggregate="mean"), texts)


def test_length_is_what_parts_sum_and_mean() -> None:
    texts = ["what is red?", "no", "the colour of the picture ?"]
    generator, (grey,) = ToyGenerator(), null_images(1)
    counts = token_counts(generator, Likelihood(), texts)
    for text, count in zip(texts, counts, strict=True):
        (pair,) = Likelihood().pairs(text, grey)
        (one,) = generator.log_likelihood([pair.context], [pair.continuation])
        assert one.sum / count == pytest.approx(one.mean)


def test_wordings_are_named_after_their_rule() -> None:
    assert all(name.startswith(f"{rule.name}: ") for name, rule in WORDINGS.items())
    assert len({repr(rule) for rule in WORDINGS.values()}) == len(WORDINGS)


def test_images_are_seen_when_the_first_is_needed(tmp_path: Path) -> None:
    class Counting(ToyStatesGenerator):
        seen = 0

        def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> Any:
            self.seen += len(images)
            return super().image_states(images)

    dataset = read_shards(write_colours(tmp_path / "colours"))
    generator = Counting()
    shown = Seen(generator, dataset.gallery)
    assert len(shown) == 6 and generator.seen == 0
    first = first_stage(ToyEncoder(), dataset, candidates=2)
    system = GeneratorSystem(generator, Likelihood(), shown, work=tmp_path / "scores")
    run = system.run(dataset, first)
    assert generator.seen == 6
    again = replace(system, shown=Seen(generator, dataset.gallery)).run(dataset, first)
    assert generator.seen == 6 and np.array_equal(again.scores, run.scores), "all was known"
    some = Seen(generator, dataset.gallery, only=[4, 1])
    assert [isinstance(one, ImageState) for one in some] == [False, True, False, False, True, False]
    assert generator.seen == 8 and some[4].source == dataset.gallery[4].source
    assert list(Seen(ToyGenerator(), dataset.gallery)) == list(dataset.gallery), "it makes no states"


# --- expansion --------------------------------------------------------------------------------------------


class Asker:
    """Writes a question that names the image; of image 1 it writes one about image 3."""

    fingerprint = "asker"

    def __init__(self) -> None:
        self.asked = 0

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: Any) -> list[list[str]]:
        self.asked += len(contexts)
        names = [int(str(context[0].id)[1:]) for context in contexts if isinstance(context[0], Image)]
        return [[f"image {3 if name == 1 else name}?"] * n for name in names]

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], *, batch_size: int = 16
    ) -> Any:
        return Speller.log_likelihood(Speller(), contexts, [text.rstrip("?") for text in continuations])


class Readable(Plane):
    """A :class:`Plane` that reads questions as well."""

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        return super().encode_text([text.rstrip("?") for text in texts])


def pictured() -> Dataset:
    """The data of :func:`data` with images whose bytes differ."""
    images = tuple(replace(image, content=str(image.id).encode()) for image in data().gallery)
    return replace(data(), gallery=images)


def test_questions_that_lead_elsewhere_are_dropped(tmp_path: Path) -> None:
    asker, gallery = Asker(), pictured().gallery
    found = ask_gallery(Readable(), asker, gallery, n=2, top_k=1, work=tmp_path)
    assert found.texts == ("image 0?", "image 2?", "image 3?") and found.owners.tolist() == [0, 2, 3]
    assert found.generated == 4 and found.vectors.shape == (3, 2)
    everything = ask_gallery(Readable(), asker, gallery, n=2, top_k=4, work=tmp_path)
    assert len(everything.texts) == 4 and asker.asked == 4, "what was written is known"
    ask_gallery(Readable(), asker, gallery, n=3, work=tmp_path)
    assert asker.asked == 8, "another recipe is not"


def test_an_interrupted_interview_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems_module, "_ASKED", 2)
    gallery = pictured().gallery

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    first, second = Asker(), Asker()
    with pytest.raises(KeyboardInterrupt):
        ask_gallery(Readable(), first, gallery, work=tmp_path, progress=stop)
    told: list[tuple[str, int, int]] = []
    found = ask_gallery(Readable(), second, gallery, work=tmp_path, progress=lambda *one: told.append(one))
    assert (first.asked, second.asked) == (2, 2) and told[-1] == ("asking images", 4, 4)
    assert found.texts == ask_gallery(Readable(), Asker(), gallery).texts


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(0, 12), st.integers(1, 10))
def test_expansion_ranks_as_the_bench_of_expansion_does(
    seed: int, images: int, questions: int, candidates: int
) -> None:
    random = np.random.default_rng(seed)

    class Drawn:
        fingerprint, dim = "drawn", 3

        def encode_image(self, some: Sequence[Image], *, batch_size: int = 32) -> np.ndarray:
            return self.vectors[[int(str(image.id)) for image in some]]

        def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
            return self.asking[[int(text) for text in texts]]

        vectors = random.normal(size=(images, 3)).astype(np.float32)
        asking = random.normal(size=(images, 3)).astype(np.float32)

    asked = GalleryQuestions(
        tuple(map(str, range(questions))),
        random.integers(0, images, questions),
        random.normal(size=(questions, 3)).astype(np.float32),
        questions,
    )
    dataset = Dataset(
        "drawn",
        tuple(Image(b"", f"{n}", f"{n}") for n in range(images)),
        tuple(Query(f"q{n}", f"{n}", "caption", "") for n in range(images)),
        {f"q{n}": {f"{n}": 1} for n in range(images)},
    )
    expansion = WeightedSum(0.7)
    system = ExpandSystem(Drawn(), asked, expansion, candidates)
    run = system.run(dataset, first_stage(Drawn(), dataset))
    found = measure(run, dataset.qrels, ["MRR"])["MRR"]
    similarity = (Drawn.asking @ Drawn.vectors.T).astype(np.float64)
    by_question = np.full((images, images), np.nan)
    for owner, vector in zip(asked.owners, asked.vectors, strict=True):
        by_question[:, owner] = np.fmax(by_question[:, owner], (Drawn.asking @ vector).astype(np.float64))
    ranks = expanded_ranks(similarity, by_question, np.arange(images), expansion, candidates)
    assert found == pytest.approx(np.where(ranks < images, 1 / (ranks + 1.0), 0))


def test_expansion_is_of_images_that_are_searched() -> None:
    asked = ask_gallery(Readable(), Asker(), pictured().gallery, top_k=1)
    system = ExpandSystem(Readable(), asked, RerankOnly(), candidates=1)
    assert isinstance(system, System)
    run = system.run(pictured(), first_stage(Readable(), pictured()))
    assert run.name == "expand" and run.candidates[:, 0].tolist() == [0, 0, 1, 2, 3, 3]
    with pytest.raises(InvalidInputError, match="here they search"):
        system.run(pictured(), first_stage(Readable(), pictured(), direction="image to text"))
    for wrong in ({"n": 0}, {"top_k": 0}, {"style": "odes"}):
        with pytest.raises(InvalidInputError):
            ask_gallery(Readable(), Asker(), pictured().gallery, **wrong)  # type: ignore[arg-type]

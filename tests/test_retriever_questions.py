"""Stored questions of an album: round trip, resumption, search of questions, explanations."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image as PILImage

from plain import write_plain
from seeing import Seeing
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.data.images import decode
from zsqretrieval.data.samples import photographs
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.prompts import PROMPTS
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.presets import PRESETS, Calibration
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.expansion import ALIKE, best_questions, join
from zsqretrieval.search.explain import Word, explain, words
from zsqretrieval.search.fusion import Fusion, Maximum, ReciprocalRank, RerankOnly, WeightedSum, best_first
from zsqretrieval.search.priors import log_prior, null_images
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.search.scoring import Likelihood, YesNo
from zsqretrieval.tasks.album_questions import own_ranks
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyGenerator, ToyIndex
from zsqretrieval.types import Context, Explanation, Hit, Image, LogLikelihood

ENCODER = ToyEncoder()
NAMES = ("red", "green", "blue", "yellow", "black", "white")


class Asker(ToyGenerator):
    """Asks about the colour of an image, and a question that fits any."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: Any) -> list[list[str]]:
        found = []
        for context in contexts:
            image, said = context
            assert isinstance(image, Image) and isinstance(said, str)
            colour = colour_of(image)
            texts = [f"is there a {colour} thing?", "what is it?", f"Is there a {colour} thing ?"]
            if said.endswith("Answer:"):
                texts = [f"{colour} it is"]
            else:
                self.asked.append(image.source)
            found.append([texts[draw % len(texts)] for draw in range(n)])
        return found


def colour_of(image: Image) -> str:
    mean = np.asarray(decode(image), float).mean((0, 1)) / 255
    return min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name]) - mean).sum()))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_plain(tmp_path / "pictures", NAMES, (6, 4))


def made(generator: Any = None, index: Any = None, **rest: Any) -> Retriever:
    index = ExactIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint) if index is None else index
    return Retriever(ENCODER, index, generator or Asker(), **rest)


def opened(album: Path, generator: Any = None) -> Retriever:
    return Retriever.open(album, encoder=ENCODER, generator=generator or Asker())


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


# --- asking


def test_questions_that_find_their_image_are_kept(pictures: Path) -> None:
    asker = Asker()
    told: list[tuple[int, int | None]] = []
    with made(asker) as retriever:
        retriever.add(pictures)
        report = retriever.questions.generate(
            2, answers=True, top_k=1, batch_size=4, progress=lambda _, *done: told.append(done)
        )
        assert (report.asked, report.known, report.skipped) == (6, 0, ()) and report.seconds > 0
        assert report.questions == 12 and 6 <= report.kept < 12  # "what is it?" finds one of them at most
        assert told[0] == (4, 6) and told[-1] == (6, 6)
        for one in retriever.questions.list():
            ranking = retriever.search(one.text, k=6, rerank=None)
            rank = ids(ranking).index(one.id) + 1
            judged = one.judgement
            assert judged.kept == (rank == 1) and judged.rank == (1 if rank == 1 else None)
            assert (judged.top_k, judged.gallery) == (1, 6)
            assert one.answer == f"{one.id.removesuffix('.png')} it is"
            assert one.prompt == PROMPTS["ask"].template
            (likelihood,) = asker.log_likelihood(
                [PROMPTS["ask"].context(Image(pictures / one.id, one.id))], [f" {one.text}"]
            )
            assert one.log_likelihood == likelihood.sum
            assert astuple(one.recipe) == (
                *("questions", (PROMPTS["ask"].template,), PROMPTS["vqa"].template),
                *(asker.fingerprint, ENCODER.fingerprint, 2, 0.7, 0, 24),
            )
        assert {one.id for one in retriever.questions.list("red.png")} == {"red.png"}
        with pytest.raises(InvalidInputError, match=r"has the id 'pink\.png'; .*records\(\) lists"):
            retriever.questions.list("pink.png")


def test_images_asked_before_are_not_asked_again(pictures: Path, album: Path) -> None:
    with made(path=album) as retriever:
        retriever.add(pictures)
        retriever.questions.generate(batch_size=4)
    again = Asker()
    with opened(album, again) as retriever:
        assert retriever.questions.generate(batch_size=4).known == 6 and again.asked == []
        PILImage.new("RGB", (6, 4), (250, 200, 10)).save(pictures / "orange.png")
        retriever.add(pictures)
        report = retriever.questions.generate()
        assert (report.known, report.asked) == (6, 1) and again.asked == [str(pictures / "orange.png")]
        other = retriever.questions.generate(seed=1)
        assert other.asked == 7 and other.questions == 0, "asked anew, and nothing new was said"
        assert retriever.questions.generate(style="search").asked == 7
        images = {one.style: one.images for one in retriever.questions.styles()}
        assert images == {"questions": 7, "search": 7}
        with pytest.raises(InvalidInputError, match=r"no style 'serach'; choose from .*questions, search"):
            retriever.questions.remove("serach")
        assert retriever.questions.remove("captions") == 0, "of which there might have been some"
        assert retriever.questions.remove() > 0 and list(retriever.questions.list()) == []
        assert retriever.questions.generate().asked == 7


def test_interrupted_run_is_resumed(pictures: Path, album: Path) -> None:
    asker = Asker()

    def stop(step: str, done: int, total: int | None) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with made(asker, path=album) as retriever:
        retriever.add(pictures)
        with pytest.raises(KeyboardInterrupt):
            retriever.questions.generate(batch_size=2, progress=stop)
    with opened(album, asker) as retriever:
        report = retriever.questions.generate(batch_size=2)
        whole = [(one.id, one.text, one.judgement) for one in retriever.questions.list()]
    assert (report.known, report.asked) == (4, 2) and len(asker.asked) == 6
    with made() as retriever:
        retriever.add(pictures)
        retriever.questions.generate(batch_size=2)
        assert whole == [(one.id, one.text, one.judgement) for one in retriever.questions.list()]


def test_failing_batch_leaves_the_earlier_ones(pictures: Path) -> None:
    class Tired(Asker):
        def generate(self, contexts: Any, **settings: Any) -> Any:
            if len(self.asked) >= 4:
                raise InvalidInputError("too tired")
            return super().generate(contexts, **settings)

    with made(Tired()) as retriever:
        retriever.add(pictures)
        with pytest.raises(InvalidInputError, match="too tired"):
            retriever.questions.generate(batch_size=4)
        assert len({one.id for one in retriever.questions.list()}) == 4


def test_missing_image_is_reported_and_asked_later(pictures: Path) -> None:
    with made() as retriever:
        retriever.add(pictures)
        away = pictures.with_name("away.png")
        (pictures / "red.png").rename(away)
        report = retriever.questions.generate()
        assert report.asked == 5 and [Path(one.source).name for one in report.skipped] == ["red.png"]
        away.rename(pictures / "red.png")
        assert retriever.questions.generate().asked == 1


def test_cached_features_replace_missing_images(pictures: Path) -> None:
    with Retriever(ENCODER, None, Seeing(), states="disk") as retriever:
        retriever.add(pictures)
        shutil.rmtree(pictures)
        report = retriever.questions.generate(2, style="captions", top_k=None)
        assert report.asked == 6 and report.questions == report.kept > 0
        assert all(one.judgement.rank is one.judgement.top_k is None for one in retriever.questions.list())


def test_image_removed_meanwhile_is_skipped(pictures: Path) -> None:
    with made() as retriever:
        retriever.add(pictures)

        class Removing(Asker):
            def generate(self, contexts: Any, **settings: Any) -> Any:
                if "red.png" in retriever:
                    retriever.remove("red.png")
                return super().generate(contexts, **settings)

        with made(Removing()) as other:
            retriever.questions._viewer = other._viewer
            report = retriever.questions.generate()
        stored = [one.id for one in retriever.questions.list()]
        assert {*stored} == {f"{name}.png" for name in NAMES if name != "red"}
        assert report.questions == len(stored)


def test_filter_judges_by_the_present_album(pictures: Path) -> None:
    with made() as retriever:
        retriever.add(pictures / "red.png")
        assert retriever.questions.generate(top_k=1).kept == 2, "alone, any question leads to it"
        retriever.add(pictures)
        told: list[tuple[int, int | None]] = []
        report = retriever.questions.filter(1, batch_size=1, progress=lambda _, *done: told.append(done))
        assert (report.questions, report.kept) == (2, 1) and told == [(1, 2), (2, 2)]
        judged = {one.text: one.judgement for one in retriever.questions.list()}
        assert judged["is there a red thing?"].kept and judged["is there a red thing?"].gallery == 6
        assert not judged["what is it?"].kept
        assert retriever.questions.filter(None).kept == 2
        hits = retriever.search("what is it?", 6, expand=True, rerank=None)
        matched = {Path(hit.source).name: hit.matched_question for hit in hits}
        assert matched.pop("red.png") == "what is it?" and set(matched.values()) == {None}


def test_missing_parts_and_bad_settings_are_refused(pictures: Path) -> None:
    alone = Retriever(ENCODER, ExactIndex(ENCODER.dim))
    alone.add(pictures)
    for call, message in (
        (lambda: alone.questions.generate(), "writing questions needs a generator, and this retriever has"),
        (lambda: alone.search("red", explain=True), "explain=True needs a generator"),
        (lambda: alone.search("red", expand=True), r"no stored questions to search; .*`zsq quest"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            call()
    alone.close()
    with made() as retriever:
        retriever.add(pictures)
        wrong: list[dict[str, Any]] = [{"n": 0}, {"top_k": 0}, {"batch_size": 0}, {"style": "no"}]
        wrong += [{"temperature": -1}, {"temperature": "warm"}, {"seed": -1}, {"seed": 0.5}]
        for settings in [*wrong, {"max_new_tokens": 0}, {"n": True}, {"top_k": True}]:
            with pytest.raises(InvalidInputError, match=next(iter(settings))):
                retriever.questions.generate(**settings)
        assert not retriever.questions.styles()  # and nobody was asked so
        for settings in wrong[1:3]:
            with pytest.raises(InvalidInputError, match="must be at least 1, not 0"):
                retriever.questions.filter(**settings)
        retriever.questions.generate()


def test_numpy_numbers_are_accepted(pictures: Path, album: Path) -> None:
    with made(path=album) as retriever:
        retriever.add(pictures)
        settings: dict[str, Any] = {"n": 2, "top_k": 3, "seed": 1, "max_new_tokens": 9, "batch_size": 4}
        report = retriever.questions.generate(**{name: np.int64(one) for name, one in settings.items()})
        assert report.asked == 6
        assert retriever.questions.generate(**settings).known == 6
        retriever.questions.filter(np.int16(2), batch_size=np.uint8(5))  # type: ignore[arg-type]
    with opened(album) as retriever:
        judged = [one.judgement for one in retriever.questions.list()]
        assert {one.top_k for one in judged} == {2}
        assert {type(one.rank) for one in judged} == {int, type(None)}
        (recipe,) = {one.recipe for one in retriever.questions.list()}
        assert (recipe.n, recipe.seed, recipe.max_new_tokens) == (2, 1, 9)


@given(
    npst.arrays(np.int64, npst.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.integers(-1, 6)),
    st.data(),
)
def test_own_ranks_count_from_one(found: np.ndarray, data: st.DataObject) -> None:
    own = data.draw(npst.arrays(np.int64, len(found), elements=st.integers(0, 6)))
    for row, key, rank in zip(found.tolist(), own.tolist(), own_ranks(found, own).tolist(), strict=True):
        assert rank == (row.index(key) + 1 if key in row else 0)


# --- searching questions


@pytest.mark.parametrize(
    "index", [None, HNSWIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint), ToyIndex(ENCODER.dim)]
)
def test_hits_have_both_first_stage_scores(pictures: Path, index: Any) -> None:
    with made(index=index) as retriever:
        retriever.add(pictures)
        retriever.questions.generate(2, top_k=1)
        ranking = retriever.search("a red thing?", 4, expand=True, rerank=None)
        plain = {hit.id: hit for hit in retriever.search("a red thing?", 6, rerank=None)}
        for hit in ranking:
            assert hit.score == hit.scores["first_stage"]
            assert hit.scores["image_similarity"] == pytest.approx(plain[hit.id].score, abs=1e-6)
            texts = [one.text for one in retriever.questions.list(hit.id) if one.judgement.kept]
            cosines = ENCODER.encode_text(["a red thing?"]) @ ENCODER.encode_text(texts).T
            assert hit.matched_question == texts[int(cosines.argmax())]
            assert hit.scores["question_similarity"] == pytest.approx(float(cosines.max()), abs=1e-6)
        assert ids(ranking)[0] == "red.png" and set(ranking.timings) == {"encode", "first_stage"}
        assert all(hit.matched_question is None for hit in plain.values())
        again = retriever.search("a red thing?", 3, expand=True, rerank=Rerank(candidates=6))
        names = {"first_stage", "image_similarity", "question_similarity", "likelihood", "fused"}
        assert set(again[0].scores) == names
        assert again[0].matched_question is not None


def test_question_finds_an_image_that_looks_different(pictures: Path) -> None:
    class Wrong(Asker):
        def generate(self, contexts: Any, *, n: int = 1, **settings: Any) -> Any:
            return [["is it a zebra?" if "white" in image.source else "what?"] * n for image, _ in contexts]

    with made(Wrong()) as retriever:
        retriever.add(pictures)
        retriever.questions.generate(1, top_k=None)
        assert retriever.search("is it a zebra?", 1, rerank=None)[0].id != "white.png"
        for expansion, k in ((RerankOnly(), 1), (Maximum(1.0), 6)):
            retriever.calibration = Calibration(expansion=expansion)
            hit, *others = retriever.search("is it a zebra?", k, expand=True, rerank=None)
            assert hit.id == "white.png" and hit.matched_question == "is it a zebra?"
            assert hit.scores["question_similarity"] == pytest.approx(1) and len(others) == k - 1


def test_question_index_follows_the_album(pictures: Path, album: Path) -> None:
    with made(path=album) as retriever, opened(album) as other:
        retriever.add(pictures)
        retriever.questions.generate(2, top_k=1)
        assert other.search("a red thing?", 1, expand=True, rerank=None)[0].id == "red.png"
        retriever.remove("red.png")
        for each in (retriever, other):
            assert "red.png" not in ids(each.search("a red thing?", 6, expand=True, rerank=None))
        other.questions.remove()
        with pytest.raises(InvalidInputError, match="no stored questions"):
            retriever.search("red", expand=True)


def test_snapshots_of_the_question_index_are_saved_and_checked(pictures: Path, album: Path) -> None:
    with made() as retriever:
        retriever.add(pictures)
        retriever.questions.generate(2, top_k=1)
        before = retriever.search("a red thing?", 6, expand=True, rerank=None)
        retriever.save(album)
        retriever.save()
    (snapshot,) = album.glob("questions-*")
    with opened(album) as retriever:
        assert retriever.search("a red thing?", 6, expand=True, rerank=None).hits == before.hits
        retriever.remove("red.png")
        without = retriever.search("a red thing?", 6, expand=True, rerank=None)
        assert "red.png" not in ids(without) and len(without) > 0
        retriever.save()
    assert not snapshot.exists()
    (snapshot,) = album.glob("questions-*")
    for file in snapshot.iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    with opened(album) as retriever:
        with pytest.warns(RuntimeWarning, match="the saved questions of .* is damaged and is rebuilt"):
            after = retriever.search("a red thing?", 6, expand=True, rerank=None)
        assert after.hits == without.hits
    shutil.rmtree(snapshot)


def test_album_without_questions_has_no_snapshot_of_them(pictures: Path, album: Path) -> None:
    with made(path=album) as retriever:
        retriever.add(pictures)
        retriever.save()
        assert not list(album.glob("questions-*"))
        with Catalog.open(album / "catalog.sqlite") as catalog:
            assert catalog.get_snapshot("questions") is None


# --- joining


@st.composite
def similarities(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    count = draw(st.integers(1, 10))
    cosines = st.floats(-1, 1) | st.sampled_from([0.1, 0.25, 0.5])
    image = np.sort(draw(npst.arrays(np.float64, count, elements=cosines)))[::-1]
    question = draw(npst.arrays(np.float64, count, elements=cosines | st.just(float("nan"))))
    return image, question


EXPANSIONS: list[Fusion] = [
    *(Calibration().expansion, WeightedSum(0.3), WeightedSum(2, scale="raw")),
    *(Maximum(), Maximum(-0.3, scale="raw"), ReciprocalRank(), RerankOnly()),
]


@given(similarities(), st.sampled_from(EXPANSIONS))
def test_joined_scores_have_mean_and_spread_of_the_images(
    both: tuple[np.ndarray, np.ndarray], expansion: Fusion
) -> None:
    image, question = both
    kept = question.copy()
    joined = join(expansion, image, question)
    assert joined.shape == image.shape and np.isfinite(joined).all()
    assert np.array_equal(question, kept, equal_nan=True)
    assert joined.mean() == pytest.approx(image.mean(), abs=1e-9)
    if np.ptp(image) > ALIKE and joined.std() > 1e-9:
        assert joined.std() == pytest.approx(image.std())
    known = ~np.isnan(question)
    if known.any():
        average = np.clip(question[known].mean(), question[known].min(), question[known].max())
        fused = expansion.fuse(image, np.where(known, question, average))
        clear = np.abs(fused[:, None] - fused[None]) > ALIKE
        assert np.all(((fused[:, None] > fused[None]) == (joined[:, None] > joined[None]))[clear])
    else:
        assert np.array_equal(joined, image)


def test_questions_decide_between_equal_images() -> None:
    alike, rising = np.full(7, 0.1), np.linspace(0.1, 0.9, 7)
    assert alike.std() > 0  # in rounding
    assert np.array_equal(best_first(join(WeightedSum(0.5), alike, rising)), np.arange(7)[::-1])


def test_image_without_questions_is_no_better_than_those_with_equal_questions() -> None:
    image, question = np.linspace(0.3, 0.1, 4), np.array([0.1, 0.1, 0.1, np.nan])
    assert np.mean(question[:3]) > 0.1  # in rounding
    for expansion in EXPANSIONS[:3]:
        assert best_first(join(expansion, image, question)).tolist() == [0, 1, 2, 3]


@given(st.lists(st.integers(0, 4), max_size=12), st.data())
def test_every_image_has_its_best_question(owners: list[int], data: st.DataObject) -> None:
    images = np.array([3, 5, 8, 13, 21], np.int64)
    scores = data.draw(npst.arrays(np.float64, len(owners), elements=st.sampled_from([-0.5, 0.0, 0.25, 1.0])))
    best, which = best_questions(images, images[np.array(owners, np.int64)], scores)
    for row in range(5):
        mine = [n for n, owner in enumerate(owners) if owner == row]
        if not mine:
            assert np.isnan(best[row]) and which[row] == -1
        else:
            assert best[row] == max(scores[mine]) and which[row] == max(mine, key=lambda n: (scores[n], -n))


def test_expansion_that_is_not_finite_is_refused() -> None:
    class Endless:
        def fuse(self, first_stage: np.ndarray, scores: np.ndarray) -> np.ndarray:
            return np.full(len(scores), -np.inf)

    with pytest.raises(InvalidInputError, match="one finite number per candidate"):
        join(Endless(), np.array([0.2, 0.1]), np.array([0.3, 0.4]))


# --- explaining


def test_explanation_has_likelihoods_with_and_without_the_image(pictures: Path) -> None:
    toy = ToyGenerator()
    question = "Is the red thing green ?"
    images = [Image(pictures / f"{name}.png", name) for name in ("red", "blue")]
    red, blue = explain(toy, f" {question} ", images)
    for image, one in zip(images, (red, blue), strict=True):
        (read,) = toy.log_likelihood([PROMPTS["question"].context(image)], [f" {question}"])
        assert one.tokens == read.tokens and np.array_equal(one.with_image, read.token_log_probs)
        (answer,) = toy.generate([PROMPTS["vqa"].context(image, question=question)], max_new_tokens=24)[0]
        assert one.answer == answer
    assert np.array_equal(red.without_image, blue.without_image) and np.all(red.without_image < 0)
    (prior,) = log_prior(toy, Likelihood(), null_images(), [question])
    assert red.without_image.sum() == pytest.approx(prior, abs=1e-5)
    at = red.tokens.index("red")
    assert red.gain[at] > 0 > blue.gain[at] and red.gain == pytest.approx(red.with_image - red.without_image)
    assert explain(toy, question, []) == []


def test_likelihood_without_image_is_the_mean_of_the_null_images() -> None:
    """Two pictures of nothing, of which the second foresees nothing: worked out by hand."""

    class TwoMinds(ToyGenerator):
        def log_likelihood(self, contexts: Any, continuations: Any, **_: Any) -> Any:
            return [
                LogLikelihood(("a", "b"), np.log([[0.5, 0.5], [0.25, 0.125]], dtype=np.float32)[min(n, 1)])
                for n in range(len(contexts))
            ]

    (found,) = explain(TwoMinds(), "a b", [Image(PILImage.new("RGB", (2, 2)), "it")])
    first = (0.5 + 2 * 0.25) / 3
    both = (0.25 + 2 * 0.25 * 0.125) / 3
    assert np.exp(found.without_image) == pytest.approx([first, both / first])


def test_words_join_their_tokens() -> None:
    for tokens, expected in (
        ((" snow", "board", "ing", " dog", "?"), [Word("snowboarding", 3), Word("dog?", 7)]),
        ((" snow", "board", "ing"), [Word("snowboarding", 3)]),
        ((" red",), [Word("red", 0)]),
        (("red",), [Word("red", 0)]),
        ((), []),
        (("red", "dog", "?"), [Word("red", 0), Word("dog", 1), Word("?", 2)]),
        (("red", " dog"), [Word("red", 0), Word("dog", 1)]),
    ):
        gains = np.arange(len(tokens), dtype=np.float32)
        assert words(Explanation("", tokens, gains, np.zeros(len(tokens), np.float32))) == expected


@pytest.mark.parametrize("scoring", [None, Likelihood(), YesNo()])
def test_every_hit_with_an_image_is_explained(pictures: Path, scoring: Any) -> None:
    toy = ToyGenerator()
    with made(toy) as retriever:
        retriever.add(pictures)
        (pictures / "green.png").unlink()
        if scoring is None:
            ranking = retriever.search("the red thing ?", 6, explain=True, rerank=None)
        else:
            how = Rerank(scoring, batch_size=2)
            with pytest.warns(RuntimeWarning, match="1 of 6 candidates"):
                ranking = retriever.search("the red thing ?", 6, explain=True, rerank=how)
        assert list(ranking.timings)[-1] == "explain" and len(ranking) == 6
        for hit in ranking:
            if hit.id == "green.png":
                assert hit.explanation is None
                continue
            (expected,) = explain(toy, "the red thing ?", [Image(pictures / hit.id, hit.id)])
            assert hit.explanation is not None and hit.explanation.answer == expected.answer
            assert hit.explanation.tokens == expected.tokens
            assert hit.explanation.with_image == pytest.approx(expected.with_image)
        assert len(retriever.search("red", 2, explain=True, rerank=None)) == 2
        assert all(replace(hit, explanation=None) == hit for hit in retriever.search("red", rerank=None))


# --- with a real model


def test_mini_models_ask_answer_and_explain() -> None:
    photos = list(photographs())[:2]
    preset = PRESETS["mini"].variant(index="exact")
    with (
        Retriever.from_preset(preset) as retriever,
        Retriever.from_preset(preset) as again,
    ):
        for one in (retriever, again):
            one.add(photos)
            report = one.questions.generate(2, answers=True, top_k=2)
        asked = list(retriever.questions.list())
        assert (report.asked, report.skipped) == (2, ()) and report.kept == report.questions == len(asked) > 0
        assert all(one.text.endswith("?") and one.log_likelihood < 0 for one in asked)
        assert len({one.text for one in asked}) > 1 and any(one.answer for one in asked)
        assert {one.recipe.generator for one in asked} == {retriever.generator.fingerprint}  # type: ignore[union-attr]
        repeated = [(one.id, one.text, one.answer) for one in again.questions.list()]
        assert repeated == [(one.id, one.text, one.answer) for one in asked]
        text = asked[0].text
        found = retriever.search(text, 2, expand=True, explain=True)
        hit = next(one for one in found if one.id == asked[0].id)
        assert hit.matched_question == text
        assert hit.scores["question_similarity"] == pytest.approx(1, abs=1e-5)
        assert hit.explanation is not None
        said = "".join(hit.explanation.tokens).replace(" ", "")
        assert said == text.replace(" ", "")
        assert hit.scores["likelihood"] == pytest.approx(hit.explanation.with_image.sum(), abs=0.2)
        assert "".join(word.text for word in words(hit.explanation)) == said

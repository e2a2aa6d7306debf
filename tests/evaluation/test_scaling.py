"""Recall by the size of the gallery, on images that are numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from index_data import unit
from refusing import refused
from zsqretrieval._util.cache import Cache
from zsqretrieval.data.images import decode
from zsqretrieval.evaluation.datasets import CAPTION, Dataset, Query, Task
from zsqretrieval.evaluation.results import table_of
from zsqretrieval.evaluation.run import Run
from zsqretrieval.evaluation.scaling import compete, hard_distractors, measure_scaling, recall_reranked
from zsqretrieval.evaluation.scaling_models import LAION_5B, recall_in_sample
from zsqretrieval.evaluation.scores import Bench
from zsqretrieval.evaluation.settings import Settings
from zsqretrieval.search.fusion import RerankOnly, WeightedSum
from zsqretrieval.types import Image, LogLikelihood

ASKED, OTHERS = 60, 240
IMAGES = ASKED + OTHERS
SPACE = np.random.default_rng(0).standard_normal((IMAGES, 12)) + 0.5
NOISE = np.random.default_rng(1).standard_normal((ASKED, 2, 12))


def number_of(image) -> int:
    red, green, _ = np.asarray(decode(image))[0, 0]
    return int(red) * 256 + int(green)


class NumberEncoder:
    """Image n is row n of a table; a caption is near its image."""

    dim, fingerprint = 12, "numbers"

    def encode_image(self, images, *, batch_size=32):
        return unit(SPACE[[number_of(image) for image in images]])

    def encode_text(self, texts, *, batch_size=32):
        said = [text.split() for text in texts]
        return unit(np.stack([SPACE[int(n)] + 1.6 * NOISE[int(n), "ab".index(which)] for n, which in said]))


class NumberGenerator:
    """Knows which image a caption is about, but scores every fifth image lowest."""

    fingerprint = "numbers-generator"
    pairs = 0

    def log_likelihood(self, contexts, continuations, *, batch_size=16, progress=None):
        self.pairs += len(contexts)
        return [self._one(context, text) for context, text in zip(contexts, continuations, strict=True)]

    def _one(self, context, text):
        shown, asked = number_of(context[0]), int(text.split()[0])
        if shown == asked:
            return LogLikelihood((text,), np.array([-1 if asked % 5 else -99], np.float32))
        return LogLikelihood((text,), np.array([-9 - shown / 1000], np.float32))

    def generate(self, contexts, **_):
        raise AssertionError("nothing is generated here")


def numbers(images=IMAGES):
    """Two captions of each of the first images; the others are distractors."""
    gallery = tuple(
        Image(PILImage.new("RGB", (4, 4), (n // 256, n % 256, 0)), f"image {n}", str(n))
        for n in range(images)
    )
    asked = [(n, which) for n in range(min(ASKED, images)) for which in "ab"]
    queries = tuple(Query(f"{n}{which}", f"{n} {which}", CAPTION, "here") for n, which in asked)
    return Dataset("numbers", gallery, queries, {f"{n}{which}": {str(n): 1} for n, which in asked})


SMALL = {"candidates": 60, "depths": (5, 20), "synthetic": 500, "resamples": 12, "draws": 4}


def measure(generator=None, dataset=None, cache=None, **options):
    dataset = dataset or numbers()
    bench = Bench(NumberEncoder(), generator, dataset, Settings(), cache or Cache(), lambda *_: None)
    if generator is None:
        options["scoring"] = None
    rows, facts = measure_scaling(bench, CAPTION, **SMALL | options)
    return table_of(rows), facts


@pytest.fixture(scope="module")
def found():
    return measure(NumberGenerator(), fusion=WeightedSum(1.0))


def of(table, form, measure, system=None):
    """Rows of one form and measure, the first stage by default, by rising size."""
    system = table["system"][0] if system is None else system
    rows = table[(table["form"] == form) & (table["measure"] == measure) & (table["system"] == system)]
    return rows.sort_values("depth").reset_index()


def beaten_by():
    """Images as near to each caption as its own, in the whole gallery."""
    texts = NumberEncoder().encode_text([f"{n} {c}" for n in range(ASKED) for c in "ab"])
    similarity = texts @ unit(SPACE).T
    own = similarity[np.arange(2 * ASKED), np.arange(2 * ASKED) // 2]
    return (similarity >= own[:, None]).sum(1) - 1


def test_largest_gallery_has_the_recall_of_a_loop(found):
    table, facts = found
    for k in (1, 10, 100):
        last = of(table, "measured", f"R@{k}").iloc[-1]
        assert last["depth"] == facts["settings"]["images"] == IMAGES
        assert last["value"] == pytest.approx((beaten_by() < k).mean(), abs=1e-6)
        assert last["low"] <= last["value"] <= last["high"]
    curve = of(table, "measured", "R@1")["value"].tolist()
    assert curve == sorted(curve, reverse=True) and curve[0] > curve[-1]


def test_reranking_keeps_the_share_of_the_ceiling_that_the_generator_knows(found):
    """Right for four images in five, if the image is a candidate."""
    table, _ = found
    systems = {"likelihood@5", "fused@5", "likelihood@20", "fused@20"}
    assert set(table["system"][1:]) - systems == {table["system"][0]}
    deep, shallow = (of(table, "measured", "R@1", f"likelihood@{depth}") for depth in (20, 5))
    assert deep["depth"].max() == shallow["depth"].max() == IMAGES
    assert len(shallow) > len(deep), "fewer candidates can be measured in smaller galleries too"
    ceilings = recall_in_sample(beaten_by(), IMAGES - 1, IMAGES - 1, [5, 20])
    for rows, within in ((shallow, ceilings[0]), (deep, ceilings[1])):
        right = within[np.arange(2 * ASKED) // 2 % 5 > 0].sum()
        assert rows["value"].iloc[-1] == pytest.approx(right / (2 * ASKED), abs=1e-6)


def test_synthetic_distractors_have_rows_of_their_own_and_lower_recall(found):
    table, facts = found
    rows = of(table, "hard synthetic", "R@10")
    assert rows["depth"].min() > IMAGES and rows["depth"].max() == IMAGES + 500
    assert rows["value"].iloc[-1] < of(table, "measured", "R@10")["value"].iloc[-1]
    assert any("not images" in sentence for sentence in facts["assumptions"])


def test_extrapolated_recall_falls_inside_the_envelope_and_below_the_ceiling(found):
    table, _ = found
    for system in table["system"].unique():
        envelope = of(table, "envelope", "R@10", system)
        assert envelope["value"].isna().all()
        for model in ("beta", "normal", "pareto"):
            rows = of(table, model, "R@10", system)
            assert rows["depth"].max() == LAION_5B
            assert (envelope["low"] <= rows["low"]).all() and (rows["low"] <= rows["high"]).all()
            assert (rows["high"] <= envelope["high"]).all()
    for model in ("beta", "normal", "pareto"):
        for k in (1, 10, 100):
            measured = of(table, "measured", f"R@{k}")["value"].iloc[-1]
            falling = [measured, *of(table, model, f"R@{k}")["value"]]
            assert falling == sorted(falling, reverse=True)
        ceiling = of(table, model, "R@100")["value"]
        best, ten = (of(table, model, f"R@{k}", "fused@20")["value"] for k in (1, 10))
        assert (best <= ten).all() and (ten <= ceiling).all()


def test_models_fitted_on_a_tenth_predict_the_whole_gallery(found):
    table, facts = found
    assert facts["settings"]["held_out_fitted_on"] == 40
    measured = of(table, "measured", "R@10")["value"].iloc[-1]
    for model in ("beta", "normal", "pareto"):
        (one,) = of(table, f"held out, {model}", "R@10").to_dict("records")
        assert one["depth"] == IMAGES and one["baseline"] == "measured"
        assert one["gain"] == pytest.approx(one["value"] - measured)
        assert one["gain_low"] <= one["gain"] <= one["gain_high"] + 0.01
        assert abs(one["gain"]) < 0.15


def test_candidates_needed_and_their_cost_grow_with_the_gallery(found):
    table, facts = found
    low, high = facts["ceiling"]["interval"]
    assert low <= facts["ceiling"]["value"] <= high
    for model in ("beta", "normal", "pareto"):
        rows = of(table, model, "candidates needed")
        assert rows["depth"][0] == IMAGES and rows["value"][0] == pytest.approx(60, rel=0.6)
        *_, before, last = rows["value"]
        assert last / before == pytest.approx(LAION_5B / 10**9, rel=0.08)
        costs = [one for one in facts["cost"]["per_query"] if one.get("keeps_the_ceiling_by") == model]
        assert [one["candidates"] for one in costs] == [last]
        assert costs[0]["seconds"]["states"] < costs[0]["seconds"]["pixels"]


def test_first_stage_alone_on_a_sample_and_given_sizes_needs_no_generator():
    table, facts = measure(queries=30, synthetic=0, sizes=(50, 200))
    assert len(table["system"].unique()) == 1 and "hard synthetic" not in set(table["form"])
    assert facts["settings"]["queries"] == 30 and (table["queries"] == 30).all()
    assert of(table, "measured", "R@1")["depth"].tolist() == [50, 200]


def test_interrupted_measurement_scores_no_pair_twice(tmp_path):
    options = {"queries": 20, "fusion": RerankOnly(), "synthetic": 0}
    once = measure(NumberGenerator(), cache=Cache(tmp_path / "cache"), **options)
    again = NumberGenerator()
    table, facts = measure(again, cache=Cache(tmp_path / "cache"), **options)
    assert table.equals(once[0]) and facts == once[1]
    assert again.pairs == 0


def two_relevant():
    dataset = numbers()
    return replace(dataset, qrels=dataset.qrels | {"0a": {"0": 1, "1": 1}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 10, "depths": (20,)}, "depths must be from 1 to candidates"),
        ({"depths": ()}, "depths must be from 1"),
        ({"draws": 0}, "draws at least 1"),
        ({"sizes": (10, 301)}, "from 2 to 300 images"),
        ({"dataset": numbers(200)}, "has 200 images"),
        ({"dataset": two_relevant()}, "query '0a' has 2 relevant images"),
    ],
)
def test_unsuitable_numbers_and_data_raise(options, message):
    refused(message, measure, **options)


# --- parts ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), members=st.integers(2, 12))
def test_competition_counts_as_a_loop(seed, members):
    random = np.random.default_rng(seed)
    gallery = unit(random.integers(-2, 3, (12, 3)) + 0.25)  # ties among few directions
    asking = unit(random.standard_normal((7, 3)))
    answers = random.integers(12, size=7)
    competing = random.permutation(12)[:members]
    best = int(random.integers(1, members))
    found = compete(asking, gallery, answers, competing, best)
    assert found.pool == members - 1
    for row, answer in enumerate(answers):
        others = [n for n in competing if n != answer][: members - 1]
        scores = np.array([asking[row] @ gallery[n] for n in others])
        own = asking[row] @ gallery[answer]
        sure = np.abs(scores - own) > 1e-5
        assert (scores > own + 1e-5).sum() <= found.beaten_by[row] <= (scores >= own - 1e-5).sum()
        if sure.all():
            assert found.beaten_by[row] == (scores > own).sum()
        np.testing.assert_allclose(found.best[row], np.sort(scores)[::-1][:best], atol=1e-5)


def test_tie_counts_against_the_relevant_image():
    same = np.tile(np.array([[1, 0]], np.float32), (4, 1))
    assert compete(same[:1], same, np.array([2]), np.arange(4), 1).beaten_by.tolist() == [3]


def two_stages(seed, queries=12, images=30):
    random = np.random.default_rng(seed)
    first = random.standard_normal((queries, images))
    second = random.standard_normal((queries, images)) + first
    answers = random.integers(images, size=queries)
    order = np.argsort(-first, axis=1)
    names = tuple(map(str, range(queries))), tuple(map(str, range(images)))
    task = Task("toy", *names, {}, np.arange(queries), (CAPTION,) * queries)
    runs = [
        Run(name, task, order, np.take_along_axis(scores, order, 1))
        for name, scores in (("first", first), ("second", second))
    ]
    return first, second, answers, *runs


def test_reranking_the_whole_gallery_equals_a_loop():
    first, second, answers, run, scored = two_stages(0)
    found = recall_reranked(run, scored, answers, WeightedSum(0.7, "raw"), 29, 10, ks=[1, 3])
    for row, answer in enumerate(answers):
        candidates = np.argsort(-first[row])[:10]
        fused = sorted(candidates, key=lambda n: -(first[row, n] + 0.7 * second[row, n]))
        rank = fused.index(answer) if answer in fused else 99
        assert found[:, row].tolist() == [rank < 1, rank < 3]


def test_reranking_smaller_galleries_approaches_the_average_over_all():
    """Re-ranked as deep as the gallery, the recall is a count again, whose average is known exactly."""
    _, second, answers, run, scored = two_stages(1)
    exact = recall_in_sample((second > second[np.arange(12), answers][:, None]).sum(1), 29, 9, [1, 3])
    found = recall_reranked(run, scored, answers, RerankOnly(), 9, 10, ks=[1, 3], draws=800)
    np.testing.assert_allclose(found, exact, atol=0.08)
    np.testing.assert_allclose(found.mean(1), exact.mean(1), atol=0.02)


def test_tie_after_reranking_counts_against_the_relevant_image():
    _, _, answers, run, scored = two_stages(2)
    flat = Run("flat", run.task, run.candidates, np.zeros_like(scored.scores))
    found = recall_reranked(run, flat, answers, RerankOnly(), 29, 30, ks=[1, 29, 30])
    assert found[:2].max() == 0 and found[2].min() == 1


def test_hard_distractors_lie_between_neighbours_and_are_harder():
    random = np.random.default_rng(0)
    gallery, asking = unit(random.standard_normal((200, 16)) + 1), unit(random.standard_normal((9, 16)) + 1)
    near = np.argsort(-(asking @ gallery.T), axis=1)[:, :5]
    made = hard_distractors(gallery, near, 3000, seed=1)
    assert made.shape == (3000, 16) and made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    nearest = (asking @ made.T).max(0)  # to any query
    assert np.mean(nearest >= np.quantile((asking @ gallery.T).max(0), 0.9)) > 0.5
    again = hard_distractors(gallery, near, 3000, seed=1)
    assert np.array_equal(made, again) and not np.array_equal(made, hard_distractors(gallery, near, 3000))

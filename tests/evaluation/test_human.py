from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import Dataset, Judgments, Query, read_crowdflower, read_expert
from zsqretrieval.evaluation.human import agreement_row
from zsqretrieval.types import Image


def flickr() -> Dataset:
    """Three images by file name, one of them by its metadata; two captions each, one sentence twice."""
    named = Image(b"", "", "test-0/1", metadata={"image": "b.jpg"})
    images = [Image(b"", "", "a.jpg"), named, Image(b"", "", "c.jpg")]
    said = {"a.jpg": ["a dog", "a hound"], "test-0/1": ["a cat", "a dog"], "c.jpg": ["a cow", "cattle"]}
    queries = [
        Query(f"{id}#{n}", text, "caption", id) for id, texts in said.items() for n, text in enumerate(texts)
    ]
    queries.append(Query("a.jpg?", "what barks?", "human question", "x"))  # no caption, so not counted
    return Dataset(
        "toy", tuple(images), tuple(queries), {q.id: {q.id.rstrip("?").split("#")[0]: 1} for q in queries}
    )


def test_expert_ratings_follow_clipscore(tmp_path: Path) -> None:
    file = tmp_path / "ExpertAnnotations.txt"
    rows = ("a.jpg b.jpg#0 1 1 2", "a.jpg b.jpg#1 4 4 4", "b.jpg c.jpg#1 1 2 1", "a.jpg a.jpg#0 4 4 4")
    file.write_text("".join(row.replace(" ", "\t") + "\n" for row in rows))
    judged = read_expert(file, flickr())
    # The second and the fourth row rate one of the image's own sentences, whoever wrote it.
    assert judged.images.tolist() == [0, 1] and judged.captions == ("a cat", "cattle")
    assert judged.ratings.tolist() == [[1, 1, 2], [1, 2, 1]] and judged.variant == "c"


def test_crowdflower_ratings_follow_clipscore(tmp_path: Path) -> None:
    file = tmp_path / "CrowdFlowerAnnotations.txt"
    file.write_text("a.jpg\ta.jpg#1\t1\t3\t0\na.jpg\tc.jpg#0\t0.333333333333\t1\t2\n")
    judged = read_crowdflower(file, flickr())
    assert judged.captions == ("a hound", "a cow") and judged.variant == "b"
    assert judged.ratings == pytest.approx(np.array([[1], [1 / 3]]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg\tb.jpg#0\t1\t1", "Annotations.txt:1: has 4 columns"),
        ("z.jpg\tb.jpg#0\t1\t1\t1", "Annotations.txt:1: the image 'z.jpg' is not in toy"),
        ("a.jpg\tz.jpg#0\t1\t1\t1", "Annotations.txt:1: the image 'z.jpg' is not in toy"),
        ("a.jpg\tb.jpg#2\t1\t1\t1", "Annotations.txt:1: 'b.jpg#2' is none of the 2 captions of b.jpg"),
        ("a.jpg\tb.jpg\t1\t1\t1", "Annotations.txt:1: 'b.jpg' is none of the 2 captions"),
        ("a.jpg\tb.jpg#0\t1\tx\t1", "Annotations.txt:1: not a rating"),
        ("a.jpg\tb.jpg#0\t1\tnan\t1", "Annotations.txt:1: not a rating"),
        ("", "there are no ratings"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "Annotations.txt"
    file.write_text(line)
    with pytest.raises(InvalidInputError, match=message):
        read_expert(file, flickr())


def test_shares_must_match_their_counts(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    for row, message in [
        ("0.5\t2\t1", "0.5 is not the share of 2 yes and 1 no"),
        ("0\t0\t0", "not a rating"),
    ]:
        file.write_text(f"a.jpg\tb.jpg#0\t{row}\n")
        with pytest.raises(InvalidInputError, match=message):
            read_crowdflower(file, flickr())
    with pytest.raises(InvalidInputError, match=r"nowhere.txt is missing: human ratings.*Flickr8k_text.zip"):
        read_crowdflower(tmp_path / "nowhere.txt", flickr())


def tau_of(judged: Judgments, scores: np.ndarray, resamples: int = 1) -> float:
    return float(agreement_row(judged, "toy", scores, resamples=resamples)["value"])


def taus(scores: np.ndarray, ratings: np.ndarray) -> tuple[float, float]:
    """Kendall's tau-b and tau-c (Stuart 1953) from their definitions, pair by pair."""
    x, y = np.repeat(scores, ratings.shape[1]), ratings.ravel()
    signs = [
        (np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in itertools.combinations(range(len(x)), 2)
    ]
    balance = sum(a * b for a, b in signs)
    b = balance / np.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    m = min(len(set(x)), len(set(y)))
    return b, 2 * balance / (len(x) ** 2 * (m - 1) / m)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 4)), min_size=3, max_size=8))
def test_tau_agrees_with_its_definition(rows: list[tuple[int, int, int]]) -> None:
    scores, ratings = np.array([row[0] for row in rows], float), np.array([row[1:] for row in rows], float)
    if np.ptp(scores) == 0 or np.ptp(ratings) == 0:
        return
    images = np.arange(len(rows))
    for variant, expected in zip(("b", "c"), taus(scores, ratings), strict=True):
        judged = Judgments("toy", images, ("x",) * len(rows), ratings, variant)  # type: ignore[arg-type]
        assert tau_of(judged, scores, 30) == pytest.approx(expected)


def simulated(images: int = 60, pairs: int = 4, copies: int = 1) -> tuple[Judgments, np.ndarray]:
    random = np.random.default_rng(5)
    n = images * pairs
    quality = random.normal(size=n) + np.repeat(random.normal(size=images), pairs)
    ratings = np.clip(np.round(2.5 + quality[:, None] + random.normal(size=(n, 3))), 1, 4)
    owner = np.tile(np.repeat(np.arange(images), pairs), copies)
    judged = Judgments("toy", owner, ("x",) * (n * copies), np.tile(ratings, (copies, 1)), "c")
    return judged, np.tile(quality + random.normal(size=n), copies)


def test_intervals_draw_images() -> None:
    judged, scores = simulated()
    found = agreement_row(judged, "toy", scores, resamples=200)
    named = [found[name] for name in ("group", "form", "queries", "measure")]
    assert named == ["agreement", "toy", 240, "tau-c"]
    low, high = found["low"], found["high"]
    assert low < found["value"] < high and 0.05 < high - low < 0.3
    assert agreement_row(judged, "toy", scores, resamples=200) == found
    # Every pair twice over tells nothing new.
    twice, doubled = simulated(copies=2)
    copied = agreement_row(twice, "toy", doubled, resamples=200)
    assert (copied["low"], copied["high"]) == pytest.approx((low, high), abs=0.01)
    # Neither shift nor scale nor logarithm matters.
    assert tau_of(judged, 2.5 * scores) == tau_of(judged, np.exp(scores)) == found["value"]
    assert tau_of(judged, -scores) == pytest.approx(-found["value"])


MANY, _ = simulated()
CONSTANT = Judgments("toy", np.arange(4), ("x",) * 4, np.full((4, 3), 2.0), "c")


@pytest.mark.parametrize(("judged", "scores"), [(MANY, np.ones(240)), (CONSTANT, np.arange(4.0))])
def test_equal_scores_or_ratings_are_refused(judged: Judgments, scores: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="toy: all scores or all ratings are equal, so they rank"):
        agreement_row(judged, "toy", scores, resamples=9)


@pytest.mark.parametrize("variant", ["b", "c"])
def test_draws_without_a_correlation_are_left_out_of_the_interval(variant: Literal["b", "c"]) -> None:
    """One image of three is rated differently: a draw without it, or of nothing else, has no tau."""
    judged = Judgments("toy", np.arange(3), ("x",) * 3, np.array([[1.0], [1.0], [2.0]]), variant)
    found = agreement_row(judged, "toy", np.array([0.0, 1.0, 2.0]), resamples=100)
    assert 0 < found["low"] <= found["value"] <= found["high"] <= 1
    alone = Judgments("toy", np.array([0, 0]), ("x", "y"), np.array([[1.0], [2.0]]), variant)
    only = agreement_row(alone, "toy", np.array([0.0, 1.0]), resamples=3)
    assert (only["low"], only["high"]) == (1.0, 1.0)
    few = Judgments("toy", np.arange(2), ("x", "y"), np.array([[1.0], [2.0]]), variant)
    with pytest.raises(InvalidInputError, match="no draw of 2 images has a rank correlation"):
        agreement_row(few, "toy", np.array([0.0, 1.0]), resamples=1)  # draws one image twice

"""Measured dialogs: by hand where a formula is short, else in a world with known answers."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from refusing import refused
from zsqretrieval._util.cache import Cache
from zsqretrieval.data.images import decode
from zsqretrieval.dialog.policies import RandomQuestion
from zsqretrieval.evaluation import dialogs
from zsqretrieval.evaluation.datasets import CAPTION, Dataset, Query
from zsqretrieval.evaluation.dialogs import (
    POLICIES,
    best_rank_integral,
    calibrated,
    draw_targets,
    measure_dialogs,
)
from zsqretrieval.evaluation.results import table_of
from zsqretrieval.evaluation.scores import Bench
from zsqretrieval.evaluation.settings import Settings
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood

# --- measures ---------------------------------------------------------------------------------------------


def test_best_rank_integral_by_hand() -> None:
    # pi = 8, 4, 4, 2 (best so far of ranks from 1), T = 3
    expected = math.log(8 * 2) / 6 + (math.log(4) + math.log(4)) / 3
    assert best_rank_integral(np.array([[7, 3, 5, 1]]))[0] == pytest.approx(expected)
    # T = 1: the mean of the two logarithms
    assert best_rank_integral(np.array([[7, 1]]))[0] == pytest.approx(math.log(16) / 2)


ranks = st.lists(st.integers(0, 999), min_size=2, max_size=7)


@given(ranks)
def test_best_rank_integral_is_the_area_under_the_log_rank(some: list[int]) -> None:
    array = np.array([some])
    logs = np.log(np.minimum.accumulate(array + 1, axis=1))[0]
    rounds = len(some) - 1
    area = sum((a + b) / 2 for a, b in pairwise(logs)) / rounds
    assert best_rank_integral(array)[0] == pytest.approx(area)
    assert best_rank_integral(np.zeros_like(array))[0] == 0


def test_calibrated_finds_the_temperature_of_the_data() -> None:
    random = np.random.default_rng(0)
    cases = []
    for _ in range(3000):
        scores = random.normal(size=5)
        p = np.exp(2.0 * scores)
        cases.append((np.zeros(5), scores, int(random.choice(5, p=p / p.sum()))))
    assert calibrated((0.5, 1.0, 1.5, 2.0, 2.5, 4.0), cases) == 2.0


@given(st.lists(st.integers(2, 4), min_size=1, max_size=6), st.data())
def test_every_image_is_a_target_once_before_any_is_twice(counts: list[int], data: st.DataObject) -> None:
    captions = {3 * n: ["x"] * count for n, count in enumerate(counts)}
    drawn = draw_targets(captions, data.draw(st.integers(1, sum(counts))), 3)
    assert len(set(drawn)) == len(drawn)
    first = [image for image, _ in drawn[: len(counts)]]
    assert len(set(first)) == len(first)
    fewer = draw_targets(captions, max(len(drawn) - 1, 1), 3)
    assert fewer == drawn[: len(fewer)]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({0: ["a", "b"], 1: ["c", "d"]}, "5 dialogs need as many captions; there are 4"),
        ({0: ["a", "b", "c", "d"], 2: ["e"]}, "needs two captions"),
    ],
)
def test_too_few_captions_raise(captions: dict[int, list[str]], message: str) -> None:
    refused(message, draw_targets, captions, 5)


# --- a world of sixteen images ----------------------------------------------------------------------------

# The bits of n are the things in image n: cat, dog, boat, tree. For the first stage all images are alike.
THINGS = ("cat", "dog", "boat", "tree")
N = 16


def has(number: int, thing: str) -> bool:
    return bool(number >> THINGS.index(thing) & 1)


def world(*, telling: bool = False) -> Dataset:
    """Sixteen images with two captions each, which name the things in the image or only its number."""
    gallery, queries = [], []
    for number in range(N):
        named = " and ".join(f"a {thing}" for thing in THINGS if has(number, thing)) or "nothing"
        shown = named if telling else f"number {number}"
        gallery.append(Image(PILImage.new("RGB", (8, 8), (number, 0, 0)), "here", f"{number:04}"))
        queries += [Query(f"{number}#{n}", f"{begin} {shown}", CAPTION, "here")
                    for n, begin in enumerate(("there is", "i see"))]  # fmt: skip
    qrels = {query.id: {f"{int(query.id.split('#')[0]):04}": 1} for query in queries}
    return Dataset("world", tuple(gallery), tuple(queries), qrels)


def number_of(image: Image) -> int:
    return int(np.asarray(decode(image))[0, 0, 0])


class Indifferent:
    """An encoder with different vectors for texts, all of them equally near to every image."""

    dim = N + 3
    fingerprint = "indifferent"

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> Any:
        rows = np.zeros((len(images), self.dim), np.float32)
        for row, image in zip(rows, images, strict=True):
            row[number_of(image)] = math.sqrt(0.75)
            row[N] = 0.5
        return rows

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> Any:
        rows = np.zeros((len(texts), self.dim), np.float32)
        turned = np.array([zlib.crc32(text.encode()) % 1000 for text in texts])
        rows[:, N] = rows[:, N + 1] = math.sqrt(0.5)
        rows[:, N + 1] *= np.cos(turned)
        rows[:, N + 2] = math.sqrt(0.5) * np.sin(turned)
        return rows


class Knowing:
    """A generator that is right with probability 0.99, and asks some useless questions."""

    state_shape = (1,)
    state_dtype = np.dtype(np.float16)

    def __init__(self, fingerprint: str = "knowing") -> None:
        self.fingerprint = fingerprint
        self.scored = 0
        self.seen = 0

    def image_states(self, images: Sequence[Image], *, batch_size: int = 16) -> Any:
        self.seen += len(images)
        return np.array([[number_of(image)] for image in images], np.float16)

    def log_likelihood(
        self, contexts: Sequence[Context], continuations: Sequence[str], **_: Any
    ) -> list[LogLikelihood]:
        self.scored += len(contexts)
        return [self._score(*pair) for pair in zip(contexts, continuations, strict=True)]

    def _score(self, context: Context, text: str) -> LogLikelihood:
        state, prompt = context
        assert isinstance(state, ImageState) and isinstance(prompt, str)
        thing = prompt.removesuffix("? Answer:").rsplit(" ", 1)[1]
        p = 0.5
        if thing in THINGS:
            p = 0.99 if has(int(state.values[0]), thing) == (text == " yes") else 0.01
        return LogLikelihood((text,), np.array([math.log(p)], np.float32))

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: Any) -> list[list[str]]:
        return [self._continue(*context)[:n] for context in contexts]

    def _continue(self, state: Any, prompt: Any) -> list[str]:
        if prompt != "A question about this picture:":
            return [""]
        idle = [f"is it {one}?" for one in ("art", "old", "big", "new")]
        good = [f"is there a {thing}?" for thing in THINGS]
        return idle if int(state.values[0]) % 4 == 3 else good


def measure(
    data: Dataset | None = None,
    generator: Any = None,
    *,
    cache: Cache | None = None,
    step: Any = None,
    **options: Any,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    given = {"dialogs": N, "rounds": 4, "candidates": N, "user": "generator", "scale": 30.0, "temper": 1.0,
             "reread": 1.0, **options}  # fmt: skip
    steps = step or (lambda *_: None)
    bench = Bench(Indifferent(), generator or Knowing(), data or world(), Settings(), cache or Cache(), steps)
    rows, facts = measure_dialogs(bench, CAPTION, **given)
    json.dumps(facts, allow_nan=False)
    del facts["seconds"]
    return table_of(rows), facts


def curve(table: pd.DataFrame, policy: str, measure: str = "Hits@10") -> list[float]:
    """Values by round."""
    rows = table[(table["system"] == policy) & (table["measure"] == measure)]
    return [float(value) for value in rows.sort_values("depth")["value"]]


def test_four_good_questions_find_one_of_sixteen() -> None:
    table, facts = measure()
    assert list(facts["asked"]) == list(POLICIES) == ["information_gain", "caption_dialog", "random"]
    # A tie counts against the image: all 16 tie at first, then 8, 4, 2 and 1 are left.
    assert curve(table, "information_gain") == [0, 1, 1, 1, 1]
    expected = math.log(16 * 1) / 8 + (math.log(8) + math.log(4) + math.log(2)) / 4
    assert curve(table, "information_gain", "BRI") == pytest.approx([expected], abs=1e-4)
    asked = facts["asked"]["information_gain"]
    assert asked["questions"] == 4 and asked["dont_know"] == 0
    # Each question has an expected and a real gain of nearly a bit.
    for name in ("expected_gain", "gain"):
        assert 0.6 < asked[name] < math.log(2)
    # The encoder learns nothing from the dialog, and useless questions find nothing.
    assert curve(table, "caption_dialog") == [0] * 5
    assert curve(table, "random", "R@10")[1] < 1
    (start, after, *_), (bri,) = (
        table[(table["system"] == "random") & (table["measure"] == measure)].to_dict("records")
        for measure in ("Hits@10", "BRI")
    )
    assert bri["baseline"] == after["baseline"] == "information_gain"
    assert start["gain"] == 0 and after["gain"] < 0 and start["p"] == 1
    assert bri["gain"] > 0 and bri["gain_low"] <= bri["gain"] <= bri["gain_high"] and bri["p"] < 0.05
    best = table[(table["system"] == "information_gain") & (table["measure"] == "Hits@10")]
    assert best["low"].tolist() == best["high"].tolist() == [0, 1, 1, 1, 1]
    assert len(facts["examples"]) == 3 and len(facts["examples"][0]["turns"]) == 4
    assert facts["settings"]["user"] == "generator" and facts["calibration"] == {}


def test_captions_answer_the_questions() -> None:
    only = {"information_gain": POLICIES["information_gain"]}
    telling, facts = measure(world(telling=True), user="captions", policies=only)
    # Things in the first caption are not asked about, so an image with all four needs no question.
    assert 0 < facts["asked"]["information_gain"]["questions"] < 4
    assert facts["asked"]["information_gain"]["dont_know"] == 0
    # Captions without things answer only no, which is right for image 0 alone.
    mute, _ = measure(user="captions", policies=only)
    last = [curve(table, "information_gain", "R@10")[-1] for table in (mute, telling)]
    assert last[0] < last[1]


def test_caption_that_began_the_dialog_is_unknown_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    user = Mock(wraps=dialogs.CaptionUser)
    monkeypatch.setattr(dialogs, "CaptionUser", user)
    measure(rounds=1, user="captions", policies={"random": RandomQuestion()})
    assert [len(called.args[0]) for called in user.call_args_list] == [1] * N


def test_interrupted_measurement_continues_from_the_cache(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def interrupt(step: str, done: float, total: int) -> None:
        if step == "dialogs by random" and done == 2:
            raise StoppedError

    few = {"dialogs": 4, "rounds": 2, "policies": {"random": RandomQuestion()}}

    def cached(generator: Any, **options: Any) -> Any:
        with Cache(tmp_path / "cache") as cache:
            return measure(generator=generator, cache=cache, **few, **options)

    with pytest.raises(StoppedError):
        cached(Knowing(), step=interrupt)
    resumed, whole, again, other = Knowing(), Knowing(), Knowing(), Knowing("another")
    found, fresh = cached(resumed), measure(generator=whole, **few)
    assert found[0].equals(fresh[0]) and found[1] == fresh[1]
    assert 0 < resumed.scored < whole.scored
    cached(again)
    assert again.scored == again.seen == 0
    cached(other)
    assert other.scored == whole.scored, "the cache keeps generators apart"


def test_every_image_is_seen_once() -> None:
    generator = Knowing()
    measure(generator=generator)
    assert generator.seen == N


def test_images_beyond_the_candidates_stay_below_them() -> None:
    table, facts = measure(candidates=2, rounds=2)
    assert max(curve(table, "information_gain")) <= 2 / N
    assert facts["settings"]["candidates"] == 2


def test_calibration_finds_scale_and_temper() -> None:
    _, facts = measure(calibrate=True)
    # The generator is always right, so the largest temper is the best.
    assert facts["calibration"]["temper"] == 2.0
    assert facts["calibration"]["scale"] == 1.0  # all scales fit equal cosines, and the first wins


@pytest.mark.parametrize("option", [{"dialogs": 0}, {"rounds": 0}, {"candidates": 0}, {"user": "nobody"}])
def test_options_out_of_range_raise(option: dict[str, Any]) -> None:
    refused(next(iter(option)), measure, **option)

"""Dialogs measured: by hand where a formula is short, else in a world in which all is known."""

from __future__ import annotations

import io
import json
import math
import tarfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from zsqretrieval.data.images import decode
from zsqretrieval.dialog.policies import RandomQuestion
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.dialog_bench import (
    POLICIES,
    bench_dialog,
    best_rank_integral,
    best_so_far,
    calibrated,
    draw_dialogs,
)
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood

# --- measures ---------------------------------------------------------------------------------------------


def test_best_so_far_never_gets_worse() -> None:
    assert best_so_far(np.array([[4, 7, 2, 3]])).tolist() == [[4, 4, 2, 2]]


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


def test_calibrated_finds_the_temperature_that_made_the_data() -> None:
    random = np.random.default_rng(0)
    cases = []
    for _ in range(3000):
        scores = random.normal(size=5)
        p = np.exp(2.0 * scores)
        cases.append((np.zeros(5), scores, int(random.choice(5, p=p / p.sum()))))
    assert calibrated((0.5, 1.0, 1.5, 2.0, 2.5, 4.0), cases) == 2.0


@given(st.lists(st.integers(2, 4), min_size=1, max_size=6), st.data())
def test_every_image_is_meant_once_before_any_is_meant_twice(counts: list[int], data: st.DataObject) -> None:
    captions = [["x"] * count for count in counts]
    drawn = draw_dialogs(captions, data.draw(st.integers(1, sum(counts))), 3)
    pairs = [(one.image, one.caption) for one in drawn]
    assert len(set(pairs)) == len(pairs)
    assert sorted(image for image, _ in pairs[: len(counts)]) == list(range(len(counts)))[: len(pairs)] or (
        len(pairs) < len(counts) and len({image for image, _ in pairs}) == len(pairs)
    )
    fewer = draw_dialogs(captions, max(len(drawn) - 1, 1), 3)
    assert fewer == drawn[: len(fewer)]


def test_dialogs_that_cannot_be_drawn() -> None:
    with pytest.raises(InvalidInputError, match="5 dialogs need as many captions; there are 4"):
        draw_dialogs([["a", "b"], ["c", "d"]], 5)
    with pytest.raises(InvalidInputError, match="needs two captions"):
        draw_dialogs([["a", "b"], ["c"]], 2)


# --- a world of sixteen images ----------------------------------------------------------------------------

# Image n has the bits of n: is there a cat, dog, boat, tree? The first stage cannot tell any two apart.
THINGS = ("cat", "dog", "boat", "tree")
N = 16


def has(number: int, thing: str) -> bool:
    return bool(number >> THINGS.index(thing) & 1)


def write_split(folder: Path, split: str, *, telling: bool) -> Path:
    """Sixteen images, and captions that tell what they show, or do not."""
    with tarfile.open(folder / f"{split}-000.tar", "w") as tar:
        for number in range(N):
            png = io.BytesIO()
            PILImage.new("RGB", (8, 8), (number, 0, 0)).save(png, "PNG")
            named = " and ".join(f"a {thing}" for thing in THINGS if has(number, thing)) or "nothing"
            shown = named if telling else f"number {number}"
            facts = {"captions": [f"there is {shown}", f"i see {shown}"]}
            for suffix, content in (("png", png.getvalue()), ("json", json.dumps(facts).encode())):
                member = tarfile.TarInfo(f"{number:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder


def number_of(image: Image) -> int:
    return int(np.asarray(decode(image))[0, 0, 0])


class Indifferent:
    """An encoder that tells texts apart, and to which every text is equally near to every image."""

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
    """A generator that answers right 99 times of 100, and asks silly questions as well."""

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
        self, contexts: Sequence[Context], continuations: Sequence[str], *, batch_size: int = 16
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
        return LogLikelihood(("x",), np.array([math.log(p)], np.float32))

    def generate(self, contexts: Sequence[Context], *, n: int = 1, **settings: Any) -> list[list[str]]:
        return [self._continue(*context)[:n] for context in contexts]

    def _continue(self, state: Any, prompt: Any) -> list[str]:
        if prompt != "A question about this picture:":
            return [""]
        idle = [f"is it {one}?" for one in ("art", "old", "big", "new")]
        good = [f"is there a {thing}?" for thing in THINGS]
        return idle if int(state.values[0]) % 4 == 3 else good


def bench(data: Path, generator: Any = None, **settings: Any) -> dict[str, Any]:
    given = {"dialogs": N, "rounds": 4, "candidates": N, "user": "generator", "temper": 1.0, **settings}
    found = bench_dialog(Indifferent(), generator or Knowing(), data, **given).to_json()
    json.dumps(found, allow_nan=False)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "telling", telling=True)
    write_split(folder, "test", telling=False)
    return write_split(folder, "dev", telling=False)


def test_four_good_questions_find_one_of_sixteen(data: Path) -> None:
    found = bench(data)
    # A tie counts against the image: all 16 tie at first, then 8, 4, 2 and 1 are left.
    assert found["policies"]["information_gain"] == [0.0, 100.0, 100.0, 100.0, 100.0]
    expected = math.log(16 * 1) / 8 + (math.log(8) + math.log(4) + math.log(2)) / 4
    assert found["bri"]["information_gain"] == pytest.approx(expected, abs=1e-4)
    assert found["asked"]["information_gain"]["questions"] == 4
    assert found["asked"]["information_gain"]["dont_know"] == 0
    # Each question was expected to take, and took, nearly a bit.
    for name in ("expected_gain", "gain"):
        assert 0.6 < found["asked"]["information_gain"][name] < math.log(2)
    # The encoder makes nothing of the dialog, and silly questions find nothing.
    assert found["policies"]["caption_dialog"] == [0.0] * 5
    assert found["recall@10"]["random"][1] < 100
    gain = found["differences"]["information_gain - random"]
    assert gain["hits@10"][0] == 0 and gain["hits@10"][1] > 0
    assert gain["bri"] < 0 and gain["bri_ci"][0] <= gain["bri"] <= gain["bri_ci"][1]
    assert found["policies_ci"]["information_gain"] == [[0.0, 0.0], *[[100.0, 100.0]] * 4]
    assert len(found["examples"]) == 3
    assert len(found["examples"][0]["turns"]) == 4
    assert found["setting"]["user"] == "generator" and "calibration" not in found


def test_captions_may_answer(data: Path) -> None:
    only = {"information_gain": POLICIES["information_gain"]}
    found = bench(data, user="captions", split="telling", policies=only)
    # What the first caption names is not asked, so an image with all four things is asked about none.
    assert 0 < found["asked"]["information_gain"]["questions"] < 4
    assert found["asked"]["information_gain"]["dont_know"] == 0
    # Of captions that tell nothing, nothing but no is heard, and image 0 alone has none of the things.
    mute = bench(data, user="captions", policies=only)
    assert mute["recall@10"]["information_gain"][-1] < found["recall@10"]["information_gain"][-1]


def test_the_caption_that_began_is_not_known_to_the_user(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zsqretrieval.evaluation import dialog_bench

    told = []

    class Listening(dialog_bench.CaptionUser):  # type: ignore[misc]
        def __init__(self, captions: Sequence[str]) -> None:
            super().__init__(captions)
            told.append(len(captions))

    monkeypatch.setattr(dialog_bench, "CaptionUser", Listening)
    bench(data, rounds=1, user="captions", policies={"random": RandomQuestion()})
    assert told == [1] * N


def test_an_interrupted_run_goes_on_and_says_the_same(data: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "dialogs by random" and done == 2:
            raise StoppedError

    few = {"dialogs": 4, "rounds": 2, "policies": {"random": RandomQuestion()}}
    with pytest.raises(StoppedError):
        bench(data, work=tmp_path / "work", progress=interrupt, **few)
    resumed, whole, again = Knowing(), Knowing(), Knowing()
    found = bench(data, resumed, work=tmp_path / "work", **few)
    fresh = bench(data, whole, **few)
    for one in (found, fresh):
        del one["seconds"]
    assert found == fresh
    assert 0 < resumed.scored < whole.scored
    bench(data, again, work=tmp_path / "work", **few)
    assert again.scored == again.seen == 0
    bench(data, other := Knowing("another"), work=tmp_path / "work", **few)
    assert other.scored == whole.scored  # what one generator said, another did not


def test_an_image_is_seen_once(data: Path) -> None:
    generator = Knowing()
    bench(data, generator)
    assert generator.seen == N


def test_images_that_are_no_candidates_stay_behind(data: Path) -> None:
    found = bench(data, candidates=2, rounds=2)
    assert max(found["policies"]["information_gain"]) <= 100 * 2 / N
    assert found["setting"]["candidates"] == 2


def test_calibration_is_for_other_splits_than_test(data: Path) -> None:
    found = bench(data, split="dev")
    # The generator is right whenever it is asked, so the more its word counts, the better.
    assert found["calibration"]["temper"] == 2.0
    assert found["calibration"]["scale"] == 1.0  # cosines that are all alike fit with any scale


@pytest.mark.parametrize(
    "setting", [{"dialogs": 0}, {"rounds": 0}, {"candidates": 0}, {"user": "nobody"}, {"split": "train"}]
)
def test_settings_out_of_range(data: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        bench(data, **setting)


def test_the_policies_of_the_bench() -> None:
    assert list(POLICIES) == ["information_gain", "caption_dialog", "random"]

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from zsqretrieval.data.images import decode
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.encoder_bench import bench_encoder, read_captioned, recalls
from zsqretrieval.testing.toys import ToyEncoder
from zsqretrieval.types import Image


def write_shard(path: Path, samples: list[tuple[tuple[int, int, int], Any]], *, as_json: bool = True) -> None:
    with tarfile.open(path, "w") as tar:
        for number, (colour, captions) in enumerate(samples):
            picture = io.BytesIO()
            PILImage.new("RGB", (8, 8), colour).save(picture, "PNG")
            text = json.dumps({"captions": captions}) if as_json else captions[0]
            for name, content in (
                (f"{number:04}.png", picture.getvalue()),
                (f"{number:04}.{'json' if as_json else 'txt'}", text.encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_recalls_by_hand() -> None:
    # Two images with two captions each. Captions 0 and 1 belong to image 0, 2 and 3 to image 1.
    similarity = np.array([[0.9, 0.1, 0.8, 0.0], [0.2, 0.7, 0.3, 0.6]], dtype=np.float32)
    # t2i: caption 0 finds image 0, caption 1 image 1 (wrong), caption 2 image 0 (wrong), caption 3 image 1.
    # i2t: image 0 finds its caption 0 first; image 1 finds caption 1, which is not its own, then caption 3.
    measured = recalls(similarity, 2)
    assert measured["t2i"]["R@1"] == 50.0
    assert measured["i2t"]["R@1"] == 50.0
    assert measured["t2i"]["R@5"] == measured["i2t"]["R@5"] == 100.0


def test_a_tie_counts_against_the_encoder() -> None:
    same = np.ones((20, 20), dtype=np.float32)  # an encoder that maps everything to one vector
    measured = recalls(same, 1)
    assert measured["t2i"] == measured["i2t"] == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}


def test_own_captions_that_tie_do_not_hurt_one_another() -> None:
    similarity = np.array([[0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9]], dtype=np.float32)
    assert recalls(similarity, 2)["i2t"]["R@1"] == 100.0


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_recalls_agree_with_sorting(images: int, captions: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    similarity = random.permutation(images * images * captions).reshape(images, -1).astype(np.float32)
    owner = np.arange(images * captions) // captions
    t2i = np.mean([owner[c] == np.argsort(-similarity[:, c])[0] for c in range(images * captions)])
    i2t = np.mean([owner[np.argsort(-similarity[i])[0]] == i for i in range(images)])
    measured = recalls(similarity, captions)
    assert measured["t2i"]["R@1"] == pytest.approx(100 * t2i, abs=0.006)
    assert measured["i2t"]["R@1"] == pytest.approx(100 * i2t, abs=0.006)


def test_bench_reads_shards_and_names_the_result_after_folder_and_split(tmp_path: Path) -> None:
    data = tmp_path / "colours"
    data.mkdir()
    samples = [((i * 20, 255 - i * 20, 40), [f"picture {i}", f"number {i}"]) for i in range(12)]
    write_shard(data / "test-00000.tar", samples[:6])
    write_shard(data / "test-00001.tar", samples[6:])
    seen: list[tuple[str, int, int]] = []
    (result,) = bench_encoder(ToyEncoder(), data, progress=lambda *one: seen.append(one))
    assert result.name == "colours_test"
    assert (result.images, result.captions) == (12, 24)
    assert seen[-1] == ("encoding images of test", 12, 12)
    report = result.to_json()["colours_test"]
    for way in ("t2i", "i2t"):
        for k in (1, 5, 10):
            low, high = report[way][f"R@{k}_ci"]
            assert 0 <= low <= report[way][f"R@{k}"] <= high <= 100
    json.dumps(report)


class HalfBlind:
    """Tells the first six colours and numbers apart; all others are one to it."""

    dim, fingerprint = 7, "half-blind"

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> np.ndarray:
        return self._rows([decode(image).getpixel((0, 0))[0] for image in images])  # type: ignore[index]

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        return self._rows([int(text.split()[-1]) for text in texts])

    def _rows(self, numbers: list[int]) -> np.ndarray:
        return np.eye(7, dtype=np.float32)[np.minimum(numbers, 6)]


def test_intervals_draw_images_with_all_of_their_captions(tmp_path: Path) -> None:
    """Half of the images are found by all their captions, half by none: twelve observations, not 24."""
    samples = [((i, 0, 0), [f"picture {i}", f"number {i}"]) for i in range(12)]
    write_shard(tmp_path / "test-00000.tar", samples)
    (result,) = bench_encoder(HalfBlind(), tmp_path)
    found = np.repeat([100.0, 0.0], 6)
    drawn = found[np.random.default_rng(0).integers(12, size=(2000, 12))].mean(1)
    assert result.t2i["R@1"] == result.i2t["R@1"] == 50
    interval = np.percentile(drawn, (2.5, 97.5)).round(2).tolist()
    assert result.t2i["R@1_ci"] == result.i2t["R@1_ci"] == interval


def test_a_single_caption_beside_the_image_is_enough(tmp_path: Path) -> None:
    write_shard(tmp_path / "dev-00000.tar", [((1, 2, 3), ["a dark square"])], as_json=False)
    (sample,) = read_captioned(tmp_path, "dev")
    assert sample.captions == ("a dark square",)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no shards test-\*\.tar"):
        bench_encoder(ToyEncoder(), tmp_path)


def test_uneven_captions_name_the_image(tmp_path: Path) -> None:
    write_shard(tmp_path / "test-00000.tar", [((1, 2, 3), ["a", "b"]), ((4, 5, 6), ["c"])])
    with pytest.raises(InvalidInputError, match="0001"):
        bench_encoder(ToyEncoder(), tmp_path)


@pytest.mark.parametrize("captions", ["a dog", 7, 0, "", {"en": "a dog"}, ["a dog", 0], [None]])
def test_captions_that_are_no_list_of_texts_are_named(tmp_path: Path, captions: Any) -> None:
    write_shard(tmp_path / "test-00000.tar", [((1, 2, 3), ["a"]), ((4, 5, 6), captions)])
    with pytest.raises(InvalidInputError, match=r"0001.*must be a list of texts, not "):
        bench_encoder(ToyEncoder(), tmp_path)


@pytest.mark.filterwarnings("default")
def test_a_split_without_images_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "test-00000.tar", [])
    with pytest.raises(InvalidInputError, match=r"the shards test-\*\.tar hold no images"):
        bench_encoder(ToyEncoder(), tmp_path)


def test_an_image_without_a_caption_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "test-00000.tar", [((1, 2, 3), [])])
    with pytest.raises(InvalidInputError, match="0000"):
        bench_encoder(ToyEncoder(), tmp_path)

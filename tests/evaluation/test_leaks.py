"""Tuning on what is measured, under whatever name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_sets import write_colours

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import read_shards
from zsqretrieval.evaluation.leaks import refuse_shared_images, refuse_test_split


def test_a_copy_is_refused_though_it_has_another_name(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "colours", splits=("test",))
    shutil.copy(folder / "test-000.tar", folder / "dev-000.tar")
    test, dev = read_shards(folder), read_shards(folder, "dev")
    assert not {image.source for image in test.gallery} & {image.source for image in dev.gallery}
    with pytest.raises(
        InvalidInputError, match=r"colours dev and colours test share 6 images, .*dev-000.tar"
    ):
        refuse_shared_images(test, dev)
    other = read_shards(write_colours(tmp_path / "other"))
    images = (*other.gallery, replace(test.gallery[3], id="renamed", source="elsewhere"))
    with pytest.raises(InvalidInputError, match="share 1 images, such as elsewhere"):
        refuse_shared_images(test, replace(other, gallery=images))


def test_other_images_of_equal_names_are_not(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "colours")
    test = read_shards(folder)
    dev = read_shards(folder, "dev")
    named = [replace(image, source=own.source) for image, own in zip(dev.gallery, test.gallery, strict=True)]
    refuse_shared_images(test, replace(dev, gallery=tuple(named)))


def test_a_test_split_is_refused_by_its_name() -> None:
    for split in ("test", "test2017"):
        with pytest.raises(InvalidInputError, match=r"have seen the answers.*tune on dev"):
            refuse_test_split(split)
    for split in ("dev", "val", "train", "contest"):
        refuse_test_split(split)

"""Which reader an argument means, and what is said when it means none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image as PILImage

from refusing import refused
from small_sets import write_colours, write_folder
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import KINDS, open_dataset, open_distractors, open_judgments


def test_the_kind_of_a_folder_is_recognised(tmp_path: Path) -> None:
    shards, folder = write_colours(tmp_path / "shards"), write_folder(tmp_path / "own, mine")
    assert open_dataset(str(shards)).name == "shards test"
    assert open_dataset(f"shards:{shards}", "dev").name == open_dataset(f"flickr8k:{shards}", "dev").name
    assert open_dataset(str(folder)).name == "own, mine"
    assert open_dataset(f"folder:{folder}").forms == ("caption", "human question")


def test_flickr8k_as_published(tmp_path: Path) -> None:
    for part in ("Flicker8k_Dataset", "Flickr8k_text"):
        (tmp_path / part).mkdir()
    texts = tmp_path / "Flickr8k_text"
    for name in ("a", "b"):
        PILImage.new("RGB", (4, 4), "red").save(tmp_path / "Flicker8k_Dataset" / f"{name}.jpg")
    (texts / "Flickr8k.token.txt").write_text("a.jpg#0\tA dog .\nb.jpg#0\tA cat .\n")
    (texts / "Flickr_8k.testImages.txt").write_text("b.jpg\n")
    (texts / "Flickr_8k.devImages.txt").write_text("a.jpg\n")
    for argument in (str(tmp_path), f"flickr8k:{tmp_path}"):
        assert [query.text for query in open_dataset(argument).queries] == ["A cat ."]
    images, listed = tmp_path / "Flicker8k_Dataset", texts / "Flickr_8k.{split}Images.txt"
    named = f"flickr:{texts / 'Flickr8k.token.txt'},{images},{listed}"
    assert [query.text for query in open_dataset(named, "dev").queries] == ["A dog ."]
    assert len(open_dataset(named.rpartition(",")[0]).queries) == 2
    one_list = named.replace("{split}", "test")
    assert [query.text for query in open_dataset(one_list).queries] == ["A cat ."]
    for mute in (one_list, named.rpartition(",")[0], f"flickr:{tmp_path}/{{split}}.txt,{images}"):
        refused(r"split 'dev'; write .* with \{split\} in the name of", open_dataset, mute, "dev")
    refused(r"trainImages.*missing", open_dataset, str(tmp_path), "train")


def test_human_ratings_next_to_the_test_split_are_read(tmp_path: Path) -> None:
    shards = write_colours(tmp_path / "shards")
    data = open_dataset(str(shards))
    assert open_judgments(str(shards), None, data) == ()
    first, second = (str(image.id) for image in data.gallery[:2])
    (shards / "ExpertAnnotations.txt").write_text(f"{first}\t{second}#0\t1\t2\t1\n")
    (judged,) = open_judgments(f"flickr8k:{shards}", "test", data)
    assert judged.name == "Flickr8k-Expert" and judged.ratings.tolist() == [[1, 2, 1]]
    dev = open_dataset(str(shards), "dev")
    assert open_judgments(str(shards), "dev", dev) == ()
    (shards / "CrowdFlowerAnnotations.txt").write_text(f"{first}\t{second}#9\t1\t3\t0\n")
    refused(r"CrowdFlowerAnnotations.txt:1: .* is none of the 2", open_judgments, str(shards), None, data)
    own = write_folder(tmp_path / "own")
    assert open_judgments(str(own), None, open_dataset(str(own))) == ()


def test_distractors_are_the_images_of_other_splits(tmp_path: Path) -> None:
    shards = write_colours(tmp_path / "shards", splits=("dev", "test", "train"))
    others = {str(image.id) for image in open_distractors(str(shards), None)}
    own = {str(image.id) for image in open_dataset(str(shards)).gallery}
    assert len(others) == 2 * len(own) and not others & own
    assert {id.split("/")[0] for id in others} == {"dev-000", "train-000"}
    assert open_distractors(str(write_folder(tmp_path / "own")), None) == ()


def test_two_paths_are_separated_by_a_comma(tmp_path: Path) -> None:
    PILImage.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    record = {"filename": "a.png", "split": "val", "sentences": [{"raw": "a dog"}]}
    (tmp_path / "all.json").write_text(json.dumps({"images": [record]}))
    argument = f"karpathy:{tmp_path / 'all.json'},{tmp_path}"
    assert open_dataset(argument, "val").queries[0].text == "a dog"
    refused(r"no images of the split 'test'; it has val \(1\)", open_dataset, argument)
    refused(
        r"has 1 paths; karpathy needs karpathy:FILE\.json,IMAGES",
        open_dataset,
        f"karpathy:{tmp_path / 'all.json'}",
    )
    refused("has 3 paths", open_dataset, f"{argument},{tmp_path}")


def test_unknown_data_sets_are_refused_with_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="neither a folder nor kind:path") as raised:
        open_dataset("flickr9k:somewhere")
    assert all(f"{name}:{kind.paths}" in str(raised.value) for name, kind in KINDS.items())
    refused("not a known kind of data set; the kinds are shards:FOLDER", open_dataset, str(tmp_path))
    refused("has 0 paths; shards needs shards:FOLDER", open_dataset, "shards:")
    refused("has no splits, so no 'dev'", open_dataset, f"folder:{write_folder(tmp_path / 'own')}", "dev")
    refused(r"holds no shards train-\*\.tar", open_dataset, str(write_colours(tmp_path / "shards")), "train")

"""Every format is written here as its makers write it, read, and then broken."""

from __future__ import annotations

import csv
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

from plain import png
from refusing import refused
from zsqretrieval.data.images import decode
from zsqretrieval.errors import IntegrityError
from zsqretrieval.evaluation.datasets import (
    Dataset,
    Query,
    open_distractors,
    read_chatir,
    read_coco,
    read_flickr,
    read_folder,
    read_inquire,
    read_karpathy,
    read_laion,
    read_retvqa,
    read_shards,
)
from zsqretrieval.types import Image


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    return folder


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def texts(data: Dataset) -> dict[str, tuple[str, str, list[str]]]:
    return {query.id: (query.text, query.form, [*data.qrels[query.id]]) for query in data.queries}


def ids(data: Dataset) -> list[str | None]:
    return [image.id for image in data.gallery]


# --- the record -------------------------------------------------------------------------------------------


def made(
    images: Sequence[str] = ("a", "b"),
    queries: Sequence[tuple[str, str]] = (("q", "a dog"),),
    qrels: dict[str, dict[str, int]] | None = None,
) -> Dataset:
    return Dataset(
        "toy",
        tuple(Image(b"", f"file {n}", id) for n, id in enumerate(images)),
        tuple(Query(id, text, "caption", f"toy.txt:{n}") for n, (id, text) in enumerate(queries, 1)),
        {"q": {"a": 1}} if qrels is None else qrels,
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": ()}, "toy: the gallery is empty"),
        ({"queries": (), "qrels": {}}, "toy: there are no queries"),
        ({"images": ("a", "")}, "file 1: the image has no id"),
        ({"images": ("a", "b", "a")}, "file 2: the image 'a' is repeated, first at file 0"),
        ({"queries": (("q", "x"), ("q", "y"))}, r"toy.txt:2: the query 'q' is repeated, .* toy.txt:1"),
        ({"queries": (("q", " "),)}, "toy.txt:1: the text of query 'q' is blank"),
        (
            {"qrels": {"q": {"a": 1, "z": 1}}},
            r"toy.txt:1: the image 'z' of query 'q' is not .*\(2 images\)",
        ),
        ({"qrels": {"q": {"a": 0}}}, "toy.txt:1: query 'q' has no relevant image"),
        ({"qrels": {}}, "toy.txt:1: query 'q' has no relevant image"),
        ({"qrels": {"q": {"a": 1}, "p": {"a": 1}}}, "the qrels name the unknown query 'p'"),
        ({"queries": (("", "x"),), "qrels": {"": {"a": 1}}}, "toy.txt:1: the query has no id"),
        ({"qrels": {"q": {"a": 1}, "": {"a": 1}}}, "the qrels name the unknown query ''"),
        ({"qrels": {"q": {"a": 1, "": 1}}}, "toy.txt:1: the image '' of query 'q' is not"),
    ],
)
def test_invalid_data_sets_are_refused_with_their_line(wrong: dict[str, Any], message: str) -> None:
    refused(message, made, **wrong)


def two_captions_and_a_question() -> Dataset:
    queries = [Query("a#0", "x", "caption", ""), Query("b#0", "y", "caption", "")]
    queries += [Query("a#1", "z", "caption", ""), Query("a#2", "z?", "human question", "")]
    qrels = {query.id: {query.id[0]: 1} for query in queries}
    return Dataset("toy", tuple(Image(b"", id, id) for id in "abc"), tuple(queries), qrels)


def test_tasks_of_both_directions() -> None:
    data = two_captions_and_a_question()
    there = data.text_to_image()
    assert (there.queries, there.items) == (("a#0", "b#0", "a#1", "a#2"), ("a", "b", "c"))
    assert there.clusters.tolist() == [0, 1, 0, 0] and there.clusters.dtype == np.int64
    assert there.forms == ("caption", "caption", "caption", "human question")
    back = data.of_form("caption").image_to_text()
    assert (back.queries, back.items) == (("a", "b"), ("a#0", "b#0", "a#1"))  # nobody speaks of c
    assert back.qrels == {"a": {"a#0": 1, "a#1": 1}, "b": {"b#0": 1}}
    assert back.clusters.tolist() == [0, 1] and back.forms == ("caption", "caption")


def test_image_to_text_needs_texts_of_one_form() -> None:
    refused("caption, human question", two_captions_and_a_question().image_to_text)
    refused("no queries of the form 'poem'", two_captions_and_a_question().of_form, "poem")


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 99))
def test_samples_take_one_query_of_every_image_before_a_second(images: int, count: int, seed: int) -> None:
    queries = [Query(f"{i}#{n}", "x", f"form {n % 2}", "") for i in range(images) for n in range(4)]
    qrels = {query.id: {query.id.split("#")[0]: 1} for query in queries}
    data = Dataset("toy", tuple(Image(b"", str(i), str(i)) for i in range(images)), tuple(queries), qrels)
    some = data.sample(count, seed=seed)
    assert some.queries == data.sample(count, seed=seed).queries
    assert [q for q in data.queries if q in set(some.queries)] == list(some.queries)  # order is kept
    asked_of: set[tuple[str, ...]] = set()
    for form in data.forms:
        asking = [query.id.split("#")[0] for query in some.queries if query.form == form]
        assert len(asking) == min(count, 2 * images)
        times = [asking.count(str(i)) for i in range(images)]
        assert max(times) - min(times) <= 1
        asked_of.add(tuple(sorted(asking)))
    assert len(asked_of) == 1  # the same images in every form


# --- captions ---------------------------------------------------------------------------------------------


def karpathy(tmp_path: Path) -> tuple[Path, Path]:
    def entry(name: str, split: str, *said: str) -> dict[str, Any]:
        sentences = [{"raw": text, "tokens": text.split(), "sentid": n} for n, text in enumerate(said)]
        return {"filename": name, "filepath": "val2014", "split": split, "imgid": 7, "sentences": sentences}

    images = [entry("1.jpg", "test", "a cat", "a tabby", "fur"), entry("2.jpg", "val", "a dog")]
    images.append(entry("3.jpg", "test", "a cow", "cattle"))
    pictures(tmp_path / "images/val2014", "1.jpg", "2.jpg", "3.jpg")
    path = write_json(tmp_path / "dataset_coco.json", {"dataset": "coco", "images": images})
    return path, tmp_path / "images"


def test_karpathy(tmp_path: Path) -> None:
    data = read_karpathy(*karpathy(tmp_path), captions_per_image=2)
    assert data.name == "coco test" and ids(data) == ["1.jpg", "3.jpg"]
    assert texts(data) == {
        "1.jpg#0": ("a cat", "caption", ["1.jpg"]),
        "1.jpg#1": ("a tabby", "caption", ["1.jpg"]),
        "3.jpg#0": ("a cow", "caption", ["3.jpg"]),
        "3.jpg#1": ("cattle", "caption", ["3.jpg"]),
    }
    assert decode(data.gallery[0]).size == (5, 4)
    assert len(read_karpathy(*karpathy(tmp_path)).queries) == 5


def test_karpathy_errors_name_the_record(tmp_path: Path) -> None:
    path, images = karpathy(tmp_path)
    refused(r"no images of the split 'dev'; it has test \(2\), val \(1\)", read_karpathy, path, images, "dev")
    refused(
        r"nowhere.json is missing.*caption_datasets.zip", read_karpathy, tmp_path / "nowhere.json", images
    )
    (images / "val2014/3.jpg").unlink()
    refused(r"dataset_coco.json, image 2: the image .*3.jpg is missing", read_karpathy, path, images)
    document = json.loads(path.read_text())
    del document["images"][0]["sentences"][1]["raw"]
    refused(r"image 0, sentence 1: has no 'raw'", read_karpathy, write_json(path, document), images)
    path.write_text("{")
    refused(r"dataset_coco.json: broken JSON", read_karpathy, path, images)


def test_flickr8k(tmp_path: Path) -> None:
    captions = tmp_path / "Flickr8k.token.txt"
    captions.write_text("x.jpg#0\tA dog .\nx.jpg#1\tA hound .\ny.jpg#0\tA cat .\n\n")
    split = tmp_path / "Flickr_8k.testImages.txt"
    split.write_text("y.jpg\nx.jpg\n")
    images = pictures(tmp_path / "images", "x.jpg", "y.jpg")
    data = read_flickr(captions, images, split)
    assert data.name == "Flickr_8k" and ids(data) == ["y.jpg", "x.jpg"]
    assert texts(data)["x.jpg#1"] == ("A hound .", "caption", ["x.jpg"])
    assert [query.source for query in data.queries] == [f"Flickr8k.token.txt:{n}" for n in (3, 1, 2)]
    assert ids(read_flickr(captions, images)) == ["x.jpg", "y.jpg"]
    split.write_text("y.jpg\nz.jpg\n")
    refused(
        r"Flickr_8k.testImages.txt:2: the image 'z.jpg' has no captions", read_flickr, captions, images, split
    )
    captions.write_text("x.jpg#0\tA dog .\nx.jpg A hound .\n")
    refused(r"Flickr8k.token.txt:2: not a caption", read_flickr, captions, images)


def test_flickr30k_as_a_table_with_its_known_broken_row(tmp_path: Path) -> None:
    captions = tmp_path / "results.csv"
    head = "image_name| comment_number| comment\n"
    captions.write_text(f"{head}7.jpg| 0| A man | a plan .\n2199200615.jpg| 4   A dog runs .\n")
    split = tmp_path / "test.txt"
    split.write_text("2199200615\n7\n")
    images = pictures(tmp_path / "images", "7.jpg", "2199200615.jpg")
    data = read_flickr(captions, images, split)
    assert texts(data) == {
        "2199200615.jpg#0": ("A dog runs .", "caption", ["2199200615.jpg"]),
        "7.jpg#0": ("A man | a plan .", "caption", ["7.jpg"]),
    }
    captions.write_text(f"{head}7.jpg| zero| A man\n")
    refused(r"results.csv:2: not a row", read_flickr, captions, images)
    captions.write_text("image| comment\n")
    refused(r"results.csv:1: the columns are", read_flickr, captions, images)


def test_coco(tmp_path: Path) -> None:
    images = pictures(tmp_path / "val2017", "000000000139.jpg", "000000000285.jpg")
    document = {
        "images": [{"id": n, "file_name": f"000000000{n}.jpg"} for n in (285, 139)],
        "annotations": [
            {"id": 9, "image_id": 139, "caption": "A room.\n"},
            {"id": 3, "image_id": 139, "caption": "Chairs."},
            {"id": 5, "image_id": 285, "caption": "A bear."},
        ],
    }
    path = write_json(tmp_path / "captions_val2017.json", document)
    data = read_coco(path, images)
    assert [(query.id, query.text) for query in data.queries] == [
        ("000000000139.jpg#0", "Chairs."),
        ("000000000285.jpg#0", "A bear."),
        ("000000000139.jpg#1", "A room."),
    ]
    document["annotations"][2]["image_id"] = 1
    refused("annotation 2: belongs to the image 1, which", read_coco, write_json(path, document), images)


def test_folder_of_own_images(tmp_path: Path) -> None:
    pictures(tmp_path, "cats/tom.png", "jerry.png", "nobody.png")
    lines = [
        {"image": "cats/tom.png", "captions": ["a cat", "a tom"], "questions": ["who sleeps?"]},
        {"image": "jerry.png", "caption": "a mouse"},
    ]
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    data = read_folder(tmp_path)
    assert ids(data) == ["cats/tom.png", "jerry.png", "nobody.png"]
    assert texts(data) == {
        "cats/tom.png#0": ("a cat", "caption", ["cats/tom.png"]),
        "cats/tom.png#1": ("a tom", "caption", ["cats/tom.png"]),
        "cats/tom.png#2": ("who sleeps?", "human question", ["cats/tom.png"]),
        "jerry.png#0": ("a mouse", "caption", ["jerry.png"]),
    }
    (tmp_path / "jerry.json").write_text('{"punsafe": 0.9}')
    data = read_folder(tmp_path)
    assert ids(data) == ["cats/tom.png", "nobody.png"] and "jerry.png#0" not in texts(data)
    assert data.notes == ("1 images left out: 1 unsafe",)
    for line, message in [
        ('{"image": "tom.png", "caption": "x"}', "captions.jsonl:1: the image 'tom.png' is not in"),
        ('{"image": "jerry.png"}', "captions.jsonl:1: 'jerry.png' has no caption"),
        ('{"image": "jerry.png", "captions": [3]}', "captions.jsonl:1: 'captions' contains 3"),
        ('{"image": "jerry.png", "captions": ["x", 0]}', "captions.jsonl:1: 'captions' contains 0"),
        ('{"image": "jerry.png", "questions": [null]}', "captions.jsonl:1: 'questions' contains None"),
        ('{"image": "jerry.png", "captions": "x"}', "captions.jsonl:1: 'captions' is 'x', not list"),
        ("[]", "captions.jsonl:1: not an object but list"),
        ('\n{"image": ', "captions.jsonl:2: broken JSON"),
    ]:
        file.write_text(line)
        refused(message, read_folder, tmp_path)
    file.write_bytes(b"\xff\xfe")
    refused("not UTF-8 at byte 0", read_folder, tmp_path)


# --- shards -----------------------------------------------------------------------------------------------


def test_shards(tmp_path: Path) -> None:
    said = json.dumps({"captions": ["a cat", "a tabby"]}).encode()
    shard(tmp_path / "test-00000.tar", {"000": {"png": png(), "json": said}})
    shard(tmp_path / "test-00001.tar", {"000": {"png": png(), "txt": b"a dog"}})
    data = read_shards(tmp_path)
    assert data.name == f"{tmp_path.name} test"
    assert {id: (text, images) for id, (text, _, images) in texts(data).items()} == {
        "test-00000/000#0": ("a cat", ["test-00000/000"]),
        "test-00000/000#1": ("a tabby", ["test-00000/000"]),
        "test-00001/000#0": ("a dog", ["test-00001/000"]),
    }
    refused(r"no shards dev-\*.tar", read_shards, tmp_path, "dev")


def test_shards_with_columns_of_laion_lose_unsafe_images(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    unsafe = json.dumps({"caption": "something", "punsafe": 0.9}).encode()
    for split in ("test", "train"):
        samples = {"0": {"png": png(), "json": unsafe}, "1": {"png": png(), "txt": b"a dog"}}
        shard(tmp_path / f"{split}-00000.tar", samples)
    data = read_shards(tmp_path)
    assert ids(data) == ["test-00000/1"] and data.notes[0].endswith("1 images left out: 1 unsafe")
    assert [image.id for image in open_distractors(str(tmp_path), None)] == ["train-00000/1"]
    shard(tmp_path / "test-00000.tar", {"0": {"png": png(), "json": unsafe}})
    refused("hold no images; .*1 images left out: 1 unsafe", read_shards, tmp_path)


LAION = [
    {"key": "0", "caption": "red bus", "punsafe": 0.01},
    {"key": "1", "caption": "red bus", "punsafe": 0.2},
    {"key": "2", "caption": "something", "punsafe": 0.9},
    {"key": "3", "caption": "no one knows"},
    {"key": "4", "caption": "", "punsafe": 0.0},
    {"key": "5", "caption": "tagged", "punsafe": 0.1, "NSFW": "NSFW"},
    {"key": "6", "caption": "a stock picture", "punsafe": 0.1, "pwatermark": 0.99},
]


def check_laion(data: Dataset, stem: str) -> None:
    assert ids(data) == [f"{stem}/{n}" for n in (0, 1, 4)]
    assert texts(data) == {"alt-0": ("red bus", "alt text", [f"{stem}/0", f"{stem}/1"])}
    assert "favour CLIP" in data.notes[0]
    assert data.notes[1].endswith("4 images left out: 1 unsafe, 1 unknown, 1 nsfw, 1 watermark")


def test_a_slice_of_laion_in_shards(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    samples = {row["key"]: {"png": png(), "json": json.dumps(row).encode()} for row in LAION}
    shard(tmp_path / "00000.tar", {str(key): members for key, members in samples.items()})
    (tmp_path / "00000.parquet").write_bytes(b"the metadata that img2dataset writes beside, not read")
    check_laion(read_laion(tmp_path), "00000")
    assert len(read_laion(tmp_path, safety=None).gallery) == len(LAION)
    shard(tmp_path / "00000.tar", {"0": {"png": png()}})
    refused("no image may be used.*1 images left out: 1 unknown.*safety=None", read_laion, tmp_path)
    refused(r"neither \*.tar nor \*.parquet", read_laion, pictures(tmp_path / "other", "x.png"))


def test_a_slice_of_laion_as_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    marks = {"punsafe": None, "NSFW": None, "pwatermark": None}
    rows = [marks | row | {"jpg": png()} for row in LAION]
    rows.insert(2, {"key": "lost", "caption": "not fetched", "punsafe": 0.0, "jpg": None})
    file = tmp_path / "00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    data = read_laion(tmp_path)
    check_laion(data, "00001")
    assert decode(data.gallery[0]).size == (5, 4)
    assert len(read_laion(tmp_path, safety=None).gallery) == len(LAION)
    parquet.write_table(pyarrow.Table.from_pylist([{"URL": "x", "caption": "y"}]), file)
    refused(r"00001.parquet: has no column 'jpg', only \['URL', 'caption'\]", read_laion, tmp_path)
    file.write_bytes(b"PAR1 cut short")
    with pytest.raises(IntegrityError, match="not a whole parquet file"):
        read_laion(tmp_path)


# --- several answers --------------------------------------------------------------------------------------


def inquire(tmp_path: Path) -> tuple[Path, Path]:
    images = pictures(
        tmp_path / "train", "00001_Animalia/a.jpg", "00001_Animalia/b.jpg", "00002_Plantae/c.jpg"
    )
    (tmp_path / "inquire_queries_test.csv").write_text(
        ',query_id,query_text,supercategory\n0,13,"an eagle, immature",Appearance\n1,21,ice plant,Species\n'
    )
    (tmp_path / "inquire_annotations.csv").write_text(
        "query_id,image_path\n13,00001_Animalia/a.jpg\n13,train/00001_Animalia/b.jpg\n99,gone.jpg\n21,c.jpg\n"
    )
    return tmp_path, images


def test_inquire(tmp_path: Path) -> None:
    data = read_inquire(*inquire(tmp_path))
    assert texts(data) == {
        "13": ("an eagle, immature", "expert query", ["00001_Animalia/a.jpg", "00001_Animalia/b.jpg"]),
        "21": ("ice plant", "expert query", ["00002_Plantae/c.jpg"]),
    }
    refused(
        r"inquire_queries_val.csv is missing.*inquire-benchmark",
        read_inquire,
        *inquire(tmp_path),
        split="val",
    )


def test_inquire_in_part_and_graded(tmp_path: Path) -> None:
    folder, images = inquire(tmp_path)
    (images / "00002_Plantae/c.jpg").unlink()
    refused(r"inquire_annotations.csv:5: the image 'c.jpg' is not in", read_inquire, folder, images)
    data = read_inquire(folder, images, partial=True)
    assert [query.id for query in data.queries] == ["13"]
    assert data.notes == (
        "1 relevant pairs and 1 queries left out: their images are not among the 2 of the gallery",
    )
    annotations = folder / "inquire_annotations.csv"
    annotations.write_text("query_id,image_path,relevance\n13,a.jpg,2\n13,b.jpg,0\n21,a.jpg,1\n")
    assert read_inquire(folder, images).qrels["13"] == {"00001_Animalia/a.jpg": 2, "00001_Animalia/b.jpg": 0}
    long = "x" * (csv.field_size_limit() + 1)
    for text, message in [
        ("query_id,image_path,relevance\n13,a.jpg,yes\n", "csv:2: the relevance 'yes'"),
        (f"query_id,image_path\n13,a.jpg\n21,{long}\n", "csv:3: broken CSV: field larger than"),
        (f"query_id,{long}\n", "csv:1: broken CSV: field larger than"),
        ("query_id,path\n", "csv:1: has no column 'image_path'"),
    ]:
        annotations.write_text(text)
        refused(f"inquire_annotations.{message}", read_inquire, folder, images)


def test_retvqa(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", "1.jpg", "2.jpg", "3.jpg")
    record = {"question": "Do both have a tail?", "split": "test", "pos_imgs": [1, 2], "neg_imgs": [3]}
    other = record | {"split": "val", "pos_imgs": [404]}
    path = write_json(tmp_path / "retvqa_release_v1.json", {"17": record, "18": other})
    data = read_retvqa(path, images)
    assert texts(data)["17"][:2] == ("Do both have a tail?", "human question")
    assert data.qrels == {"17": {"3": 0, "1": 1, "2": 1}}
    refused(r"question 18: the image .*404.jpg is missing", read_retvqa, path, images, "val")
    refused(
        r"no questions of the split 'train'; it has \['test', 'val'\]", read_retvqa, path, images, "train"
    )


def test_chatir(tmp_path: Path) -> None:
    pictures(tmp_path, "unlabeled2017/1.jpg", "unlabeled2017/2.jpg", "unlabeled2017/3.jpg")
    records = [
        {"img": "unlabeled2017/1.jpg", "dialog": ["a bedroom", "is it lit? no", "a desk? yes"]},
        {"img": "unlabeled2017/2.jpg", "dialog": ["a church", "tall? yes", "old? no"]},
    ]
    path = write_json(tmp_path / "dialogs.json", records)
    data = read_chatir(path, tmp_path)
    assert data.forms == ("dialog/0", "dialog/1", "dialog/2")
    assert texts(data)["0@1"] == ("a bedroom, is it lit? no", "dialog/1", ["unlabeled2017/1.jpg"])
    assert data.text_to_image().clusters.tolist() == [0, 0, 0, 1, 1, 1]
    assert "not ChatIR's 50,000" in data.notes[0]
    space = write_json(tmp_path / "space.json", [f"unlabeled2017/{n}.jpg" for n in (1, 2, 3)])
    searched = read_chatir(path, tmp_path, space)
    assert len(searched.gallery) == 3 and searched.forms == data.forms and not searched.notes
    write_json(space, ["unlabeled2017/1.jpg"])
    refused(r"dialogue 1: the image .* of query '1@0' is not in", read_chatir, path, tmp_path, space)
    write_json(path, [records[0], records[1] | {"dialog": ["a church", "tall? yes"]}])
    refused("dialogue 1: has the rounds 0 to 1, but not 2", read_chatir, path, tmp_path)

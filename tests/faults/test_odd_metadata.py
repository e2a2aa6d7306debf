"""Odd captions and metadata are replaced and named; data sets that contradict themselves are refused."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from plain import png
from tars import pack
from zsqretrieval.album.catalog import Record
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.evaluation.datasets import (
    Dataset,
    read_coco,
    read_flickr,
    read_folder,
    read_inquire,
    read_laion,
    read_retvqa,
    read_shards,
)
from zsqretrieval.evaluation.trec import read_run
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder
from zsqretrieval.types import Image


def added(source: Any) -> tuple[list[Record], dict[str, str]]:
    """The records of an album; and what was replaced, by the end of the source."""
    with Retriever(ToyEncoder()) as retriever:
        report = retriever.add(source)
        assert not report.skipped
        return list(retriever.records()), {one.source.rpartition("#")[2]: one.reason for one in report.mended}


FINITE, UNICODE = "a number that is not finite, now null", "text that is not Unicode, now U+FFFD"
DEEP = b"[" * 200 + b"]" * 200


@pytest.mark.parametrize(
    ("content", "metadata", "note"),
    [
        (rb'{"caption": "a\ud800b", "x": 1}', {"caption": "a\ufffdb", "x": 1}, UNICODE),
        (rb'{"caption": "a", "k\udfff": ["\udc00"]}', {"caption": "a", "k\ufffd": ["\ufffd"]}, UNICODE),
        (b'{"caption": "a", "x": 1e999}', {"caption": "a", "x": None}, FINITE),
        (b'{"caption": "a", "x": [NaN, -Infinity]}', {"caption": "a", "x": [None, None]}, FINITE),
        (b'{"caption": "a", "x": ' + b"9" * 5000 + b"}", {"caption": "a", "x": None}, FINITE),
        (b'{"caption": "a", "x": ' + b"9" * 400 + b"}", {"caption": "a", "x": int("9" * 400)}, None),
        (b'{"caption": "caf\xe9"}', {"caption": "caf\ufffd"}, UNICODE),
        (b'\xef\xbb\xbf{"caption": "a"}', {"caption": "a"}, None),
        ('{"caption": "ä"}'.encode("utf-16"), {"caption": "ä"}, None),
        (rb'{"caption": "\ud83d\ude00"}', {"caption": "\U0001f600"}, None),
        (b'{"caption": "a\\u0000b"}', {"caption": "a\0b"}, None),
        (b'{"caption": "a", "caption": "b"}', {"caption": "b"}, "a name is given twice"),
        (b'{"caption": 3, "x": {"y": null}}', {"caption": 3, "x": {"y": None}}, None),
        (b'["a"]', {}, "the metadata cannot be read: not an object but list"),
        (b"{", {}, "the metadata cannot be read"),
        (b"", {}, "the metadata cannot be read"),
        (DEEP * 1000, {}, "the metadata cannot be read"),
        (b"\0\1\2\3", {}, "the metadata cannot be read"),
    ],
)
def test_odd_metadata_of_a_shard_is_replaced_and_named(
    tmp_path: Path, content: bytes, metadata: dict[str, Any], note: str | None
) -> None:
    pack(tmp_path / "a.tar", {"0.png": png(0), "0.json": content, "1.png": png(1)})
    pack(tmp_path / "b.tar", {"2.png": png(2)})
    records, mended = added([tmp_path / "a.tar", tmp_path / "b.tar"])
    assert [record.id for record in records] == ["a/0", "a/1", "b/2"]
    caption = metadata.get("caption")
    assert (dict(records[0].metadata), records[0].caption) == (
        metadata, caption if isinstance(caption, str) else None,
    )  # fmt: skip
    assert list(mended) == ([] if note is None else ["0.png"]) and (note or "") in mended.get("0.png", "")


def test_metadata_nested_too_deep_is_cut(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {"0.png": png(), "0.json": b'{"x": ' + DEEP + b', "caption": "kept"}'})
    (record,), mended = added(tmp_path / "a.tar")
    assert record.caption == "kept" and json.dumps(record.metadata["x"]) == "[" * 99 + "null" + "]" * 99
    assert "nested more than 100 levels deep" in mended["0.png"]


@pytest.mark.parametrize(
    ("content", "caption", "replaced"),
    [
        (b"caf\xe9", "caf\ufffd", True),
        (b"\xed\xa0\x80!", "\ufffd\ufffd\ufffd!", True),  # a surrogate in UTF-8
        (b"\xff\xfea\0", "\ufffd\ufffda\0", True),  # UTF-16
        (b"\xef\xbb\xbf a cat\r\n", "a cat", False),
        (b"a\0b", "a\0b", False),
        (b" \n", None, False),
    ],
)
def test_odd_caption_is_replaced_and_named(
    tmp_path: Path, content: bytes, caption: str | None, replaced: bool
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.png").write_bytes(png(1))
    (tmp_path / "folder" / "1.txt").write_bytes(content)
    pack(tmp_path / "folder" / "x.tar", {"0.png": png(0), "0.txt": content})
    records, mended = added(tmp_path / "folder")
    assert [one.caption for one in records] == [caption, caption]
    assert {Path(name).name for name in mended} == ({"0.png", "1.png"} if replaced else set())


@pytest.mark.parametrize(
    ("caption", "metadata", "expected"),
    [
        ("a\ud800", {}, ("a\ufffd", {})),
        ("\ud83d\ude00", {}, ("\U0001f600", {})),  # a pair that somebody cut out of UTF-16
        (None, {"x": math.inf, "y": [math.nan, 1.5]}, (None, {"x": None, "y": [None, 1.5]})),
        (None, {"x": 10**5000}, (None, {"x": None})),
        (None, {"\udcff": {"y": ("\udcff",)}}, (None, {"\ufffd": {"y": ["\ufffd"]}})),
        (None, {1: "a", None: "b"}, (None, {"1": "a", "null": "b"})),
    ],
)
def test_odd_record_of_a_caller_is_replaced_and_named(
    caption: str | None, metadata: dict[Any, Any], expected: tuple[Any, Any]
) -> None:
    records = [Image(png(0), "#first", caption=caption, metadata=metadata), Image(png(1), "#second")]
    (first, _), mended = added(records)
    assert (first.caption, dict(first.metadata)) == expected
    assert list(mended) == ([] if 1 in metadata else ["first"])


def test_nothing_is_named_for_images_that_are_known(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"0.png": png(), "0.txt": b"caf\xe9"})
    retriever = Retriever(ToyEncoder())
    assert len(retriever.add(path).mended) == 1 and retriever.add(path).mended == ()


# --- data sets --------------------------------------------------------------------------------------------


def write(folder: Path, **files: object) -> Path:
    """Text files, JSON files, and rows of CSV files; ``_`` stands for the dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        if name.endswith("csv"):
            with path.open("w", newline="", encoding="utf-8-sig") as file:
                csv.writer(file).writerows(content)  # type: ignore[arg-type]
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8-sig", errors="surrogatepass")
    return folder


def pictures(folder: Path) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for n in range(2):
        (folder / f"{n}.jpg").write_bytes(png(n))
    return folder


HEADER = ("query_id", "image_path", "relevance")
QUERIES = [("query_id", "query_text"), ("7", "a duck")]


def inquire(folder: Path, rows: list[tuple[str, ...]]) -> Dataset:
    write(folder, inquire_queries_test_csv=QUERIES, inquire_annotations_csv=[HEADER, *rows])
    return read_inquire(folder, pictures(folder / "images"))


def coco(folder: Path, images: list[tuple[int, str]], captions: list[tuple[int, int, str]]) -> Dataset:
    document = {
        "images": [{"id": id, "file_name": name} for id, name in images],
        "annotations": [{"id": id, "image_id": image, "caption": text} for id, image, text in captions],
    }
    return read_coco(write(folder, c_json=document) / "c.json", pictures(folder / "images"))


def flickr(folder: Path, text: str, name: str = "c.token") -> Dataset:
    images = pictures(folder / "images")
    (folder / name).write_text(text, encoding="utf-8-sig")
    return read_flickr(folder / name, images)


def retvqa(folder: Path, document: str | Mapping[str, Any]) -> Dataset:
    return read_retvqa(write(folder, r_json=document) / "r.json", pictures(folder / "images"))


def question(positive: list[str], negative: list[str]) -> dict[str, Any]:
    return {"question": "who?", "answer": "a", "split": "test", "pos_imgs": positive, "neg_imgs": negative}


PAIR, TWO = ("7", "0.jpg", "1"), [(1, "0.jpg"), (2, "1.jpg")]
ONCE, AGAIN = json.dumps(question(["0"], ["1"])), json.dumps(question(["1"], ["0"]))
BARS = "image_name| comment_number| comment\n"
LIST = "0.jpg#0\ta\n1.jpg#0\tb\n"


@pytest.mark.parametrize(
    ("read", "places"),
    [
        (lambda p: inquire(p, [PAIR, ("7", "1.jpg", "1"), ("7", "0.jpg", "0")]),
         r"annotations.csv:4: the relevance of \('7', '0.jpg'\) is 0, but 1 at inquire_annotations.csv:2"),
        (lambda p: inquire(p, [PAIR, ("7", "some/where/0.jpg", "2")]), r"csv:3: .* is 2, but 1 at .*csv:2"),
        (lambda p: inquire(p, [("7", "0.jpg", " -1"), PAIR]), r"csv:3: .* is 1, but -1 at .*csv:2"),
        (lambda p: coco(p, [*TWO, (1, "1.jpg")], [(1, 1, "a"), (2, 2, "b")]),
         r"c.json, image 2: the file_name of 1 is '1.jpg', but '0.jpg' at c.json, image 0"),
        (lambda p: coco(p, TWO, [(1, 1, "a"), (2, 2, "b"), (1, 1, "c")]), "annotation 2: the caption of 1 "),
        (lambda p: coco(p, TWO, [(1, 1, "a"), (1, 2, "a")]), "annotation 1: .* at c.json, annotation 0"),
        (lambda p: flickr(p, LIST + "0.jpg#0\tc\n"),
         "c.token:3: the caption of '0.jpg#0' is 'c', but 'a' at c.token:1"),
        (lambda p: flickr(p, BARS + "0.jpg| 0| a\n0.jpg| 0| b\n", "results.csv"), "csv:3: .*'a' at .*csv:2"),
        (lambda p: retvqa(p, {"q": question(["0", "1"], ["1"])}),
         "question q, pos_imgs: the relevance of '1' is 1, but 0 at r.json, question q, neg_imgs"),
        (lambda p: retvqa(p, f'{{"q": {ONCE}, "q": {AGAIN}}}'), "r.json: .*'q' is given twice, with"),
        (lambda p: retvqa(p, "[" * 100_000), "r.json: broken JSON"),
        (lambda p: coco(p, TWO, [(1, 1, "a\ud800"), (2, 2, "b")]), "annotation 0: .* is not Unicode"),
    ],
)  # fmt: skip
def test_contradiction_in_a_data_set_names_both_places(
    tmp_path: Path, read: Callable[[Path], Dataset], places: str
) -> None:
    with pytest.raises(InvalidInputError, match=places):
        read(tmp_path / "data")


@pytest.mark.parametrize(
    "read",
    [
        lambda p: inquire(p, [PAIR, PAIR, ("7", "images/0.jpg", "+1")]),
        lambda p: coco(p, [*TWO, (1, "0.jpg")], [(1, 1, "a"), (1, 1, "a")]),
        lambda p: flickr(p, LIST + "0.jpg#0\ta\n"),
        lambda p: retvqa(p, f'{{"q": {ONCE}, "q": {ONCE}}}'),
        lambda p: retvqa(p, {"q": question(["0", "0"], ["1", "1"])}),
    ],
)
def test_equal_repetition_in_a_data_set_counts_once(tmp_path: Path, read: Callable[[Path], Dataset]) -> None:
    data = read(tmp_path / "data")
    assert len(data.queries) == len({(query.text, query.id) for query in data.queries}) <= 2
    assert sum(grade for answers in data.qrels.values() for grade in answers.values()) == len(data.queries)


def test_table_with_two_columns_of_a_name_is_refused(tmp_path: Path) -> None:
    write(
        tmp_path, inquire_queries_test_csv=QUERIES, inquire_annotations_csv=[(*HEADER, "image_path "), PAIR]
    )
    with pytest.raises(InvalidInputError, match=r"annotations.csv:1: has two columns 'image_path'"):
        read_inquire(tmp_path, pictures(tmp_path / "images"))


def test_captions_that_are_not_unicode_are_refused_with_their_line(tmp_path: Path) -> None:
    pictures(tmp_path)
    lines = [{"image": "0.jpg", "caption": "a"}, {"image": "1.jpg", "caption": "b\ud800"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InvalidInputError, match=r"captions.jsonl:2: .*'1.jpg#0' is not Unicode: 'b\\ud800'"):
        read_folder(tmp_path)


def test_replaced_captions_of_shards_are_in_the_notes(tmp_path: Path) -> None:
    pack(tmp_path / "test-0.tar", {"0.png": png(), "0.json": rb'{"captions": ["a\ud800"], "x": NaN}'})
    data = read_shards(tmp_path)
    assert data.queries[0].text == "a\ufffd"
    assert data.notes[0].startswith(
        "1 images have captions or metadata of which a part was replaced, such as "
    )


def test_parquet_with_cells_of_odd_types(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def table(**columns: Any) -> None:
        parquet.write_table(pyarrow.table({"jpg": [png(0), png(1)], **columns}), tmp_path / "t.parquet")

    broken = pyarrow.array([b"caf\xe9", b"b"], "binary").view("string")
    odd = pyarrow.array([2**40, 0], "int64").cast(pyarrow.timestamp("s"))  # years that Python has not
    table(caption=broken, key=broken, when=odd, punsafe=[0.1, 0.2])
    data = read_laion(tmp_path)
    assert [query.text for query in data.queries] == ["caf\ufffd", "b"] and "1 images" in data.notes[1]
    assert [image.id for image in data.gallery] == ["t/caf\ufffd", "t/b"]
    table(caption=[b"a", b"b"], key=[1, 2], punsafe=[0.1, 0.2])
    assert [query.text for query in read_laion(tmp_path).queries] == ["a", "b"]
    table(caption=["a", "b"], punsafe=["0.1", "high"])  # as other tables of LAION: a number, and none
    assert [query.text for query in read_laion(tmp_path).queries] == ["a"]
    table(caption=["a", "b"], punsafe=["1.1", "high"])
    with pytest.raises(InvalidInputError, match="no image may be used: 2 images left out: 2 unknown"):
        read_laion(tmp_path)
    table(caption=[["a"], ["b"]])
    with pytest.raises(InvalidInputError, match="no queries"):
        read_laion(tmp_path, safety=None)
    table(jpg=[{"bytes": png(), "path": "x"}] * 2, caption=["a", "b"])
    with pytest.raises(InvalidInputError, match=r"the column 'jpg' holds struct<.*not encoded images"):
        read_laion(tmp_path)


@pytest.mark.parametrize("wrap", ["plain", "view", "dictionary"])
def test_parquet_columns_of_every_text_and_binary_type_are_read(tmp_path: Path, wrap: str) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    types = {
        "plain": (pa.large_string(), pa.large_binary()),
        "view": (pa.string_view(), pa.binary_view()),
        "dictionary": (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.binary())),
    }
    text, binary = types[wrap]
    columns = {"jpg": pa.array([png(0), png(1)]).cast(binary), "caption": pa.array(["a", "b"]).cast(text)}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert [query.text for query in read_laion(tmp_path, safety=None).queries] == ["a", "b"]


def test_parquet_column_whose_name_is_not_unicode_is_damage(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"jpg": [png(0)], "caption": ["a"], "extra": [1]})
    parquet.write_table(table, tmp_path / "t.parquet", store_schema=False)
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole.replace(b"extra", b"\xa5xtra"))
    with pytest.raises(IntegrityError, match=r"t\.parquet: not a whole parquet file"):
        read_laion(tmp_path)


@pytest.mark.parametrize("suffix", ["run", "run.gz"])
def test_byte_order_mark_of_a_run_is_accepted(tmp_path: Path, suffix: str) -> None:
    task = inquire(tmp_path / "data", [PAIR]).text_to_image()
    content = "\ufeff7 Q0 0.jpg 1 0.5 mine\r\n7 Q0 1.jpg 2 0.25 mine\r\n".encode()
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    run = read_run(path, task)
    assert run.name == "mine" and run.candidates.tolist() == [[0, 1]]

"""Rules that decide which rows of LAION may be used, and lists of hashes."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from zsqretrieval._util.files import MANIFEST, write_snapshot
from zsqretrieval.errors import ImageError, IntegrityError, InvalidInputError
from zsqretrieval.laion import hashes as module
from zsqretrieval.laion.hashes import HashList, hash_texts, hashes_of, read_names
from zsqretrieval.laion.metadata import canonical, read_metadata
from zsqretrieval.laion.safety import REASONS, Denied, Safety, safety_for, unaltered, verified
from zsqretrieval.laion.storage import list_files
from zsqretrieval.types import Image

# --- rules against a plain reference ----------------------------------------------------------------------

NUMBERS = st.sampled_from([0.0, 0.3, 0.45, 0.4501, 0.8, 0.9, 1.0, -1.0, 2.0, math.nan, math.inf, None])
TAGS = st.sampled_from(["UNLIKELY", "unlikely ", "UNSURE", "NSFW", "", "?", None])
MESSAGES = st.sampled_from([None, "hash mismatch", "Use of image disallowed by X-Robots-Tag directive"])
URLS = st.sampled_from([None, "http://a", "http://b", "http://c"])
ROW = st.fixed_dictionaries(
    {"punsafe": NUMBERS, "pwatermark": NUMBERS, "NSFW": TAGS, "error_message": MESSAGES, "URL": URLS}
)


def reference(row: dict[str, Any], rules: Safety, allowed: set[str], removed: set[str]) -> str | None:
    """The reason why a row is denied, in plain Python; None if it is not."""

    def known(value: Any) -> Any:
        return value if value is not None and 0 <= value <= 1 else None

    punsafe, watermark = known(row.get("punsafe")), known(row.get("pwatermark"))
    tag = (row.get("NSFW") or "").strip().upper()
    if row.get("URL") in removed:
        return "removed"
    if "X-Robots-Tag" in (row.get("error_message") or ""):
        return "opted_out"
    if punsafe is not None and punsafe > rules.max_punsafe:
        return "unsafe"
    if punsafe is None and rules.unknown == "drop":
        return "unknown"
    if rules.nsfw is not None and tag and tag not in rules.nsfw:
        return "nsfw"
    if watermark is not None and watermark > rules.max_pwatermark:
        return "watermark"
    return "not_allowed" if rules.allow is not None and row.get("URL") not in allowed else None


@settings(max_examples=80, deadline=None)
@given(
    st.lists(ROW, min_size=1, max_size=8),
    st.sets(st.sampled_from(["punsafe", "pwatermark", "NSFW", "error_message", "URL"])),
    st.sampled_from([0.45, 0.0, 1.0]),
    st.sampled_from(["drop", "keep"]),
    st.sampled_from([("UNLIKELY",), ("UNLIKELY", "UNSURE"), None]),
    st.booleans(),
)
def test_rules_equal_a_plain_reference_whatever_is_null_or_absent(
    tmp_path_factory: pytest.TempPathFactory,
    rows: Any,
    absent: Any,
    limit: Any,
    unknown: Any,
    nsfw: Any,
    by: Any,
) -> None:
    rows = [{name: value for name, value in row.items() if name not in absent} for row in rows]
    folder = tmp_path_factory.mktemp("lists")
    allow = HashList.write(folder / "allow", [hash_texts(["http://a", "http://b"])], ["text"]) if by else None
    removed = HashList.write(folder / "removed", [hash_texts(["http://b"])], ["text"])
    rules = Safety(limit, unknown, nsfw, 0.8, allow, removed=removed)
    wanted = [reference(row, rules, {"http://a", "http://b"}, {"http://b"}) for row in rows]
    counts = {reason: wanted.count(reason) for reason in REASONS if reason in wanted}
    kinds = {"punsafe": pa.float64(), "pwatermark": pa.float32()}
    names = [name for name in ("punsafe", "pwatermark", "NSFW", "error_message", "URL") if name not in absent]
    if names:
        columns = [pa.array([row[name] for row in rows], kinds.get(name, pa.string())) for name in names]
        denied: Denied = {}
        mask = rules.mask(canonical(pa.RecordBatch.from_arrays(columns, names)), denied)
        assert mask.tolist() == [one is None for one in wanted] and denied == counts
    of_rows: Denied = {}
    assert rules.mask_rows(rows, of_rows).tolist() == [one is None for one in wanted] and of_rows == counts


def test_row_without_punsafe_is_denied_by_default_and_kept_only_by_name() -> None:
    for row in ({}, {"punsafe": None}, {"punsafe": "n/a"}, {"punsafe": -1}, {"punsafe": True}):
        denied: Denied = {}
        assert not Safety().mask_rows([row], denied)[0] and denied == {"unknown": 1}
        assert Safety(unknown="keep").mask_rows([row])[0]
    assert Safety().mask_rows([{"punsafe": 0.45}, {"punsafe": "0.1"}]).all()


@pytest.mark.parametrize(
    ("names", "applies"),
    [
        (["punsafe"], True), (["PWATERMARK"], True), (["NSFW", "caption"], True),
        (["URL", "similarity"], True),
        (["url", "caption"], False), (["similarity"], False), ([], False),
    ],
)  # fmt: skip
def test_default_rules_apply_to_columns_of_laion(names: list[str], applies: bool) -> None:
    assert (safety_for("auto", names) is not None) is applies
    assert safety_for(None, names) is None and safety_for(Safety(0.1), names) == Safety(0.1)


@pytest.mark.parametrize(
    "given",
    [{"max_punsafe": 1.5}, {"max_punsafe": None}, {"max_pwatermark": -1}, {"unknown": "maybe"}, {"nsfw":
     "NSFW"}, {"nsfw": [3]}, {"nsfw": 5}, {"allow": "list"}, {"removed": ["url"]},
     {"allow_by": "caption"}, {"opted_out": True}],
)  # fmt: skip
def test_unfit_rules_are_refused_by_name(given: Any) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(given))):
        Safety(**given)


def test_other_safety_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="safety must be"):
        safety_for("off", [])  # type: ignore[arg-type]


def test_bytes_are_verified_by_the_digests_in_the_metadata() -> None:
    md5, sha256 = (hashlib.new(name, b"image").hexdigest() for name in ("md5", "sha256"))
    table: list[tuple[dict[str, Any], bool | None]] = [
        ({"md5": md5}, True), ({"MD5": md5.upper(), "sha256": sha256}, True),
        ({"md5": md5, "sha256": "0"}, False),
        ({"md5": "0"}, False), ({}, None), ({"md5": None}, None), ({"md5": 3}, None),
    ]  # fmt: skip
    for metadata, expected in table:
        assert verified(Image(b"image", "a", metadata=metadata)) is expected
    assert verified(Image(Path("a.jpg"), "a", metadata={"md5": md5})) is None


def test_altered_image_is_left_out_unless_the_whole_shard_was_encoded_again() -> None:
    def image(content: bytes, of: bytes) -> Image:
        return Image(content, repr(content), metadata={"md5": hashlib.md5(of).hexdigest()})

    torn, plain = ImageError("x", "torn"), Image(b"e", "e")
    shard = [image(b"a", b"a"), torn, image(b"b", b"other"), plain, image(b"c", b"c")]
    denied: Denied = {}
    assert list(unaltered(shard, denied)) == [shard[0], torn, plain, shard[4]] and denied == {"altered": 1}
    again = [image(b"b", b"other"), torn, plain]
    assert list(unaltered(again, denied)) == again and denied == {"altered": 1}


# --- lists of hashes --------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8"), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(TEXTS, max_size=12), max_size=4), st.lists(TEXTS, max_size=12))
def test_list_contains_exactly_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]], others: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("list") / "list"
    HashList.write(folder, map(hash_texts, batches), ["text"])
    found = HashList.open(folder)
    written = {text for batch in batches for text in batch}
    asked = [*written, *others]
    assert len(found) == len(written) and sorted(found.high) == list(found.high)
    assert found.contains(hash_texts(asked)).tolist() == [text in written for text in asked]


def test_hashes_that_share_their_first_half_are_told_apart(tmp_path: Path) -> None:
    entries = np.array([[7, low] for low in (5, 3, 3, 2**64 - 1)] + [[2**64 - 1, 1]], np.uint64)
    found = HashList.write(tmp_path / "list", [entries[:2], entries[2:]], [])
    asked = np.array(
        [[7, 3], [7, 4], [7, 5], [7, 2**64 - 1], [6, 3], [2**64 - 1, 1], [2**64 - 1, 2]], np.uint64
    )
    assert len(found) == 4 and found.contains(asked).tolist() == [True, False, True, True, False, True, False]


def test_allow_list_is_built_from_a_folder_and_null_is_never_on_it(tmp_path: Path) -> None:
    for n, urls in enumerate((["http://a", None], ["http://b", "http://a"])):
        parquet.write_table(pa.table({"URL": urls, "hash": [n, None]}), tmp_path / f"part-{n}.parquet")
    by_url = HashList.of_metadata(tmp_path / "url", tmp_path)
    assert len(by_url) == 2
    column = pa.array(["http://b", None, "http://c"])
    assert by_url.contains(hashes_of(column)).tolist() == [True, False, False]
    by_hash = HashList.of_metadata(tmp_path / "hash", tmp_path, by="hash")
    assert by_hash.contains(hashes_of(pa.array([1, 2, None]))).tolist() == [True, False, False]
    with pytest.raises(InvalidInputError, match="no column 'uid'"):
        HashList.of_metadata(tmp_path / "uid", tmp_path, by="uid")
    with pytest.raises(InvalidInputError, match="not by 'caption'"):
        HashList.of_metadata(tmp_path / "x", tmp_path, by="caption")


def test_allow_list_of_another_column_is_refused(tmp_path: Path) -> None:
    by_hash = HashList.write(tmp_path / "list", [hash_texts(["1"])], ["number"])
    with pytest.raises(InvalidInputError, match="no name on the allow list is like a url, so every row"):
        Safety(allow=by_hash)
    assert Safety(allow=by_hash, allow_by="hash").allow_by == "hash"


def test_damaged_list_is_refused(tmp_path: Path) -> None:
    HashList.write(tmp_path / "list", [hash_texts("abc")], ["text"])
    (file,) = (tmp_path / "list").glob("low-*.bin")
    file.write_bytes(bytes(24))
    with pytest.raises(IntegrityError, match="digest differs"):
        HashList.open(tmp_path / "list")
    write_snapshot(tmp_path / "list", "hash-list", {"forms": 3}, {})
    with pytest.raises(IntegrityError, match="no part"):
        HashList.open(tmp_path / "list")
    (tmp_path / "list" / MANIFEST).unlink()
    with pytest.raises(IntegrityError, match="holds no"):
        HashList.open(tmp_path / "list")


URL = "https://a.org/1.jpg"
MD5, SHA256, UID = (hashlib.md5(b"x").hexdigest(), hashlib.sha256(b"x").hexdigest(), "0" * 31 + "a")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        (URL, {"url": URL}), (MD5, {"md5": MD5}), (MD5.upper(), {"md5": MD5}), (SHA256, {"sha256": SHA256}),
        (UID, {"uid": UID}), ("-42", {"hash": -42}), (hashlib.md5(URL.encode()).hexdigest(), {"URL": URL}),
        (hashlib.sha256(URL.encode()).hexdigest(), {"url": URL}),
    ],
)  # fmt: skip
def test_row_is_found_by_each_of_its_names(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    (tmp_path / "names.txt").write_text(f"# of today\n\n{name}\n")
    names = read_names(tmp_path / "names.txt")
    removed = HashList.write(tmp_path / "list", [hash_texts(names)], map(module.form_of, names))
    other = {"url": "https://a.org/2.jpg", "md5": "0" * 32, "sha256": "1" * 64, "uid": "2" * 32, "hash": 7}
    assert Safety(1, "keep", removed=removed).mask_rows([row, other, {}]).tolist() == [False, True, True]


def test_name_ends_with_its_line_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("http://a/x\u2028y.jpg\nhttp://a/\x85z.jpg\r\n", "utf-8", newline="")
    assert read_names(tmp_path / "names.txt") == ["http://a/x\u2028y.jpg", "http://a/\x85z.jpg"]


def test_names_are_read_from_parquet_and_numpy(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"URL": [URL, None], "md5": [None, MD5], "x": [1, 2]}), tmp_path / "a.parquet"
    )
    assert sorted(read_names(tmp_path / "a.parquet")) == sorted([URL, MD5])
    np.save(tmp_path / "a.npy", np.array([5, -7]))
    assert read_names(tmp_path / "a.npy") == ["5", "-7"]
    np.save(tmp_path / "b.npy", np.array([(0, 10)], "u8,u8"))
    assert read_names(tmp_path / "b.npy") == [UID]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"a secret\n"), ("a.txt", b"\n# secret\n"), ("a.txt", b"\xff secret"), ("a.npy", b"secret"),
     ("a.parquet", b"secret")],
)  # fmt: skip
def test_unreadable_names_are_refused_without_being_repeated(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InvalidInputError, IntegrityError)) as raised:
        read_names(tmp_path / name)
    assert name in str(raised.value) and "secret" not in str(raised.value)
    with pytest.raises(InvalidInputError):
        read_names(tmp_path / f"no-{name}")


# --- odd columns ------------------------------------------------------------------------------------------

OPTED_OUT = ["X-Robots-Tag: noai", None]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"error_message": pa.array(OPTED_OUT).dictionary_encode()}, "opted_out"),
        ({"error_message": pa.array(OPTED_OUT, pa.string_view())}, "opted_out"),
        ({"error_message": pa.array(OPTED_OUT, pa.string()).cast(pa.binary())}, "opted_out"),
        ({"NSFW": [b"NSFW\xff", None]}, "nsfw"),
        ({"NSFW": [["NSFW"], None]}, "nsfw"),
        ({"PUNSAFE": [None, 0.1], "Punsafe": [0.9, None], "punsafe": [None, 0.1]}, "unsafe"),
    ],
)
def test_row_is_denied_whatever_type_and_case_its_columns_have(columns: dict[str, Any], reason: str) -> None:
    denied: Denied = {}
    batch = canonical(pa.RecordBatch.from_pydict({"punsafe": [0.1, 0.1], **columns}))
    assert Safety().mask(batch, denied).tolist() == [False, True] and denied == {reason: 1}


def test_row_with_two_values_of_one_mark_is_never_allowed(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"punsafe": [0.1], "PUNSAFE": [0.9]}), tmp_path / "a.parquet")
    with pytest.raises(IntegrityError, match=r"a\.parquet: a row has different values in"):
        list(read_metadata(tmp_path))
    rows = [
        {"punsafe": 0.1, "PUNSAFE": 0.9},
        {"PUNSAFE": 0.9, "punsafe": 0.1},
        {"punsafe": 0.1, "Punsafe": 0.1},
    ]
    denied: Denied = {}
    assert Safety().mask_rows(rows, denied).tolist() == [False, False, True] and denied == {"unknown": 2}


@pytest.mark.parametrize("name", ["image_path", "IMAGE_PATH", "URL"])
@pytest.mark.parametrize("others", [{}, {"url": ["https://a.org/other", None, None]}])
def test_listed_row_is_found_under_any_case_of_a_column(tmp_path: Path, name: str, others: Any) -> None:
    removed = HashList.write(tmp_path / "list", [hash_texts(["https://a.org/1"])], ["text"])
    table = {name: ["https://a.org/1", "b", None], "punsafe": [0.1] * 3, **others}
    rows = [{key: column[n] for key, column in table.items()} for n in range(3)]
    assert Safety(removed=removed).mask_rows(rows).tolist() == [False, True, True]
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    (file,) = list_files(tmp_path, ".parquet")
    assert Safety(removed=removed).mask_table(file).tolist() == [False, True, True]


def test_paths_that_are_no_texts_are_on_no_list(tmp_path: Path) -> None:
    removed = HashList.write(tmp_path / "list", [hash_texts(["a"])], ["text"])
    for paths in ([["a"], None], [b"\xff", b"a"]):
        batch = canonical(pa.RecordBatch.from_pydict({"image_path": paths}))
        assert removed.lists(batch).tolist() == [False, paths[1] == b"a"]


def test_list_of_an_absent_column_leaves_the_former_one(tmp_path: Path) -> None:
    HashList.write(tmp_path / "list", [hash_texts(["a"])], ["text"])
    parquet.write_table(pa.table({"url": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInputError, match="has no column 'uid'"):
        HashList.of_metadata(tmp_path / "list", tmp_path, "uid")
    assert len(HashList.open(tmp_path / "list")) == 1

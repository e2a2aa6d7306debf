"""Tables of LAION: damaged bytes, and columns of odd types and values."""

from __future__ import annotations

import datetime
import decimal
import random
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tests.fuzz.images import plain
from tests.fuzz.oracle import ENCODER, Case, Target, WrongError, caption_of, check_found, damage, odd_text
from zsqretrieval.errors import ZsqError
from zsqretrieval.evaluation.datasets.readers import read_laion
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever

_ODD_COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "date": (pa.date32(), [datetime.date(2020, 1, 1), None]),
    "far date": (pa.date64(), [2**50, 0]),
    "time": (pa.timestamp("s"), [2**45, 0]),
    "nanoseconds": (pa.timestamp("ns", "UTC"), [1, None]),
    "place": (pa.timestamp("us", "Mars/Olympus"), [1, None]),
    "duration": (pa.duration("s"), [2**50, None]),
    "decimal": (pa.decimal128(38, 10), [decimal.Decimal("1.5"), None]),
    "bytes": (pa.binary(), [b"\xff\0", None]),
    "floats": (pa.float64(), [float("nan"), float("inf")]),
    "half": (pa.float16(), [1.5, None]),
    "big": (pa.uint64(), [2**64 - 1, None]),
    "list": (pa.list_(pa.float32()), [[1.0, float("nan")], []]),
    "struct": (pa.struct({"a": pa.binary(), "b": pa.null()}), [{"a": b"x", "b": None}, None]),
    "map": (pa.map_(pa.string(), pa.int8()), [[("a", 1), ("a", 2)], []]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["a", None]),
    "nothing": (pa.null(), [None, None]),
    "": (pa.bool_(), [True, None]),
}
_CAPTIONS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
_IMAGES = (*[pa.binary(), pa.large_binary()] * 5, pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()))
_NO_CAPTIONS = (pa.int64(), pa.list_(pa.string()), pa.binary(), pa.null(), pa.bool_())
_KEYS = (pa.string(), pa.int64(), pa.float32(), None)
_UNSAFE = ((pa.float64(), 0.1), (pa.float32(), 0.0), (pa.int64(), 0), (pa.bool_(), False))
_ODD_UNSAFE = (None, (pa.string(), "0.1"), *((pa.float64(), one) for one in (float("nan"), None, 1e300)))


class Parquet(Target):
    def case(self, chance: random.Random) -> Case:
        rows = chance.choice([1, 2, 5, 300])
        pictures = [plain(chance) for _ in range(min(rows, 5))]
        pictures = [pictures[n % 5] if n % 7 != 6 else None for n in range(rows)]
        captions: list[Any] = [odd_text(chance) for _ in range(rows)]
        kinds = {"sound": 1, "types": 2, "damage": 3, "captions": 1, "unsafe": 1, "missing": 1}
        (kind,) = chance.choices([*kinds], [*kinds.values()])
        caption_type = chance.choice(_CAPTIONS)
        columns: dict[str, pa.Array] = {"jpg": _array(pictures, chance.choice(_IMAGES))}
        if kind == "captions":
            caption_type = chance.choice(_NO_CAPTIONS)
            captions = [_of_type(caption_type, n) for n in range(rows)]
        columns["caption"] = _array(captions, caption_type)
        key_type = chance.choice(_KEYS)
        if key_type is not None:
            columns["key"] = _array([_of_type(key_type, n) for n in range(rows)], key_type)
        unsafe = chance.choice(_ODD_UNSAFE if kind == "unsafe" else _UNSAFE)
        if unsafe is not None:
            columns[chance.choice(["punsafe", "PUNSAFE"])] = _array([unsafe[1]] * rows, unsafe[0])
        if kind == "types":
            for name in chance.sample(sorted(_ODD_COLUMNS), chance.randint(1, 4)):
                column_type, values = _ODD_COLUMNS[name]
                columns[name] = _array([values[n % 2] for n in range(rows)], column_type)
        if kind == "missing":
            del columns[chance.choice(sorted(columns))]
        folder = self.room / "laion"
        folder.mkdir()
        path = folder / "0000.parquet"
        parquet.write_table(
            pa.table(columns), path, compression=chance.choice(["NONE", "SNAPPY", "ZSTD", "GZIP", "LZ4"]),
            use_dictionary=chance.random() < 0.5, row_group_size=chance.choice([1, 100]),
            data_page_version=chance.choice(["1.0", "2.0"]),
        )  # fmt: skip
        if kind == "damage":
            path.write_bytes(damage(path.read_bytes(), chance)[0])
        texts = [caption_of(text) if isinstance(text, str) else None for text in captions]
        wanted = [(one, text) for one, text in zip(pictures, texts, strict=True) if one is not None]

        def run() -> str:
            data = read_laion(folder)
            read = [(image.content, image.caption) for image in data.gallery]
            if kind in ("sound", "types") and read != wanted:
                raise WrongError(f"{len(read)} rows are not the {len(wanted)} written: {read!r:.500}")
            asked = {query.text for query in data.queries}
            if asked != {text.strip() for _, text in read if text and text.strip()}:
                raise WrongError(f"the queries are not the captions: {sorted(asked)!r:.500}")
            with Retriever(ENCODER, ExactIndex(ENCODER.dim)) as album:
                try:
                    report = album.add(list(data.gallery))
                except ZsqError:
                    if kind != "types":  # whose metadata JSON cannot carry
                        raise
                    return "refused"
                by_id: dict[str, Any] = {str(image.id): image.content for image in data.gallery}
                check_found(album, {id: by_id[id] for id in report.added})
            return "skipped" if report.skipped else "right"

        schema = pa.table(columns).schema.to_string(show_schema_metadata=False)
        return Case(f"{kind}: {schema!r}, {rows} rows", run)


def _array(values: list[Any], type: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(type):
        return pa.array(values, type.value_type).dictionary_encode()
    return pa.array(values, type)


def _of_type(type: pa.DataType, number: int) -> Any:
    values = {pa.string(): f"key {number}", pa.list_(pa.string()): ["a"], pa.binary(): b"a", pa.null(): None}
    return values[type] if type in values else bool(number % 2) if type == pa.bool_() else number

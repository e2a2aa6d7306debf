"""Filters on a collection of Milvus select what they select in SQL."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filter_cases import FILTERS, RECORDS
from index_data import unit, vectors
from milvus_servers import needs_milvus
from zsqretrieval import Filter
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.embeddings import add_blocks, given_block, new_image
from zsqretrieval.album.expressions import condition
from zsqretrieval.album.milvus import MilvusStore
from zsqretrieval.data.loader import NewImage
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.milvus import Milvus
from zsqretrieval.laion.embeddings import VectorRow
from zsqretrieval.testing import ToyEncoder

DIM = ToyEncoder.dim
CAPTIONS = st.none() | st.sampled_from(["a", "%", "a_"])


@pytest.mark.parametrize(
    ("text", "pushed"),
    [
        ("year > 2010", 'metadata["year"] > 2010'),
        ("year = 2010 or a.b = 'x'", '(metadata["year"] == 2010 or metadata["a"]["b"] == "x")'),
        ("year in [2010, null]", '(metadata["year"] == 2010 or not exists metadata["year"])'),
        ("year exists", 'exists metadata["year"]'),
        ("year != 2010", '(not exists metadata["year"] or not (metadata["year"] == 2010))'),
        ("tags contains 'a'", '(metadata["tags"] like "%a%" or json_contains_any(metadata["tags"], ["a"]))'),
        ("tags contains -3", 'json_contains_any(metadata["tags"], [-3])'),
        ("width <= 640.5 and not bytes > 9", "(width <= 640 and not (bytes > 9))"),
        ("not caption contains 'a'", '(caption is null or not (caption like "%a%"))'),
        ("caption exists", "(caption is null or not (caption is null))"),
        ("id > 3 or width = 'a' or width in []", "(key < 0 or key < 0 or key < 0)"),
        ("year > 2010 and not year > 2015", 'metadata["year"] > 2010'),
        ("not (year > 2010 and source = 'a')", ""),
        ("not (year > 2010 or source = 'a')", 'not (source == "a")'),
        ("year != 1", ""),  # true is 1 in milvus-lite
        ("""year = 'a"b' or source = 'c'""", ""),
        ("`a\\b` = 1 and source = 'c'", 'source == "c"'),
        ("year > 1e300", ""),
    ],
)
def test_conditions_are_pushed_down(text: str, pushed: str) -> None:
    assert condition(Filter.parse(text)) == pushed


def storable(value: Any) -> bool:
    """Whether a JSON value has no integers of more than 64 bits, which Milvus does not take."""
    if isinstance(value, dict | list):
        return all(map(storable, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63


@needs_milvus
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(RECORDS.filter(storable), st.none() | st.sampled_from(["a", "%", "a_"])),
        min_size=5,
        max_size=12,
    ),
    st.lists(FILTERS, min_size=4, max_size=6),
)
def test_filters_select_what_they_select_in_sql(records: list[Any], filters: list[Filter]) -> None:
    rows = unit(vectors(len(records), DIM))
    names, sources = [f"{n}.jpg" for n in range(len(records))], [f"nowhere/{n}" for n in range(len(records))]
    metadata, captions = [one for one, _ in records], [one for _, one in records]
    with Catalog.create(None, dim=DIM) as catalog, tempfile.TemporaryDirectory() as folder:
        store = MilvusStore(Milvus(str(Path(folder) / "x.db"), index="FLAT"))
        store.create(DIM, {})
        add_blocks(
            [given_block(rows, names, metadata, sources, captions, None, None, {})],
            ToyEncoder(),
            store.write,
            denied={},
            batch_size=100,
            progress=None,
        )
        sizes = [new_image(rows[n], VectorRow(metadata=metadata[n])) for n in range(len(names))]
        catalog.add(
            [
                NewImage(
                    id=id, source=source, width=sizes[n].width, height=sizes[n].height,
                    bytes=0, digest=f"{n:064x}", vector=rows[n],
                    metadata=metadata[n], caption=captions[n],
                )
                for n, (id, source) in enumerate(zip(names, sources, strict=True))
            ]
        )  # fmt: skip
        for one in filters:
            catalog.fields._known |= one.fields()  # also those that no record has
            store._known |= one.fields()
            wanted = {record.id for record in catalog.records(catalog.fields.matching(one))}
            (found,) = store.nearest(rows[:1], len(records), one)
            assert {record.id for record, _ in found} == wanted, (one, condition(one))
            assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        store.close()


@needs_milvus
def test_field_that_no_image_has_is_refused_and_selective_conditions_find_all(tmp_path: Path) -> None:
    count = 400
    rows = unit(vectors(count, DIM))
    store = MilvusStore(Milvus(str(tmp_path / "x.db")))
    store.create(DIM, {})
    store.matching(Filter.parse("nothing = 1"))  # without images, any field may be meant
    store._known.clear()
    metadata = [{"n": n, "text": f"a_{n}"} for n in range(count)]
    names = [str(n) for n in range(count)]
    block = given_block(rows, names, metadata, names, None, None, None, {})
    add_blocks([block], ToyEncoder(), store.write, denied={}, batch_size=150, progress=None)
    with pytest.raises(InvalidInputError, match=r"no image of the collection .* has the field nothing"):
        store.matching(Filter.parse("n = 3 or nothing = 1"))
    order = np.argsort(-rows @ rows[0])
    for text, wanted in [
        ("n >= 390 and width = 0", [n for n in order if n >= 390]),
        ("not n < 396", [n for n in order if n >= 396]),  # is not pushed down: searched ever deeper
        ("text contains '_7'", [n for n in order if str(n).startswith("7")]),
    ]:
        (found,) = store.nearest(rows[:1], 4, store.matching(Filter.parse(text)))
        assert [record.id for record, _ in found] == [str(n) for n in wanted[:4]], text
    store.close()

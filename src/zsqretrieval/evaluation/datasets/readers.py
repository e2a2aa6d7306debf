"""Readers of captioned data sets in the formats their makers publish.

Readers download nothing: an error about a missing file says who publishes it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zsqretrieval._util.batches import batched
from zsqretrieval.data.sources import walk
from zsqretrieval.data.tars import SurplusError, read_caption, read_webdataset
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.evaluation.datasets.dataset import (
    ALT_TEXT,
    CAPTION,
    HUMAN_QUESTION,
    Dataset,
    Once,
    Query,
    field,
    found,
    image_file,
    json_value,
    lines,
    read_json,
)
from zsqretrieval.laion.metadata import json_cells
from zsqretrieval.laion.safety import NO_RULES, Denied, Safety, SafetyLike, permitted
from zsqretrieval.laion.storage import opened_parquet
from zsqretrieval.types import Image

_KARPATHY = "the page of A. Karpathy's deepimagesent (caption_datasets.zip, dataset_*.json)"
_FLICKR8K = "its makers at the University of Illinois (Flickr8k_text.zip, Flickr8k_Dataset.zip)"
_FLICKR30K = "its makers at the University of Illinois (shannon.cs.illinois.edu/DenotationGraph)"
_COCO = "cocodataset.org/#download (annotations_trainval2017.zip, val2017.zip)"
_LAION = "LAION's metadata by img2dataset (--output_format webdataset or parquet)"


class _Text(NamedTuple):
    image: str
    text: str
    form: str
    place: str


def _assemble(
    name: str, gallery: Sequence[Image], texts: Iterable[_Text], notes: tuple[str, ...] = ()
) -> Dataset:
    """Queries named ``{image}#{n}``, counted within each image as in Flickr8k."""
    counted: Counter[str] = Counter()
    queries, qrels = [], {}
    for image, text, form, place in texts:
        queries.append(Query(f"{image}#{counted[image]}", text, form, place))
        qrels[queries[-1].id] = {image: 1}
        counted[image] += 1
    return Dataset(name, tuple(gallery), tuple(queries), qrels, notes)


# --- captions ---------------------------------------------------------------------------------------------


def read_karpathy(
    captions: Path, images: Path, split: str = "test", *, captions_per_image: int | None = None
) -> Dataset:
    """Read COCO, Flickr8k or Flickr30k in the splits of Karpathy and Fei-Fei (CVPR 2015).

    ``dataset_coco.json`` and its siblings hold ``{"dataset": ..., "images": [...]}``; an image has
    ``filename``, ``filepath`` (COCO: the folder ``val2014`` or ``train2014``), ``split`` and ``sentences``,
    each with its text as ``raw``. Splits are ``train``, ``restval``, ``val`` and ``test``. COCO's test images
    have 5 to 7 sentences, 25,010 in all; papers that report 25,000 captions took the first 5
    (``captions_per_image``).

    Raises:
        InvalidInputError: a file is missing or broken, or there is no such split. Names the record.
    """
    document = read_json(captions, "captions with Karpathy's splits", _KARPATHY)
    gallery: list[Image] = []
    texts: list[_Text] = []
    splits: Counter[str] = Counter()
    for number, record in enumerate(field(document, "images", list, captions.name)):
        place = f"{captions.name}, image {number}"
        own = field(record, "split", str, place)
        splits[own] += 1
        if own != split:
            continue
        name = field(record, "filename", str, place)
        folder = field(record, "filepath", str, place) if "filepath" in record else ""
        gallery.append(image_file(images / folder / name, name, place, "the data set's makers"))
        for n, sentence in enumerate(field(record, "sentences", list, place)[:captions_per_image]):
            text = field(sentence, "raw", str, f"{place}, sentence {n}")
            texts.append(_Text(name, text, CAPTION, f"{place}, sentence {n}"))
    if not gallery:
        raise InvalidInputError(
            f"{captions.name} has no images of the split {split!r}; it has "
            f"{', '.join(f'{name} ({count})' for name, count in splits.items()) or 'none at all'}"
        )
    name = document["dataset"] if isinstance(document.get("dataset"), str) else captions.stem
    return _assemble(f"{name} {split}", gallery, texts)


def read_flickr(captions: Path, images: Path, split: Path | None = None) -> Dataset:
    """Read Flickr8k or Flickr30k as their makers publish them.

    Captions are ``Flickr8k.token.txt`` or ``results_20130124.token``, lines of ``{file}#{n}``, a tab and the
    sentence; or the table ``results.csv`` of Flickr30k, with the columns ``image_name``, ``comment_number``
    and ``comment`` between bars, one row of which (2199200615.jpg, 4) lacks a bar and is read all the same.

    ``split`` is a list of file names, with or without ``.jpg``, such as ``Flickr_8k.testImages.txt``; all
    images with captions when None.

    Raises:
        InvalidInputError: a file is missing, a line is malformed, or a listed image has no captions. Names
            the line.
    """
    origin = _FLICKR30K if "results" in captions.name else _FLICKR8K
    path = found(captions, "captions, one a line", origin)
    texts: dict[str, list[_Text]] = {}
    for text in _flickr_captions(path):
        texts.setdefault(text.image, []).append(text)
    listed = dict.fromkeys(texts, path.name)
    if split is not None:
        names = ((place, line.strip()) for place, line in lines(found(split, "the split's images", origin)))
        listed = {name if Path(name).suffix else f"{name}.jpg": place for place, name in names}
    gallery = []
    for name, place in listed.items():
        if name not in texts:
            raise InvalidInputError(f"{place}: the image {name!r} has no captions in {path.name}")
        gallery.append(image_file(images / name, name, place, origin))
    label = (split or path).name.split(".")[0]
    return _assemble(label, gallery, (text for name in listed for text in texts[name]))


def _flickr_captions(path: Path) -> Iterator[_Text]:
    table = path.suffix == ".csv"
    said = Once("caption")
    for place, line in lines(path):
        if table and place.endswith(":1"):
            header = [column.strip() for column in line.split("|")]
            if header != ["image_name", "comment_number", "comment"]:
                raise InvalidInputError(
                    f"{place}: the columns are {header}, not image_name, comment_number and comment"
                )
            continue
        row = re.fullmatch(r"([^|]+)\|\s*(\d+)\s*[|\s](.*)" if table else r"([^#\t]+)#([^\t]*)\t(.*)", line)
        if row is None:
            wanted = "row 'image| number| sentence'" if table else "caption 'file#number<tab>sentence'"
            raise InvalidInputError(f"{place}: not a {wanted}: {line[:80]!r}")
        image, number, text = (part.strip() for part in row.groups())
        if said.is_new(f"{image}#{number}", text, place):
            yield _Text(image, text, CAPTION, place)


def read_coco(captions: Path, images: Path) -> Dataset:
    """Read COCO captions as published: ``captions_val2017.json`` and its siblings.

    Format: cocodataset.org/#format-data: ``images`` with ``id`` and ``file_name``, ``annotations`` with
    ``id``, ``image_id`` and ``caption``. Captions are numbered in the order of their ids.

    Raises:
        InvalidInputError: a file is missing or broken, or an annotation names an unknown image. Names the
            record.
    """
    document = read_json(captions, "captions of COCO", _COCO)
    names: dict[int, str] = {}
    listed, said = Once("file_name"), Once("caption")
    gallery = []
    for number, record in enumerate(field(document, "images", list, captions.name)):
        place = f"{captions.name}, image {number}"
        name = field(record, "file_name", str, place)
        if listed.is_new(id := field(record, "id", int, place), name, place):
            names[id] = name
            gallery.append(image_file(images / name, name, place, _COCO))
    texts: list[tuple[int, _Text]] = []
    for number, record in enumerate(field(document, "annotations", list, captions.name)):
        place = f"{captions.name}, annotation {number}"
        image = field(record, "image_id", int, place)
        if image not in names:
            raise InvalidInputError(f"{place}: belongs to the image {image}, which the file does not list")
        text = _Text(names[image], field(record, "caption", str, place).strip(), CAPTION, place)
        id = field(record, "id", int, place)
        if said.is_new(id, text[:2], place):
            texts.append((id, text))
    ordered = sorted(texts, key=lambda pair: pair[0])
    return _assemble(f"COCO {captions.stem}", gallery, (text for _, text in ordered))


def read_folder(folder: Path) -> Dataset:
    """Read a folder of your own images, with their captions and questions in ``captions.jsonl``.

    One JSON object a line::

        {"image": "cats/tom.jpg", "captions": ["a cat asleep"], "questions": ["who sleeps on the sofa?"]}

    ``image`` is the path from the folder; ``caption`` may replace a list of one; questions are asked by
    people. An image may have several lines. All images of the folder are the gallery, but those with metadata
    of LAION that are not known to be safe; the lines of these are left out, too.

    Raises:
        InvalidInputError: the file is missing, a line is malformed, or names a missing image. Names the line.
    """
    what = "one JSON object a line, image and captions"
    path = found(folder / "captions.jsonl", what, "yourself: see the docs")
    images = list(walk(folder))
    known = {image.id for image in images}
    denied: Denied = {}
    gallery = list(safe(images, denied))
    kept = {image.id for image in gallery}
    texts = []
    for place, line in lines(path):
        record = json_value(line, place)
        image = field(record, "image", str, place)
        if image not in known:
            raise InvalidInputError(f"{place}: the image {image!r} is not in {folder} or a folder in it")
        captions = _strings(record, "captions", place)
        captions += [field(record, "caption", str, place)] if "caption" in record else []
        questions = _strings(record, "questions", place)
        if not captions and not questions:
            raise InvalidInputError(f"{place}: {image!r} has no caption, captions or questions")
        if image in kept:
            texts += [_Text(image, text, CAPTION, place) for text in captions]
            texts += [_Text(image, text, HUMAN_QUESTION, place) for text in questions]
    return _assemble(folder.absolute().name, gallery, texts, _denials(denied))


def _strings(record: Mapping[str, Any], name: str, place: str) -> list[str]:
    """An optional list of strings."""
    values = field(record, name, list, place) if name in record else []
    if strange := [value for value in values if not isinstance(value, str)]:
        raise InvalidInputError(f"{place}: {name!r} contains {strange[0]!r}, which is not a string")
    return list(values)


# --- shards -----------------------------------------------------------------------------------------------


def read_images(shards: Iterable[Path]) -> Iterator[Image]:
    """The images of shards; what :func:`~zsqretrieval.data.tars.read_webdataset` cannot read is raised.

    Links and second images of a sample are left out: the data set does not mean them.
    """
    for image in read_webdataset(shards):
        if isinstance(image, SurplusError):
            continue
        if isinstance(image, ImageError):
            raise image
        yield image


def safe(images: Iterable[Image], denied: Denied, safety: SafetyLike = "auto") -> Iterator[Image]:
    """The images that may be used by their metadata; counts the others by reason."""
    for some in batched(images, 256):
        yield from itertools.compress(some, permitted([one.metadata for one in some], safety, denied))


def _denials(denied: Denied) -> tuple[str, ...]:
    """A note on the images that the rules for LAION left out, if there are any."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in denied.items())
    return (f"{sum(denied.values())} images left out: {reasons}",) if denied else ()


def _changes(gallery: Iterable[Image]) -> tuple[str, ...]:
    """A note on captions and metadata of which something was replaced, if there are any."""
    changed = [image for image in gallery if image.notes]
    if not changed:
        return ()
    first = f"{changed[0].source}: {'; '.join(changed[0].notes)}"
    return (f"{len(changed)} images have captions or metadata of which a part was replaced, such as {first}",)


def read_shards(folder: Path, split: str = "test") -> Dataset:
    """Read captioned WebDataset shards, ``{split}-*.tar``, as img2dataset writes them.

    Captions are the list ``captions`` of a sample's ``{key}.json``, else its ``{key}.txt``. Images are named
    ``{shard}/{key}`` and held in memory. Images with metadata of LAION that are not known to be safe are left
    out, as by :meth:`Retriever.add <zsqretrieval.retriever.Retriever.add>`.

    Raises:
        InvalidInputError: there are no such shards, no image in them, or an image has no caption; names it.
        IntegrityError: a shard is damaged.
    """
    found(folder, "WebDataset shards", "whoever made them")
    shards = sorted(folder.glob(f"{split}-*.tar"))
    if not shards:
        raise InvalidInputError(f"{folder} holds no shards {split}-*.tar; give a folder of WebDataset shards")
    gallery, texts = [], []
    denied: Denied = {}
    for image in safe(read_images(shards), denied):
        gallery.append(image)
        captions = image.metadata.get("captions")
        if captions is None or captions == []:
            captions = [image.caption] if image.caption else []
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise InvalidInputError(
                f"{image.source}: 'captions' in its .json must be a list of strings, not {captions!r:.80}"
            )
        if not captions:
            raise InvalidInputError(f"{image.source} has no caption, neither in its .json nor as .txt")
        texts += [_Text(str(image.id), caption, CAPTION, image.source) for caption in captions]
    if not gallery:
        what = f"{folder}: the shards {split}-*.tar hold no images"
        raise InvalidInputError("; ".join((what, *_denials(denied))))
    notes = (*_denials(denied), *_changes(gallery))
    return _assemble(f"{folder.absolute().name} {split}", gallery, texts, notes)


def read_laion(folder: Path, *, safety: Safety | None = Safety()) -> Dataset:  # noqa: B008  # frozen
    """Read a slice of LAION for known-item search: an alt text is the query for its own image.

    The slice is what img2dataset writes: shards ``*.tar`` with ``{key}.jpg`` and ``{key}.json`` (``caption``,
    ``url``, and kept columns such as ``punsafe`` and ``NSFW``), or ``*.parquet`` with the encoded image as
    the column ``jpg``; rows without an image are skipped. With both, the tables are the metadata of the
    shards, and the shards are read. Images are named ``{file}/{key}`` and held in memory.

    An alt text that several images share counts as found with any of them; images without one stay in the
    gallery. LAION kept pairs with a cosine of at least 0.28 by CLIP ViT-B/32, so the numbers favour CLIP; the
    notes of the data set say so.

    Images that the rules of ``safety`` deny are left out undecoded; None keeps all.

    Raises:
        InvalidInputError: there is neither, a column is missing, or nothing is left.
        MissingDependencyError: parquet or rules without pyarrow.
        IntegrityError: a file is damaged.
    """
    found(folder, "a slice of LAION", _LAION)
    shards, tables = sorted(folder.glob("*.tar")), sorted(folder.glob("*.parquet"))
    if not shards and not tables:
        raise InvalidInputError(f"{folder} holds neither *.tar nor *.parquet; make them from {_LAION}")
    gallery: list[Image] = []
    texts: dict[str, dict[str, int]] = {}
    places: dict[str, str] = {}
    denied: Denied = {}
    columns = (safety or NO_RULES).columns
    for image in safe(read_images(shards) if shards else _read_parquet(tables, columns), denied, safety):
        gallery.append(image)
        if text := (image.caption or "").strip():
            texts.setdefault(text, {})[str(image.id)] = 1
            places.setdefault(text, image.source)
    if denied and not gallery:
        raise InvalidInputError(
            f"{folder}: no image may be used: {_denials(denied)[0]}; keep the column punsafe when fetching, "
            "or pass safety=None knowing that LAION contains unsafe images"
        )
    notes = ["LAION kept pairs that CLIP ViT-B/32 gave a cosine of at least 0.28: the numbers favour CLIP"]
    notes += [*_denials(denied), *_changes(gallery)]
    queries = [Query(f"alt-{n}", text, ALT_TEXT, places[text]) for n, text in enumerate(texts)]
    qrels = {query.id: texts[query.text] for query in queries}
    return Dataset(
        f"LAION slice {folder.absolute().name}", tuple(gallery), tuple(queries), qrels, tuple(notes)
    )


def _read_parquet(tables: Iterable[Path], columns: Collection[str]) -> Iterator[Image]:
    """The images of tables, with some columns as their metadata."""
    for path in tables:
        with opened_parquet(path) as file:
            if missing := {"jpg", "caption"} - set(file.schema_arrow.names):
                raise InvalidInputError(
                    f"{path.name}: has no column {min(missing)!r}, only {file.schema_arrow.names}; the "
                    "images must be in the table, not only their metadata"
                )
            if _plain(kind := file.schema_arrow.field("jpg").type) not in _BINARY:
                raise InvalidInputError(f"{path.name}: the column 'jpg' holds {kind}, not encoded images")
            facts = [name for name in file.schema_arrow.names if name.lower() in columns]
            names = ["jpg", "caption", "key"]
            first = 0
            for batch in file.iter_batches(batch_size=256, columns=[*names, *facts]):
                cells = [_cells(batch, name) for name in names]
                cells += [json_cells(batch.column(name)) for name in facts]
                for row, (content, text, key, *values) in enumerate(zip(*cells, strict=True), first):
                    if content is None:
                        continue
                    caption, notes = read_caption(text) if isinstance(text, bytes) else (None, ())
                    named = key.decode("utf-8", "replace") if isinstance(key, bytes) else row
                    yield Image(
                        content=content,
                        source=f"{path.name}, row {row}",
                        id=f"{path.stem}/{named}",
                        caption=caption,
                        metadata=dict(zip(facts, values, strict=True)),
                        notes=notes,
                    )
                first += batch.num_rows


def _cells(batch: Any, name: str) -> list[Any]:
    """The cells of a column, text as bytes, since it may not be UTF-8; None if there is no such column."""
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    column = batch.column(name)
    if _plain(column.type) in _STRING:
        column = column.cast("binary")
    cells: list[Any] = column.to_pylist()
    return cells


_STRING = ("string", "large_string", "string_view")
_BINARY = ("binary", "large_binary", "binary_view")


def _plain(kind: Any) -> Any:
    """The type of a column's values; pandas writes categories as a dictionary."""
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind

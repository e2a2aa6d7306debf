"""Images with sentences that people wrote about them: every sentence looks for its image.

Nothing is downloaded. The sources named in errors are those of the data sets' makers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsqretrieval.data.sources import walk
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets._files import (
    field,
    found,
    image_file,
    json_value,
    lines,
    read_text,
)
from zsqretrieval.evaluation.datasets.dataset import CAPTION, HUMAN_QUESTION, Dataset, Query
from zsqretrieval.types import Image

__all__ = ["read_coco", "read_flickr", "read_folder", "read_karpathy"]

_KARPATHY = "the page of A. Karpathy's deepimagesent (caption_datasets.zip, dataset_*.json)"
_FLICKR8K = "its makers at the University of Illinois (Flickr8k_text.zip, Flickr8k_Dataset.zip)"
_FLICKR30K = "its makers at the University of Illinois (shannon.cs.illinois.edu/DenotationGraph)"
_COCO = "cocodataset.org/#download (annotations_trainval2017.zip, val2017.zip)"


@dataclass(frozen=True, slots=True)
class _Text:
    image: str
    text: str
    form: str
    place: str


def _assemble(name: str, gallery: Sequence[Image], texts: Iterable[_Text]) -> Dataset:
    """Queries named ``{image}#{n}``, counted within each image as Flickr8k does."""
    counted: dict[str, int] = {}
    queries, qrels = [], {}
    for text in texts:
        n = counted.get(text.image, 0)
        counted[text.image] = n + 1
        queries.append(Query(f"{text.image}#{n}", text.text, text.form, text.place))
        qrels[queries[-1].id] = {text.image: 1}
    return Dataset(name, tuple(gallery), tuple(queries), qrels)


def read_karpathy(
    captions: Path, images: Path, split: str = "test", *, captions_per_image: int | None = None
) -> Dataset:
    """Read COCO, Flickr8k or Flickr30k in the splits of Karpathy and Fei-Fei (CVPR 2015).

    ``dataset_coco.json`` and its siblings hold ``{"dataset": ..., "images": [...]}``; of each image
    ``filename``, ``filepath`` (COCO only, the folder ``val2014`` or ``train2014``), ``split`` (``train``,
    ``restval``, ``val`` or ``test``), and ``sentences``, each with its text as ``raw``. Format read off the
    published files' users, for instance yxuansu/MAGIC and CLIP_benchmark.

    Args:
        captions: the JSON file.
        images: the folder of images; ``filepath`` is looked for in it.
        split: which images.
        captions_per_image: the first so many sentences of each image; all when None. COCO's test images have
            5 to 7, 25,010 in all; papers that speak of 25,000 captions took the first 5.

    Returns:
        Images named by ``filename``, captions by ``{filename}#{n}``.

    Raises:
        InvalidInputError: a file is missing or broken, or there is no such split. Names the record.
    """
    path = found(Path(captions), "captions with Karpathy's splits", _KARPATHY)
    document = json_value(read_text(path), path.name)
    records = field(document, "images", list, path.name)
    gallery: list[Image] = []
    texts: list[_Text] = []
    splits: dict[str, int] = {}
    for number, record in enumerate(records):
        place = f"{path.name}, image {number}"
        own = field(record, "split", str, place)
        splits[own] = splits.get(own, 0) + 1
        if own != split:
            continue
        name = field(record, "filename", str, place)
        folder = field(record, "filepath", str, place) if "filepath" in record else ""
        gallery.append(image_file(Path(images) / folder / name, name, place, "the data set's makers"))
        for n, sentence in enumerate(field(record, "sentences", list, place)[:captions_per_image]):
            text = field(sentence, "raw", str, f"{place}, sentence {n}")
            texts.append(_Text(name, text, CAPTION, f"{place}, sentence {n}"))
    if not gallery:
        raise InvalidInputError(
            f"{path.name} has no images of the split {split!r}; it has "
            f"{', '.join(f'{name} ({count})' for name, count in splits.items()) or 'none at all'}"
        )
    name = document["dataset"] if isinstance(document.get("dataset"), str) else path.stem
    return _assemble(f"{name} {split}", gallery, texts)


def read_flickr(captions: Path, images: Path, split: Path | None = None) -> Dataset:
    """Read Flickr8k or Flickr30k as their makers give them out.

    Captions are ``Flickr8k.token.txt`` or ``results_20130124.token``: one a line, ``{file}#{n}``, a tab, the
    sentence; or the table ``results.csv`` in which Flickr30k is passed on, with the columns ``image_name``,
    ``comment_number`` and ``comment`` between bars. One row of that table (2199200615.jpg, 4) has lost a bar
    and is read all the same. The split is a list of file names, one a line, with or without ``.jpg``:
    ``Flickr_8k.testImages.txt``, or ``test.txt`` of Flickr30k Entities. Formats as the read-me of Flickr8k
    gives them.

    Args:
        captions: the file of captions.
        images: the folder of images.
        split: the list of images; all that have captions when None.

    Returns:
        Images named by file, captions by ``{file}#{n}``.

    Raises:
        InvalidInputError: a file is missing, a line is malformed, or a listed image has no captions. Names
            the line.
    """
    origin = _FLICKR30K if "results" in Path(captions).name else _FLICKR8K
    path = found(Path(captions), "captions, one a line", origin)
    rows = _flickr_csv(path) if path.suffix == ".csv" else _flickr_tokens(path)
    texts: dict[str, list[_Text]] = {}
    for text in rows:
        texts.setdefault(text.image, []).append(text)
    if split is None:
        listed = dict.fromkeys(texts, path.name)
    else:
        names = found(Path(split), "the list of the split's images", origin)
        listed = {_with_suffix(line.strip()): place for place, line in lines(names)}
    gallery = []
    for name, place in listed.items():
        if name not in texts:
            raise InvalidInputError(f"{place}: the image {name!r} has no captions in {path.name}")
        gallery.append(image_file(Path(images) / name, name, place, origin))
    label = path.name.split(".")[0] if split is None else Path(split).name.split(".")[0]
    return _assemble(label, gallery, (text for name in listed for text in texts[name]))


def _with_suffix(name: str) -> str:
    return name if Path(name).suffix else f"{name}.jpg"


def _flickr_tokens(path: Path) -> Iterable[_Text]:
    for place, line in lines(path):
        caption_id, tab, text = line.partition("\t")
        image, mark, _ = caption_id.partition("#")
        if not (tab and mark and image):
            raise InvalidInputError(f"{place}: not a caption 'file#number<tab>sentence': {line[:80]!r}")
        yield _Text(image, text.strip(), CAPTION, place)


def _flickr_csv(path: Path) -> Iterable[_Text]:
    for place, line in lines(path):
        if place.endswith(":1"):
            header = [column.strip() for column in line.split("|")]
            if header != ["image_name", "comment_number", "comment"]:
                raise InvalidInputError(
                    f"{place}: the columns are {header}, not image_name, comment_number and comment"
                )
            continue
        row = re.fullmatch(r"([^|]+)\|\s*(\d+)\s*[|\s]\s*(.*)", line)
        if row is None:
            raise InvalidInputError(f"{place}: not a row 'image| number| sentence': {line[:80]!r}")
        yield _Text(row[1].strip(), row[3].strip(), CAPTION, place)


def read_coco(captions: Path, images: Path) -> Dataset:
    """Read COCO captions as given out: ``captions_val2017.json`` and its siblings.

    Format: cocodataset.org/#format-data: ``images`` with ``id`` and ``file_name``, ``annotations`` with
    ``id``, ``image_id`` and ``caption``.

    Args:
        captions: the JSON file.
        images: the folder of images.

    Returns:
        Images named by file, captions by ``{file}#{n}`` in the order of their ids.

    Raises:
        InvalidInputError: a file is missing or broken, or an annotation names an unknown image. Names the
            record.
    """
    path = found(Path(captions), "captions of COCO", _COCO)
    document = json_value(read_text(path), path.name)
    names: dict[int, str] = {}
    gallery = []
    for number, record in enumerate(field(document, "images", list, path.name)):
        place = f"{path.name}, image {number}"
        name = field(record, "file_name", str, place)
        names[field(record, "id", int, place)] = name
        gallery.append(image_file(Path(images) / name, name, place, _COCO))
    texts: list[tuple[int, _Text]] = []
    for number, record in enumerate(field(document, "annotations", list, path.name)):
        place = f"{path.name}, annotation {number}"
        image = field(record, "image_id", int, place)
        if image not in names:
            raise InvalidInputError(f"{place}: belongs to the image {image}, which the file does not list")
        text = _Text(names[image], field(record, "caption", str, place).strip(), CAPTION, place)
        texts.append((field(record, "id", int, place), text))
    return _assemble(
        f"COCO {path.stem}", gallery, (text for _, text in sorted(texts, key=lambda pair: pair[0]))
    )


def read_folder(folder: Path, captions: str = "captions.jsonl") -> Dataset:
    """Read a folder of images of your own, with a file that says what belongs to them.

    One JSON object a line::

        {"image": "cats/tom.jpg", "captions": ["a cat asleep"], "questions": ["who sleeps on the sofa?"]}

    ``image`` is the path from the folder; ``caption`` may stand for a list of one; questions are those that a
    person asked. An image may have several lines. All images of the folder are the gallery, those that no
    line names as well.

    Args:
        folder: where the images are.
        captions: the file in it.

    Returns:
        Images named by their path from the folder; texts by ``{image}#{n}``.

    Raises:
        InvalidInputError: the file is missing, a line is malformed, or names an image that is not there.
            Names the line.
    """
    path = found(
        Path(folder) / captions, "one JSON object a line, image and captions", "yourself: see the docs"
    )
    gallery = list(walk(folder))
    known = {image.id for image in gallery}
    texts = []
    for place, line in lines(path):
        record = json_value(line, place)
        image = field(record, "image", str, place)
        if image not in known:
            raise InvalidInputError(f"{place}: the image {image!r} is not in {folder}, nor in a folder in it")
        said = _strings(record, "captions", place) if "captions" in record else []
        said += [field(record, "caption", str, place)] if "caption" in record else []
        asked = _strings(record, "questions", place) if "questions" in record else []
        if not said and not asked:
            raise InvalidInputError(
                f"{place}: says nothing about {image!r}: no caption, captions or questions"
            )
        texts += [_Text(image, text, CAPTION, place) for text in said]
        texts += [_Text(image, text, HUMAN_QUESTION, place) for text in asked]
    return _assemble(Path(folder).absolute().name, gallery, texts)


def _strings(record: Mapping[str, Any], name: str, place: str) -> list[str]:
    values = field(record, name, list, place)
    for value in values:
        if not isinstance(value, str):
            raise InvalidInputError(f"{place}: {name!r} holds {value!r}, which is no text")
    return list(values)

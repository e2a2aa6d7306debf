"""Queries that several images answer: INQUIRE's expert queries, and questions in the manner of RETVQA."""

from __future__ import annotations

from pathlib import Path

from zsqretrieval.data.sources import walk
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets._files import field, found, image_file, json_value, read_text, table
from zsqretrieval.evaluation.datasets.dataset import HUMAN_QUESTION, Dataset, Query
from zsqretrieval.types import Image

__all__ = ["EXPERT_QUERY", "read_inquire", "read_retvqa"]

EXPERT_QUERY = "expert query"
"""Form of INQUIRE's queries: phrases of naturalists, such as "a male mandarin duck in breeding plumage"."""

_INQUIRE = "github.com/inquire-benchmark/INQUIRE (data/README.md; the images are iNaturalist 2024)"
_RETVQA = "the authors of RETVQA (arXiv 2306.16713; the images are Visual Genome's)"


def read_inquire(folder: Path, images: Path, split: str = "test", *, partial: bool = False) -> Dataset:
    """Read INQUIRE (Vendrow et al., NeurIPS 2024) from its CSV files.

    ``inquire_queries_{split}.csv`` with ``query_id`` and ``query_text``, ``inquire_annotations.csv`` with
    ``query_id`` and ``image_path``, a row for every relevant pair; a column ``relevance`` of whole numbers is
    read where there is one. Columns as in the repository's ``data/inquire`` and ``src/eval_fullrank.py``.

    INQUIRE's mAP@50 divides by min(50, relevant images): that is the measure ``APmin@50``, not ``AP@50``.

    Args:
        folder: where the CSV files are.
        images: the folder searched. An ``image_path`` is a path from it, or a file name found once in it.
        split: ``val`` or ``test``.
        partial: the folder holds some of the images only: pairs outside it are left out, and queries that
            nothing is left of. Numbers are then no INQUIRE-Fullrank; the notes say how many were left out.

    Returns:
        Images named by their path from ``images``.

    Raises:
        InvalidInputError: a file or split is missing, a row is malformed, or names an unknown image. Names
            the line.
    """
    folder = Path(folder)
    asked = found(folder / f"inquire_queries_{split}.csv", f"the queries of the split {split!r}", _INQUIRE)
    judged = found(folder / "inquire_annotations.csv", "the relevant pairs", _INQUIRE)
    gallery = list(walk(found(Path(images), "the images", _INQUIRE)))
    known = {str(image.id) for image in gallery}
    by_name: dict[str, str | None] = {}
    for image_id in known:
        name = image_id.rpartition("/")[2]
        by_name[name] = None if name in by_name else image_id
    queries = [
        Query(row["query_id"].strip(), row["query_text"].strip(), EXPERT_QUERY, place)
        for place, row in table(asked, ("query_id", "query_text"))
    ]
    qrels: dict[str, dict[str, int]] = {query.id: {} for query in queries}
    outside = 0
    for place, row in table(judged, ("query_id", "image_path")):
        answers = qrels.get(row["query_id"].strip())
        if answers is None:
            continue  # a query of the other split
        path = row["image_path"].strip()
        id = path if path in known else by_name.get(path.rpartition("/")[2])
        if id is not None:
            answers[id] = _grade(row.get("relevance"), place)
        elif partial:
            outside += 1
        else:
            raise InvalidInputError(
                f"{place}: the image {path!r} is not in {images}, or not by one name; fetch the rest from "
                f"{_INQUIRE}, or pass partial=True"
            )
    notes: tuple[str, ...] = ()
    if outside:
        kept = [query for query in queries if any(grade > 0 for grade in qrels[query.id].values())]
        notes = (
            f"{outside} relevant pairs and {len(queries) - len(kept)} queries left out: their images are not "
            f"among the {len(gallery)} searched",
        )
        queries = kept
    answers_of = {query.id: qrels[query.id] for query in queries}
    return Dataset(f"INQUIRE {split}", tuple(gallery), tuple(queries), answers_of, notes)


def _grade(relevance: str | None, place: str) -> int:
    if relevance is None:
        return 1
    try:
        return int(relevance)
    except ValueError:
        raise InvalidInputError(f"{place}: the relevance {relevance!r} is no whole number") from None


def read_retvqa(questions: Path, images: Path, split: str = "test") -> Dataset:
    """Read questions that name the images which answer them, and others which do not.

    The format of ``retvqa_release_v1.json``: question id -> ``question``, ``answer``, ``split``, ``pos_imgs``
    and ``neg_imgs``, lists of image ids; files are ``{id}.jpg``. Read off the code of its users
    (Harshkw/RetVQA-MiBart-Fusion).

    In the paper every question has a pool of its own, some 25 images. Here the images of all questions of the
    split are one gallery, which is harder; those named as negative are judged 0, all others not at all.

    Args:
        questions: the JSON file.
        images: the folder of images.
        split: ``train``, ``val`` or ``test``.

    Returns:
        Images named by id, queries by question id.

    Raises:
        InvalidInputError: a file or split is missing, or a record is malformed. Names the record.
    """
    path = found(Path(questions), "questions with their images", _RETVQA)
    document = json_value(read_text(path), path.name)
    if not isinstance(document, dict):
        raise InvalidInputError(
            f"{path.name}: not an object of questions by id but {type(document).__name__}"
        )
    gallery: dict[str, Image] = {}
    queries, qrels, splits = [], {}, set()
    for id, record in document.items():
        place = f"{path.name}, question {id}"
        splits.add(own := field(record, "split", str, place))
        if own != split:
            continue
        answers: dict[str, int] = {}
        for name, grade in (("neg_imgs", 0), ("pos_imgs", 1)):
            for image in map(str, field(record, name, list, place)):
                answers[image] = grade
                if image not in gallery:
                    gallery[image] = image_file(Path(images) / f"{image}.jpg", image, place, _RETVQA)
        queries.append(Query(id, field(record, "question", str, place), HUMAN_QUESTION, place))
        qrels[id] = answers
    if not queries:
        raise InvalidInputError(
            f"{path.name} has no questions of the split {split!r}; it has {sorted(splits)}"
        )
    return Dataset(f"{path.stem} {split}", tuple(gallery.values()), tuple(queries), qrels)

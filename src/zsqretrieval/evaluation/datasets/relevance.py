"""Readers of INQUIRE, RETVQA and ChatIR: expert queries, questions, and dialogues."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from zsqretrieval.data.sources import walk
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets.dataset import (
    EXPERT_QUERY,
    HUMAN_QUESTION,
    Dataset,
    Once,
    Query,
    field,
    found,
    image_file,
    read_json,
    table,
)
from zsqretrieval.types import Image

_INQUIRE = "github.com/inquire-benchmark/INQUIRE (data/README.md; the images are iNaturalist 2024)"
_RETVQA = "the authors of RETVQA (arXiv 2306.16713; the images are Visual Genome's)"
_CHATIR = "github.com/levymsn/ChatIR (dialogues/, ChatIR_Protocol/); the images are COCO's unlabeled2017"


def read_inquire(folder: Path, images: Path, split: str = "test", *, partial: bool = False) -> Dataset:
    """Read INQUIRE (Vendrow et al., NeurIPS 2024) from its CSV files.

    ``inquire_queries_{split}.csv`` with ``query_id`` and ``query_text``; ``inquire_annotations.csv`` with
    ``query_id`` and ``image_path``, a row for every relevant pair, and optionally ``relevance``, an integer.
    An ``image_path`` is a path from ``images``, or a file name that occurs once in it. Splits are ``val`` and
    ``test``. INQUIRE's mAP@50 divides by min(50, relevant images): that is the measure ``APmin@50``.

    ``partial`` leaves out pairs whose image is not in the gallery, and queries without a remaining pair. The
    numbers are then not INQUIRE-Fullrank; the notes count what was left out.

    Raises:
        InvalidInputError: a file or split is missing, a row is malformed, or names an unknown image. Names
            the line. A pair has two different relevances; names both lines.
    """
    asked = found(folder / f"inquire_queries_{split}.csv", f"the queries of the split {split!r}", _INQUIRE)
    judged = found(folder / "inquire_annotations.csv", "the relevant pairs", _INQUIRE)
    gallery = list(walk(found(images, "the images", _INQUIRE)))
    known = {str(image.id) for image in gallery}
    times = Counter(Path(id).name for id in known)
    by_name = {Path(id).name: id for id in known if times[Path(id).name] == 1}
    queries = [
        Query(row["query_id"].strip(), row["query_text"].strip(), EXPERT_QUERY, place)
        for place, row in table(asked, ("query_id", "query_text"))
    ]
    qrels: dict[str, dict[str, int]] = {query.id: {} for query in queries}
    outside, judged_once = 0, Once("relevance")
    for place, row in table(judged, ("query_id", "image_path")):
        query = row["query_id"].strip()
        if query not in qrels:
            continue  # a query of the other split
        path = row["image_path"].strip()
        id = path if path in known else by_name.get(Path(path).name)
        if id is not None:
            relevance = row.get("relevance", "1")
            if not re.fullmatch(r"\s*[+-]?\d+\s*", relevance or ""):
                raise InvalidInputError(f"{place}: the relevance {relevance!r} is not an integer")
            judged_once.is_new((query, id), int(relevance), place)
            qrels[query][id] = int(relevance)
        elif partial:
            outside += 1
        else:
            raise InvalidInputError(
                f"{place}: the image {path!r} is not in {images}, or its name is ambiguous; fetch the rest "
                f"from {_INQUIRE}, or leave out its pairs: read_inquire(..., partial=True)"
            )
    notes: tuple[str, ...] = ()
    if outside:
        kept = [query for query in queries if any(grade > 0 for grade in qrels[query.id].values())]
        notes = (
            f"{outside} relevant pairs and {len(queries) - len(kept)} queries left out: their images are not "
            f"among the {len(gallery)} of the gallery",
        )
        queries = kept
    answers_of = {query.id: qrels[query.id] for query in queries}
    return Dataset(f"INQUIRE {split}", tuple(gallery), tuple(queries), answers_of, notes)


def read_retvqa(questions: Path, images: Path, split: str = "test") -> Dataset:
    """Read questions with the images that answer them and images that do not.

    The format of ``retvqa_release_v1.json``: question id -> ``question``, ``answer``, ``split``, ``pos_imgs``
    and ``neg_imgs``, lists of image ids; files are ``{id}.jpg``. In the paper every question has its own pool
    of some 25 images; here the images of all questions of the split are one gallery, which is harder. Images
    named as negative are judged 0, all others not at all. ``split`` is ``train``, ``val`` or ``test``.

    Raises:
        InvalidInputError: a file or split is missing, or a record is malformed. Names the record.
    """
    document = read_json(questions, "questions with their images", _RETVQA)
    if not isinstance(document, dict):
        raise InvalidInputError(f"{questions.name}: not an object of questions by id")
    gallery: dict[str, Image] = {}
    queries, qrels, splits = [], {}, set()
    for id, record in document.items():
        place = f"{questions.name}, question {id}"
        splits.add(own := field(record, "split", str, place))
        if own != split:
            continue
        answers: dict[str, int] = {}
        judged = Once("relevance")
        for name, grade in (("neg_imgs", 0), ("pos_imgs", 1)):
            for image in map(str, field(record, name, list, place)):
                judged.is_new(image, grade, f"{place}, {name}")
                answers[image] = grade
                if image not in gallery:
                    gallery[image] = image_file(images / f"{image}.jpg", image, place, _RETVQA)
        queries.append(Query(id, field(record, "question", str, place), HUMAN_QUESTION, place))
        qrels[id] = answers
    if not queries:
        raise InvalidInputError(
            f"{questions.name} has no questions of the split {split!r}; it has {sorted(splits)}"
        )
    return Dataset(f"{questions.stem} {split}", tuple(gallery.values()), tuple(queries), qrels)


def read_chatir(dialogs: Path, images: Path, search_space: Path | None = None) -> Dataset:
    """Read the dialogues of ChatIR (Levy et al., NeurIPS 2023).

    A JSON list, as ``dialogues/VisDial_v1.0_queries_val.json``, of::

        {"img": "unlabeled2017/000000185565.jpg", "dialog": [caption, "question? answer", ...]}

    The query of round r, named ``{dialogue}@{round}``, is the caption and the first r questions with their
    answers, joined as in the benchmark's ``eval.py``; its form is ``dialog/r``. The benchmark's Hits@10 of
    round r counts a dialogue when any round up to r was a hit: the running maximum of ``R@10`` within each
    dialogue.

    ``search_space`` is ``Search_Space_val_50k.json``, the list of the gallery. Without it the gallery is the
    images of the dialogues, which is far easier; the notes say so. Rounds are those of the first dialogue.

    Raises:
        InvalidInputError: a file is missing, a record is malformed, a dialogue is shorter than a round, or
            its image is not in the gallery. Names the record.
    """
    records = read_json(dialogs, "dialogues", _CHATIR)
    if not isinstance(records, list):
        raise InvalidInputError(f"{dialogs.name}: not a list of dialogues but {type(records).__name__}")
    queries, qrels = [], {}
    targets: dict[str, str] = {}
    rounds = 0
    for number, record in enumerate(records):
        place = f"{dialogs.name}, dialogue {number}"
        image, parts = field(record, "img", str, place), field(record, "dialog", list, place)
        targets.setdefault(image, place)
        rounds = rounds or len(parts)
        if len(parts) < rounds:
            raise InvalidInputError(f"{place}: has the rounds 0 to {len(parts) - 1}, but not {rounds - 1}")
        for r in range(rounds):
            text = ", ".join(map(str, parts[: r + 1]))
            queries.append(Query(f"{number}@{r}", text, f"dialog/{r}", place))
            qrels[queries[-1].id] = {image: 1}
    notes: tuple[str, ...] = ()
    searched = targets
    if search_space is None:
        notes = (f"the gallery is the {len(targets)} images of the dialogues, not ChatIR's 50,000",)
    else:
        names = read_json(search_space, "the list of the gallery", _CHATIR)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidInputError(f"{search_space.name}: not a list of paths")
        searched = {name: f"{search_space.name}, image {n}" for n, name in enumerate(names)}
    gallery = tuple(image_file(images / name, name, place, _CHATIR) for name, place in searched.items())
    return Dataset(dialogs.stem, gallery, tuple(queries), qrels, notes)

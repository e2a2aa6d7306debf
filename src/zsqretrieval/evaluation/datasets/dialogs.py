"""Dialogues about an image that is searched: after every round, what was said so far is a query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets._files import field, found, image_file, json_value, read_text
from zsqretrieval.evaluation.datasets.dataset import Dataset, Query
from zsqretrieval.types import Image

__all__ = ["read_chatir"]

_CHATIR = "github.com/levymsn/ChatIR (dialogues/, ChatIR_Protocol/); the images are COCO's unlabeled2017"


def read_chatir(
    dialogs: Path,
    images: Path,
    search_space: Path | None = None,
    *,
    rounds: Sequence[int] | None = None,
    separator: str = ", ",
) -> Dataset:
    """Read the dialogues of ChatIR (Levy et al., NeurIPS 2023).

    A JSON list, as ``dialogues/VisDial_v1.0_queries_val.json``, of::

        {"img": "unlabeled2017/000000185565.jpg", "dialog": [caption, "question? answer", ...]}

    The query of round r is the caption and the first r questions with their answers, joined as the
    benchmark's ``eval.py`` joins them; its form is ``dialog/r``. The benchmark's Hits@10 of round r counts a
    dialogue when any round up to r was a hit: the running maximum, within each dialogue, of ``R@10``.

    Args:
        dialogs: the JSON file.
        images: the folder that the paths begin in.
        search_space: ``Search_Space_val_50k.json``, the list of all images searched. Without it the gallery
            is the images talked about, which is far easier; the notes say so.
        rounds: which rounds; all of the first dialogue when None.
        separator: between what was said.

    Returns:
        Images named by path, queries ``{number of the dialogue}@{round}``.

    Raises:
        InvalidInputError: a file is missing, a record is malformed, a dialogue is shorter than a round asked
            for, or its image is not searched. Names the record.
    """
    path = found(Path(dialogs), "dialogues", _CHATIR)
    records = json_value(read_text(path), path.name)
    if not isinstance(records, list):
        raise InvalidInputError(f"{path.name}: not a list of dialogues but {type(records).__name__}")
    queries, qrels = [], {}
    talked_about: dict[str, str] = {}
    for number, record in enumerate(records):
        place = f"{path.name}, dialogue {number}"
        image, said = field(record, "img", str, place), field(record, "dialog", list, place)
        talked_about.setdefault(image, place)
        rounds = range(len(said)) if rounds is None else rounds
        for r in rounds:
            if not 0 <= r < len(said):
                raise InvalidInputError(f"{place}: has the rounds 0 to {len(said) - 1}, but not {r}")
            text = separator.join(map(str, said[: r + 1]))
            queries.append(Query(f"{number}@{r}", text, f"dialog/{r}", place))
            qrels[queries[-1].id] = {image: 1}
    notes: tuple[str, ...] = ()
    searched = talked_about
    if search_space is None:
        notes = (f"searched are the {len(talked_about)} images talked about, not ChatIR's 50,000",)
    else:
        listing = found(Path(search_space), "the list of the images searched", _CHATIR)
        names = json_value(read_text(listing), listing.name)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidInputError(f"{listing.name}: not a list of paths")
        searched = {name: f"{listing.name}, image {n}" for n, name in enumerate(names)}
    gallery: list[Image] = [
        image_file(Path(images) / name, name, place, _CHATIR) for name, place in searched.items()
    ]
    return Dataset(path.stem, tuple(gallery), tuple(queries), qrels, notes)

"""Data sets by one argument, ``kind:path``, as the command line names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets.dataset import Dataset
from zsqretrieval.evaluation.datasets.judgments import Judgments, read_judgments
from zsqretrieval.evaluation.datasets.readers import (
    read_coco,
    read_flickr,
    read_folder,
    read_images,
    read_karpathy,
    read_laion,
    read_shards,
    safe,
)
from zsqretrieval.evaluation.datasets.relevance import read_chatir, read_inquire, read_retvqa
from zsqretrieval.types import Image

_FLICKR8K = "Flickr8k.token.txt"
_SHARDED = ("flickr8k", "shards")
_SPLIT = "test"


class Kind(NamedTuple):
    """A kind of data set."""

    paths: str  # behind the colon, separated by commas; optional ones in brackets
    holds: str
    read: Callable[..., Dataset]  # of the paths, and of the split if the files distinguish splits
    splits: bool = True


def _flickr8k_texts(folder: Path) -> Path | None:
    """Folder of the makers' captions; None for a folder of shards."""
    return next((one for one in (folder, folder / "Flickr8k_text") if (one / _FLICKR8K).is_file()), None)


def _read_flickr8k(folder: Path, split: str) -> Dataset:
    texts = _flickr8k_texts(folder)
    if texts is None and folder.is_dir():
        return read_shards(folder, split)
    texts = texts or folder  # whose absence is the error
    names = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")  # the first as in the archive
    images = next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])
    return read_flickr(texts / _FLICKR8K, images, texts / f"Flickr_8k.{split}Images.txt")


def _read_flickr(captions: Path, images: Path, names: Path | None = None, *, split: str) -> Dataset:
    return read_flickr(captions, images, names and Path(str(names).replace("{split}", split)))


KINDS: Mapping[str, Kind] = {
    "shards": Kind("FOLDER", "WebDataset shards {split}-*.tar with captions", read_shards),
    "flickr8k": Kind("FOLDER", "Flickr8k as published, or as shards {split}-*.tar", _read_flickr8k),
    "flickr": Kind(
        "CAPTIONS,IMAGES,[LIST]",
        "Flickr8k or Flickr30k in the original formats; {split} in LIST is filled in",
        _read_flickr,
    ),
    "karpathy": Kind("FILE.json,IMAGES", "COCO or Flickr in the splits of Karpathy", read_karpathy),
    "coco": Kind(
        "FILE.json,IMAGES",
        "COCO captions as published, such as captions_val2017.json",
        read_coco,
        splits=False,
    ),
    "laion": Kind("FOLDER", "a slice of LAION by img2dataset", read_laion, splits=False),
    "inquire": Kind("FOLDER,IMAGES", "INQUIRE's CSV files and images", read_inquire),
    "retvqa": Kind("FILE.json,IMAGES", "questions with the images that answer them", read_retvqa),
    "chatir": Kind("FILE.json,IMAGES,[SEARCH_SPACE.json]", "dialogues of ChatIR", read_chatir, splits=False),
    "folder": Kind("FOLDER", "your own images with a captions.jsonl", read_folder, splits=False),
}
"""The kinds by name."""


def open_dataset(argument: str, split: str | None = None) -> Dataset:
    """Read the data set that an argument names.

    Args:
        argument: ``kind:path,path`` with a kind of :data:`KINDS`; or a folder whose content shows that it is
            of the kind ``flickr8k``, ``shards``, ``folder`` or ``laion``.
        split: which images; ``"test"`` if there are splits and None is given.

    Raises:
        InvalidInputError: no such kind, a wrong number of paths, a split where there are none, or a file
            cannot be read; names the line.
    """
    name, given = _named(argument)
    kind = KINDS[name]
    if split is not None and not kind.splits:
        raise InvalidInputError(
            f"{argument!r}: a data set of the kind {name} has no splits, so no {split!r}; give the files of "
            "that split instead"
        )
    if split is not None and name == "flickr" and not any("{split}" in str(path) for path in given[2:]):
        raise InvalidInputError(
            f"{argument!r}: nothing says which images are in the split {split!r}; write "
            f"flickr:{kind.paths}, with {{split}} in the name of LIST"
        )
    return kind.read(*given, split=split or _SPLIT) if kind.splits else kind.read(*given)


def open_judgments(argument: str, split: str | None, dataset: Dataset) -> tuple[Judgments, ...]:
    """Read the human ratings next to a data set: those of Flickr8k's test split, if they are there.

    Arguments as for :func:`open_dataset`, and its result.

    Raises:
        InvalidInputError: a line cannot be read; names it.
    """
    name, given = _named(argument)
    if name not in _SHARDED or (split or _SPLIT) != _SPLIT:
        return ()
    return read_judgments(_flickr8k_texts(given[0]) or given[0], dataset)


def open_distractors(argument: str, split: str | None) -> tuple[Image, ...]:
    """Read the images of all other splits, if they are shards in the same folder; arguments as above."""
    name, given = _named(argument)
    shards = sorted(given[0].glob("*.tar")) if name in _SHARDED else []
    others = [path for path in shards if not path.name.startswith(f"{split or _SPLIT}-")]
    return tuple(safe(read_images(others), {}))


def _named(argument: str) -> tuple[str, list[Path]]:
    """Kind and paths of an argument."""
    name, colon, rest = argument.partition(":")
    if not colon or name not in KINDS:
        name, rest = _recognized(argument), argument
    paths = KINDS[name].paths
    most = paths.count(",") + 1
    # A folder of one's own may have a comma in its name.
    given = [one for one in (rest.split(",") if most > 1 else [rest]) if one]
    if not most - paths.count("[") <= len(given) <= most:
        raise InvalidInputError(f"{argument!r} has {len(given)} paths; {name} needs {name}:{paths}")
    return name, [Path(one) for one in given]


def _recognized(argument: str) -> str:
    folder = Path(argument)
    if folder.is_dir():
        if _flickr8k_texts(folder) is not None:
            return "flickr8k"
        if (folder / "captions.jsonl").is_file():
            return "folder"
        if any(folder.glob("*-*.tar")):
            return "shards"
        if any(folder.glob("*.tar")) or any(folder.glob("*.parquet")):
            return "laion"
    what = "is not a known kind of data set" if folder.exists() else "is neither a folder nor kind:path"
    kinds = "; ".join(f"{name}:{kind.paths} ({kind.holds})" for name, kind in KINDS.items())
    raise InvalidInputError(f"{argument!r} {what}; the kinds are {kinds}")

"""Data sets by one argument, ``kind:path``, as a command line names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from zsqretrieval.data.sources import read_webdataset
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import (
    Dataset,
    read_chatir,
    read_coco,
    read_flickr,
    read_folder,
    read_inquire,
    read_karpathy,
    read_laion,
    read_retvqa,
    read_shards,
)
from zsqretrieval.evaluation.human import Judgments, read_judgments
from zsqretrieval.types import Image

__all__ = ["KINDS", "Kind", "open_dataset", "open_distractors", "open_judgments"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of data set.

    Attributes:
        paths: what stands behind the colon, parted by commas; those in brackets may be left out.
        holds: what that is.
        splits: whether the files tell splits apart.
        read: from the paths and the split, which is empty where there are none, to the data set.
    """

    paths: str
    holds: str
    splits: bool
    read: Callable[[Sequence[Path], str], Dataset]

    @property
    def fewest(self) -> int:
        """How many paths it takes at least."""
        return self.most - self.paths.count("[")

    @property
    def most(self) -> int:
        """How many paths it takes at most."""
        return self.paths.count(",") + 1


def _texts_of_flickr8k(folder: Path) -> Path | None:
    """Where the captions of the makers lie; None in a folder of shards."""
    return next((one for one in (folder, folder / "Flickr8k_text") if (one / _FLICKR8K).is_file()), None)


def _read_flickr8k(paths: Sequence[Path], split: str) -> Dataset:
    """The folder of shards, or the one that the makers' two archives were unpacked into."""
    (folder,) = paths
    texts = _texts_of_flickr8k(folder)
    if texts is None:
        return read_shards(folder, split)
    names = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")  # the first as in the archive
    images = next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])
    return read_flickr(texts / _FLICKR8K, images, texts / f"Flickr_8k.{split}Images.txt")


def _read_flickr_files(paths: Sequence[Path], split: str) -> Dataset:
    listed = [Path(str(path).replace("{split}", split)) for path in paths[2:]]
    return read_flickr(paths[0], paths[1], *listed)


_FLICKR8K = "Flickr8k.token.txt"
_SHARDED = ("flickr8k", "shards")
_SPLIT = "test"

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "shards": Kind(
            "FOLDER",
            "WebDataset shards {split}-*.tar with captions",
            True,
            lambda paths, split: read_shards(paths[0], split),
        ),
        "flickr8k": Kind(
            "FOLDER", "Flickr8k as its makers give it out, or as shards {split}-*.tar", True, _read_flickr8k
        ),
        "flickr": Kind(
            "CAPTIONS,IMAGES,[LIST]",
            "Flickr8k or Flickr30k in the original formats; {split} in LIST is filled in",
            True,
            _read_flickr_files,
        ),
        "karpathy": Kind(
            "FILE.json,IMAGES",
            "COCO or Flickr in the splits of Karpathy",
            True,
            lambda paths, split: read_karpathy(paths[0], paths[1], split),
        ),
        "coco": Kind(
            "FILE.json,IMAGES",
            "captions of COCO as given out, such as captions_val2017.json",
            False,
            lambda paths, _: read_coco(*paths),
        ),
        "laion": Kind(
            "FOLDER", "a slice of LAION by img2dataset", False, lambda paths, _: read_laion(paths[0])
        ),
        "inquire": Kind(
            "FOLDER,IMAGES",
            "INQUIRE's CSV files and images",
            True,
            lambda paths, split: read_inquire(paths[0], paths[1], split),
        ),
        "retvqa": Kind(
            "FILE.json,IMAGES",
            "questions with the images that answer them",
            True,
            lambda paths, split: read_retvqa(paths[0], paths[1], split),
        ),
        "chatir": Kind(
            "FILE.json,IMAGES,[SEARCH_SPACE.json]",
            "dialogues of ChatIR",
            False,
            lambda paths, _: read_chatir(*paths),
        ),
        "folder": Kind(
            "FOLDER",
            "images of your own with a captions.jsonl",
            False,
            lambda paths, _: read_folder(paths[0]),
        ),
    }
)
"""The kinds by name."""


def open_dataset(argument: str, split: str | None = None) -> Dataset:
    """Read the data set that an argument names.

    Args:
        argument: ``kind:path,path``, as :data:`KINDS` has them; or the path of a folder that tells by what is
            in it that it is of the kind ``flickr8k``, ``shards``, ``folder`` or ``laion``.
        split: which images; ``"test"`` where there are splits and None is given.

    Raises:
        InvalidInputError: no such kind, too few or too many paths, a split where nothing tells splits apart,
            or what lies there cannot be read or measured; names the line.
    """
    name, given = _named(argument)
    kind = KINDS[name]
    if split is not None and not kind.splits:
        raise InvalidInputError(
            f"{argument!r}: a data set of the kind {name} has no splits, so there is no {split!r} in "
            "it; give the files of that split instead"
        )
    if split is not None and name == "flickr" and not any("{split}" in str(path) for path in given[2:]):
        raise InvalidInputError(
            f"{argument!r}: nothing tells which images are of the split {split!r}; write "
            f"flickr:{kind.paths}, with {{split}} in LIST where its name has the split"
        )
    return kind.read(given, (split or _SPLIT) if kind.splits else "")


def open_judgments(argument: str, split: str | None, dataset: Dataset) -> tuple[Judgments, ...]:
    """Read the human ratings that lie beside a data set: those of Flickr8k's test split.

    Args:
        argument: as for :func:`open_dataset`.
        split: as for :func:`open_dataset`.
        dataset: what that read.

    Returns:
        None where there are none.

    Raises:
        InvalidInputError: a line cannot be read; names it.
    """
    name, given = _named(argument)
    if name not in _SHARDED or (split or _SPLIT) != _SPLIT:
        return ()
    return read_judgments(_texts_of_flickr8k(given[0]) or given[0], dataset)


def open_distractors(argument: str, split: str | None) -> tuple[Image, ...]:
    """Read the images of all other splits, as far as they lie in one folder of shards.

    Args:
        argument: as for :func:`open_dataset`.
        split: the one whose images are left out.

    Returns:
        None where there are none.
    """
    name, given = _named(argument)
    shards = sorted(given[0].glob("*.tar")) if name in _SHARDED else []
    others = [path for path in shards if not path.name.startswith(f"{split or _SPLIT}-")]
    return tuple(read_webdataset(others)) if others else ()


def _named(argument: str) -> tuple[str, list[Path]]:
    """The kind that an argument names, and its paths."""
    name, colon, rest = argument.partition(":")
    if not colon or name not in KINDS:
        name, rest = _recognized(argument), argument
    kind = KINDS[name]
    # A folder of one's own may have a comma in its name.
    given = [one for one in (rest.split(",") if kind.most > 1 else [rest]) if one]
    if not kind.fewest <= len(given) <= kind.most:
        raise InvalidInputError(
            f"{argument!r} names {len(given)} paths; {name} is given as {name}:{kind.paths}"
        )
    return name, [Path(one) for one in given]


def _recognized(argument: str) -> str:
    folder = Path(argument)
    if folder.is_dir():
        if (folder / _FLICKR8K).is_file() or (folder / "Flickr8k_text" / _FLICKR8K).is_file():
            return "flickr8k"
        if (folder / "captions.jsonl").is_file():
            return "folder"
        if any(folder.glob("*-*.tar")):
            return "shards"
        if any(folder.glob("*.tar")) or any(folder.glob("*.parquet")):
            return "laion"
    what = "tells not what data set it is" if folder.exists() else "is neither a folder nor kind:path"
    kinds = "; ".join(f"{name}:{kind.paths} ({kind.holds})" for name, kind in KINDS.items())
    raise InvalidInputError(f"{argument!r} {what}; there are {kinds}")

"""Removing the images that a list names, for good.

    removed/    the album's removal list (:mod:`zsqretrieval.laion.hashes`)

Everything that is added to the album is compared with the list. It is on disk before anything is removed, so
that an interrupted removal can be repeated, and what it removed does not come back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.files import MANIFEST
from zsqretrieval.album.catalog import Record
from zsqretrieval.data.loader import NewImage
from zsqretrieval.laion.hashes import NAMES, HashList, form_of, hash_texts

LIST = "removed"
"""Folder of the removal list in an album."""


@dataclass(frozen=True, slots=True)
class RemovalReport:
    """Result of :meth:`Retriever.remove_listed <zsqretrieval.retriever.Retriever.remove_listed>`.

    Attributes:
        listed: entries of the album's removal list, with those of earlier calls.
        removed: images that were removed.
        found_before: how many of these a search for their vector found among the first ten, before.
        found_after: the same afterwards: 0.
        images: images that are left.
        seconds: duration.
    """

    listed: int
    removed: int
    found_before: int
    found_after: int
    images: int
    seconds: float


def removal_list(album: Path | None) -> HashList | None:
    """The removal list of an album; None without one. An IntegrityError if it is damaged."""
    if album is None or not (album / LIST / MANIFEST).is_file():
        return None
    return HashList.open(album / LIST)


def extended(album: Path, names: Sequence[str]) -> HashList:
    """Add names to the removal list of an album; on disk when this returns."""
    former = removal_list(album)
    batches = [] if former is None else [former.hashes()]
    forms = frozenset() if former is None else former.forms
    return HashList.write(album / LIST, [*batches, hash_texts(names)], forms.union(map(form_of, names)))


def listed(removed: HashList, images: Sequence[Record | NewImage]) -> NDArray[np.bool_]:
    """Which of n images are on a list, bool [n]: by metadata, URL, or the digest of their bytes."""
    names: list[str] = []
    owners: list[int] = []
    for n, image in enumerate(images):
        some = _names(image, removed.forms)
        names += some
        owners += [n] * len(some)
    found = np.zeros(len(images), np.bool_)
    found[np.array(owners, np.intp)[removed.contains(hash_texts(names))]] = True
    return found


def _names(image: Record | NewImage, forms: frozenset[str]) -> list[str]:
    values = [value for key, value in image.metadata.items() if str(key).lower() in NAMES]
    # pandas makes floats of hashes, and canonical() takes those back.
    names = [str(int(one) if isinstance(one, float) and one.is_integer() else one) for one in values]
    names += [image.source, image.digest]
    urls = [name for name in names if "://" in name]
    for form, digest in (("hex32", hashlib.md5), ("hex64", hashlib.sha256)):
        if form in forms:
            names += [digest(url.encode(errors="surrogatepass")).hexdigest() for url in urls]
    if "hex32" in forms and isinstance(image, NewImage) and image.image is not None:
        content = image.image.content
        names += [hashlib.md5(content).hexdigest()] if isinstance(content, bytes) else []
    return names

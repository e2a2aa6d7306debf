"""Adding images: from what was given to vectors and records on disk, batch by batch.

images --intake--> arrivals --encoder, viewer--> vectors, states --one transaction--> catalog --> index
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.album.candidates import Viewer
from zsqretrieval.album.catalog import Catalog, NewImage, Record
from zsqretrieval.album.sync import Follower
from zsqretrieval.data.images import ImageLike, open_images
from zsqretrieval.data.loader import Arrival, Intake, Label, Skipped
from zsqretrieval.data.reopen import Reopener
from zsqretrieval.errors import ImageError
from zsqretrieval.protocols import Encoder
from zsqretrieval.types import Image

__all__ = ["AddReport", "Adder", "Progress"]

Progress: TypeAlias = Callable[[int], object]
"""Called with the number of images dealt with so far."""

_Fate: TypeAlias = Literal["added", "replaced", "moved", "known"]

_SUFFIX = re.compile(r"(#[0-9a-f]{8}([0-9a-f]{56})?)?")  # what follows an id that was taken


@dataclass(frozen=True, slots=True)
class AddReport:
    """What became of the images given to :meth:`Retriever.add <zsqretrieval.retriever.Retriever.add>`.

    Every one is counted exactly once.

    Attributes:
        added: ids of the images that are new.
        replaced: ids under which there is another image now, because the file had changed.
        moved: new ids of images that were in the album already, and are somewhere else now.
        known: how many others were in the album already, byte for byte.
        skipped: those that could not be read, with the reason.
        seconds: time taken.
    """

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    moved: tuple[str, ...]
    known: int
    skipped: tuple[Skipped, ...]
    seconds: float


@final
class Adder:
    """Adds images to an album.

    Args:
        encoder: makes the vectors.
        catalog: takes them.
        follower: brings the index up to date.
        viewer: keeps what the generator sees, where that is wanted; None without a generator.
    """

    def __init__(self, encoder: Encoder, catalog: Catalog, follower: Follower, viewer: Viewer | None) -> None:
        self._encoder, self._catalog, self._follower, self._viewer = encoder, catalog, follower, viewer

    def add(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int, progress: Progress | None
    ) -> AddReport:
        """As :meth:`Retriever.add <zsqretrieval.retriever.Retriever.add>`."""
        begin = time.perf_counter()
        ids: dict[_Fate, list[str]] = {"added": [], "replaced": [], "moved": [], "known": []}
        with Intake(open_images(images), batch_size, self._known) as intake, Reopener() as files:
            for known, arrivals in intake:
                for fate, id in [*self._look_again(known, files), *self._store(arrivals, files)]:
                    ids[fate].append(id)
                if progress is not None:
                    progress(sum(map(len, ids.values())) + intake.repeated + len(intake.skipped))
        return AddReport(
            added=tuple(ids["added"]),
            replaced=tuple(ids["replaced"]),
            moved=tuple(ids["moved"]),
            known=len(ids["known"]) + intake.repeated,
            skipped=tuple(intake.skipped),
            seconds=time.perf_counter() - begin,
        )

    def _known(self, digests: list[str]) -> Container[str]:
        """Of some digests, those that need not be decoded."""
        known = self._catalog.known_digests(digests)
        return known if self._viewer is None else known.keys() - self._viewer.blind_to(known)

    def _store(self, arrivals: Sequence[Arrival], files: Reopener) -> list[tuple[_Fate, str]]:
        """Encode images, write them down in one transaction, and let the index follow."""
        if not arrivals:
            return []
        pixels = {one.label.digest: Image(one.pixels, one.label.source) for one in arrivals}
        known = self._catalog.known_digests(pixels)  # these are here for the sake of their states
        fates = self._look_again([one.label for one in arrivals if one.label.digest in known], files)
        new = [one for one in arrivals if one.label.digest not in known]
        vectors = self._encoder.encode_image(
            [pixels[one.label.digest] for one in new], batch_size=len(arrivals)
        )
        keeping = contextlib.nullcontext() if self._viewer is None else self._viewer.keeping(pixels)
        with keeping, self._catalog.transaction():
            fates += [self._write(image, vector) for image, vector in zip(new, vectors, strict=True)]
        self._follower.follow()
        return fates

    def _write(self, image: Arrival, vector: NDArray[np.float32]) -> tuple[_Fate, str]:
        label = image.label
        if self._catalog.known_digests([label.digest]):  # another thread or process was faster
            return "known", label.id
        namesakes = self._catalog.namesakes(label.id)
        if former := _former(label, namesakes):
            self._catalog.remove([former.key])
        row = NewImage(
            id=former.id if former else _free_id(label, {one.id for one in namesakes}),
            source=label.source,
            width=image.pixels.width,
            height=image.pixels.height,
            bytes=image.bytes,
            digest=label.digest,
            vector=vector,
            caption=label.caption,
            metadata=label.metadata,
        )
        self._catalog.add([row])
        return "replaced" if former else "added", row.id

    # --- images that are known

    def _look_again(self, labels: Sequence[Label], files: Reopener) -> list[tuple[_Fate, str]]:
        """Follow known images to where they are now; one transaction, and none where nothing has changed.

        An image that is not where it was has moved to where it can be opened now. One that has the name of
        another is that name's from now on: a name and a source mean one image at a time.
        """
        known = self._catalog.by_digest(label.digest for label in labels)
        strayed = [label for label in labels if not _is_called(known.get(label.digest), label)]
        if not strayed:
            return [("known", label.id) for label in labels]
        moved = {
            label.digest
            for label in strayed
            if not _is_at(files, known[label.digest].source, label.digest)
            and _is_at(files, label.source, label.digest)
        }
        homeless: dict[str, int] = {}  # digest and key of those whose name another image has now
        with self._catalog.transaction():
            fates = [self._rename(label, label.digest in moved, homeless) for label in labels]
            self._catalog.remove(list(homeless.values()))
        self._follower.follow()
        return fates

    def _rename(self, label: Label, has_moved: bool, homeless: dict[str, int]) -> tuple[_Fate, str]:
        namesakes = self._catalog.namesakes(label.id)
        former = _former(label, namesakes)
        image = self._catalog.by_digest([label.digest]).get(label.digest)
        if image is None or image == former:
            return "known", label.id
        if former is not None:
            homeless[former.digest] = former.key
            self._catalog.rename(replace(former, id=f"#{former.digest}"))
        elif not (has_moved or image.digest in homeless):
            return "known", label.id
        homeless.pop(image.digest, None)
        id = former.id if former else _free_id(label, {one.id for one in namesakes} - {image.id})
        self._catalog.rename(
            replace(image, id=id, source=label.source, caption=label.caption, metadata=label.metadata)
        )
        return "replaced" if former else "moved", id


def _is_called(record: Record | None, label: Label) -> bool:
    """Whether an image has the label's name already; one that another process has removed counts as such."""
    return record is None or _former(label, [record]) is not None


def _is_at(files: Reopener, source: str, digest: str) -> bool:
    try:
        files.open(source, digest)
    except ImageError:
        return False
    return True


def _former(label: Label, namesakes: Iterable[Record]) -> Record | None:
    """The image that has the name and the source until now."""
    of_source = (one for one in namesakes if one.source == label.source)
    return next((one for one in of_source if _SUFFIX.fullmatch(one.id.removeprefix(label.id))), None)


def _free_id(label: Label, taken: Container[str]) -> str:
    """The name itself, or with a part of the digest behind it where another source has it."""
    names = (label.id, f"{label.id}#{label.digest[:8]}", f"{label.id}#{label.digest}")
    return next((name for name in names if name not in taken), label.id)

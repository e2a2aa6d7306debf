"""Adding images: from what was given to vectors and records on disk, batch by batch.

images --intake--> arrivals --encoder, viewer--> vectors, states --one transaction--> catalog --> index
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.catalog import Catalog, NewImage
from zsqretrieval.following import Follower
from zsqretrieval.images import ImageLike, open_images
from zsqretrieval.intake import Arrival, Intake, Skipped
from zsqretrieval.protocols import Encoder
from zsqretrieval.types import Image
from zsqretrieval.viewing import Viewer

__all__ = ["AddReport", "Adder", "Progress"]

Progress: TypeAlias = Callable[[int], object]
"""Called with the number of images dealt with so far."""

_Fate: TypeAlias = Literal["added", "replaced", "known"]

_SUFFIX = re.compile(r"(#[0-9a-f]{8}([0-9a-f]{56})?)?")  # what follows an id that was taken


@dataclass(frozen=True, slots=True)
class AddReport:
    """What became of the images given to :meth:`Retriever.add <zsqretrieval.retriever.Retriever.add>`.

    Every one is counted exactly once.

    Attributes:
        added: ids of the images that are new.
        replaced: ids of the images whose file had changed since they were added.
        known: how many were in the album already, byte for byte.
        skipped: those that could not be read, with the reason.
        seconds: time taken.
    """

    added: tuple[str, ...]
    replaced: tuple[str, ...]
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
        ids: dict[_Fate, list[str]] = {"added": [], "replaced": [], "known": []}
        with Intake(open_images(images), batch_size, self._known) as intake:
            for batch in intake:
                for fate, id in self._store(batch):
                    ids[fate].append(id)
                if progress is not None:
                    progress(sum(map(len, ids.values())) + intake.known + len(intake.skipped))
        return AddReport(
            added=tuple(ids["added"]),
            replaced=tuple(ids["replaced"]),
            known=len(ids["known"]) + intake.known,
            skipped=tuple(intake.skipped),
            seconds=time.perf_counter() - begin,
        )

    def _known(self, digests: list[str]) -> Container[str]:
        """Of some digests, those that need not be decoded."""
        known = self._catalog.known_digests(digests)
        return known if self._viewer is None else known.keys() - self._viewer.blind_to(known)

    def _store(self, images: Sequence[Arrival]) -> list[tuple[_Fate, str]]:
        """Encode images, write them down in one transaction, and let the index follow."""
        if not images:
            return []
        pixels = {image.digest: Image(image.pixels, image.source) for image in images}
        known = self._catalog.known_digests(pixels)  # these are here for the sake of their states
        new = [image for image in images if image.digest not in known]
        vectors = self._encoder.encode_image([pixels[one.digest] for one in new], batch_size=len(images))
        keeping = contextlib.nullcontext() if self._viewer is None else self._viewer.keeping(pixels)
        with keeping, self._catalog.transaction():
            fates = [self._write(image, vector) for image, vector in zip(new, vectors, strict=True)]
        self._follower.follow()
        return fates + [("known", image.id) for image in images if image.digest in known]

    def _write(self, image: Arrival, vector: NDArray[np.float32]) -> tuple[_Fate, str]:
        if self._catalog.known_digests([image.digest]):  # another thread or process was faster
            return "known", image.id
        namesakes = self._catalog.namesakes(image.id)
        former = next(
            (
                one
                for one in namesakes
                if one.source == image.source and _SUFFIX.fullmatch(one.id.removeprefix(image.id))
            ),
            None,
        )
        if former is not None:
            self._catalog.remove([former.key])
        taken = {one.id for one in namesakes}
        names = (image.id, f"{image.id}#{image.digest[:8]}", f"{image.id}#{image.digest}")
        id = former.id if former else next((name for name in names if name not in taken), image.id)
        row = NewImage(
            id=id,
            source=image.source,
            width=image.pixels.width,
            height=image.pixels.height,
            bytes=image.bytes,
            digest=image.digest,
            vector=vector,
            caption=image.caption,
            metadata=image.metadata,
        )
        self._catalog.add([row])
        return "replaced" if former else "added", id

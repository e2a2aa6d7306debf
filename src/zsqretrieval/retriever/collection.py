"""What is done with an album as a whole: vectors in and out, folders, other albums, another encoder."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike

from zsqretrieval._util.checks import check_counts, check_sequence, check_shares
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.duplicates import near_duplicates
from zsqretrieval.album.embeddings import (
    ExportReport,
    Write,
    add_blocks,
    check_fingerprint,
    export,
    folder_blocks,
    given_block,
    write_rows,
)
from zsqretrieval.album.features import sweep_all
from zsqretrieval.album.folders import SyncReport, checked_folders, rehearsal, sync_folders
from zsqretrieval.album.info import find_catalog
from zsqretrieval.album.ingest import AddReport
from zsqretrieval.album.merge import MergeReport, merge
from zsqretrieval.album.reencode import ReencodeReport, Reencoding
from zsqretrieval.album.removal import RemovalReport, extended, removal_list
from zsqretrieval.encoders.checked import encode_texts
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError
from zsqretrieval.indexes.tuning import Tuning
from zsqretrieval.laion.hashes import read_names
from zsqretrieval.laion.safety import Denied, SafetyLike
from zsqretrieval.plugins import check_empty_index, check_part, describe
from zsqretrieval.presets import Calibration
from zsqretrieval.protocols import Encoder, Index
from zsqretrieval.retriever import opening
from zsqretrieval.retriever.album import Album
from zsqretrieval.retriever.opening import MilvusParts
from zsqretrieval.search.expansion import QuestionIndex
from zsqretrieval.search.store import count_found, find_listed
from zsqretrieval.types import MAX_PIXELS, Progress

_TUNING_TEXTS = 500


class Collection(Album):
    """An album, and what changes many of its images at once."""

    def add_embeddings(
        self,
        vectors: ArrayLike | str | os.PathLike[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | str | os.PathLike[str] | None = None,
        sources: Sequence[str | os.PathLike[str]] | None = None,
        captions: Sequence[str | None] | None = None,
        fingerprint: str | None = None,
        safety: SafetyLike = "auto",
        batch_size: int = 4096,
        progress: Progress | None = None,
    ) -> AddReport:
        """Add images by vectors that the album's encoder made elsewhere; see docs/own-vectors.md.

        A row whose source names an image that can be read is an image like any other. Any other row takes
        part in the first stage only: a search that re-ranks puts it last, with a warning. A row whose id and
        vector, at the precision given, are in the album is known, and takes new metadata and captions.

        Args:
            vectors: float [n, dim], rows of length 1 to 1 %, as they are encoded; or a folder of embeddings
                (``img_emb/*.npy`` and ``metadata/*.parquet``), as a path or a URL of fsspec such as
                ``s3://bucket/folder``, which has all the rest. Vectors in memory are checked before anything
                is written; those in files (also ``np.memmap``) batch by batch.
            ids: n names; else the sources, else the beginning of a digest.
            metadata: n mappings of JSON values; for a folder of embeddings, the folder of its tables if it is
                elsewhere.
            sources: n paths, URLs or other texts; the ids when None.
            captions: n texts.
            fingerprint: ``encoder.fingerprint`` of the encoder that made the vectors, to be checked.
            safety: rules for rows of LAION (docs/laion.md). ``"auto"`` applies the default ones, which deny
                what is not known to be safe, if the rows have columns of LAION;
                :class:`~zsqretrieval.laion.safety.Safety` applies to all rows; None applies none. The album's
                removal list always holds.
            batch_size: rows per transaction, >= 1.
            progress: called after each batch; may raise to stop.

        Raises:
            MismatchError: another dim or fingerprint than the album's; nothing was added.
            InvalidInputError: a vector is zero, not finite or not of length 1, which names the row and says
                what was added; other arguments do not fit, or there is no such folder.
            IntegrityError: a file is damaged, or has other numbers of vectors and rows.
            MissingDependencyError: a folder without pyarrow.
        """
        denied: Denied = {}
        write: Write
        if isinstance(self._given, MilvusParts):
            encoder, removed, write = self._given.encoder, None, self._given.store.write
        else:
            adder = self._adder()
            encoder, removed, write = adder.encoder, adder.removed, partial(write_rows, adder)
        if fingerprint is not None:
            check_fingerprint(fingerprint, encoder, "the vectors")
        if isinstance(vectors, str | os.PathLike):
            if not isinstance(metadata, str | os.PathLike | None) or any(
                one is not None for one in (ids, sources, captions)
            ):
                raise InvalidInputError(
                    "a folder of embeddings has its own ids, metadata, sources and captions"
                )
            blocks = folder_blocks(vectors, metadata, encoder, safety, removed, denied)
        elif isinstance(metadata, str | os.PathLike):
            raise InvalidInputError("metadata of arrays must be a list of mappings, not a path")
        else:
            blocks = [given_block(vectors, ids, metadata, sources, captions, safety, removed, denied)]
        return add_blocks(blocks, encoder, write, denied=denied, batch_size=batch_size, progress=progress)

    def remove_listed(
        self, names: str | os.PathLike[str] | Sequence[str], *, progress: Progress | None = None
    ) -> RemovalReport:
        """Remove the images that a list names, for good, and save; see docs/laion.md.

        The names join the album's removal list, and nothing on it can be added again; a collection of Milvus
        keeps none, so give them to ``Safety(removed=...)`` when you add to it. Vectors, records,
        questions, kept bytes and cached features are deleted, from the index, too, and overwritten on disk. A
        search for each of the removed vectors shows that they are gone.

        Args:
            names: a file (:func:`~zsqretrieval.laion.hashes.read_names`), or names: URLs; MD5 or SHA-256, of
                bytes or of a URL; uids; LAION's hashes.
            progress: called after each batch; may raise to stop. The call can be repeated.

        Raises:
            InvalidInputError: it is no such file, or has no names; or a name is no text.
            AlbumError: the album is in memory, or the disk refuses.
            IntegrityError: a search still finds a removed image.
        """
        begin = time.perf_counter()
        given = read_names(Path(names)) if isinstance(names, str | os.PathLike) else list(names or ())
        if not given or not all(isinstance(name, str) and name.strip() for name in given):
            raise InvalidInputError(
                "names must be texts, at least one: URLs, digests, uids, or numbers as texts"
            )
        given = [name.strip() for name in given]
        on_server = isinstance(self._given, MilvusParts)
        if self._path is None and not on_server:
            raise AlbumError("an album in memory keeps no removal list; save(path) it first")
        with tempfile.TemporaryDirectory() as temporary:
            removed = extended(self._path or Path(temporary), given)
            records = find_listed(self._store, removed, progress)
            listed = len(removed)
        here, vectors = self._store.stored([one.key for one in records])
        records = [records[n] for n in here]  # without those that others have just removed
        keys = [one.key for one in records]
        before = count_found(self._store, keys, vectors)
        self.remove([one.id for one in records])
        if self._path is not None:  # also without any: an interrupted call may have removed them
            self._index.compact()
            cast(QuestionIndex, self._question_index).compact()
            sweep_all(self._path, self._catalog.known_digests, every=True)
        self.save()
        if not on_server:
            self._catalog.flush()
        after = count_found(self._store, keys, vectors)
        if after or self._store.stored(keys)[0]:
            raise IntegrityError(
                f"{self._path or self}: a search still finds {after} removed images; delete the folder of "
                "its index and open the album again"
            )
        return RemovalReport(listed, len(keys), before, after, len(self), time.perf_counter() - begin)

    def remove_duplicates(self, cosine: float, *, progress: Progress | None = None) -> int:
        """Remove images that are near-duplicates of an earlier one; returns how many.

        The first one stays; see :func:`~zsqretrieval.album.duplicates.near_duplicates`.

        Args:
            cosine: similarity from which two images count as one, in (0, 1].
            progress: called after each batch; may raise to stop, before anything is removed.

        Raises:
            InvalidInputError: ``cosine`` is out of range.
        """
        check_shares(above_zero=True, cosine=cosine)
        found = self._index.ask(lambda index: near_duplicates(self._catalog, index, cosine, progress))
        self.remove([one.id for one in self._catalog.records(found)])
        return len(found)

    def tune(self, texts: Sequence[str] | None = None, *, recall: float = 0.95, k: int = 10) -> Tuning:
        """Let the index choose the settings that reach a recall in the least time, by measuring.

        :meth:`save` keeps them. See :meth:`CompressedIndex.tune
        <zsqretrieval.indexes.compressed.CompressedIndex.tune>`.

        Args:
            texts: a few hundred questions that people would ask; None for 500 stored questions of the album,
                or else captions.
            recall: share of the true k nearest images that is to be found, in (0, 1].
            k: results per question.

        Raises:
            InvalidInputError: the index has nothing to tune, there are no texts, or a number is out of range.
        """
        if not callable(getattr(self._index.like, "tune", None)):
            raise InvalidInputError(
                f"a {type(self._index.like).__name__} is not tuned by measuring; make the album with "
                "index='compressed'"
            )
        check_sequence([] if texts is None else texts, "texts")
        vectors = encode_texts(self.encoder, self._own_texts() if texts is None else texts)
        tuned: Tuning = self._index.ask(lambda index: cast(Any, index).tune(vectors, recall, k=k))
        return tuned

    def _own_texts(self) -> list[str]:
        """Stored questions, or else captions: at most 500 of them, the same ones each time."""
        parts = self._catalog.questions.vector_texts()
        texts = sorted({text for part in parts for text in part.values()})
        texts = texts or sorted({one.caption for one in self._catalog.iter_records() if one.caption})
        if not texts:
            raise InvalidInputError(f"{self} has no questions and no captions to measure with; give texts")
        drawn = np.random.default_rng(0).permutation(len(texts))[:_TUNING_TEXTS]
        return [texts[n] for n in drawn]

    def export_embeddings(
        self,
        path: str | os.PathLike[str],
        *,
        dtype: Literal["float16", "float32"] = "float16",
        shard_size: int = 100_000,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Write all vectors and records to a new folder, as clip-retrieval does; see docs/own-vectors.md.

        The folder appears when it is whole. :meth:`add_embeddings` reads it.

        Args:
            path: the new folder.
            dtype: of the vectors; float16 halves the size, and changes cosines by about 0.0005.
            shard_size: rows per file, >= 1; held in memory together.
            progress: called after each batch; may raise to stop.

        Raises:
            AlbumError: ``path`` exists, or the disk refuses.
            InvalidInputError: another dtype, or ``shard_size`` < 1.
            MissingDependencyError: there is no pyarrow.
        """
        return export(
            self._catalog, self.encoder.fingerprint, Path(path).absolute(),
            dtype=dtype, shard_size=shard_size, progress=progress,
        )  # fmt: skip

    def sync(
        self,
        folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        dry_run: bool = False,
        copy: bool = False,
        exif: bool = True,
        safety: SafetyLike = "auto",
        batch_size: int = 32,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> SyncReport:
        """Bring the album in step with folders: as :meth:`add`, then remove what is gone from there.

        An image is removed if its source is in one of the folders and its file, or member of a tar that can
        be read, does not exist any more. Images from elsewhere stay, and so do those whose file cannot be
        read. All files are read and hashed, as by :meth:`add`.

        Args:
            folders: one or more folders; a file that was moved between them is followed.
            dry_run: change nothing, and report the same; new images are decoded, but not encoded.
            copy: as for :meth:`add`.
            exif: as for :meth:`add`, of images that are new.
            safety: as for :meth:`add`.
            batch_size: as for :meth:`add`.
            max_pixels: as for :meth:`add`.
            progress: called after each batch; may raise to stop.

        Raises:
            InvalidInputError: a folder is missing or cannot be listed. Nothing has changed.
            AlbumError: a folder is empty, but the album has images from there: perhaps its disk is not
                mounted. Nothing has changed. Or as :meth:`add`.
        """
        check_counts(batch_size=batch_size, max_pixels=max_pixels)
        places = checked_folders(folders)
        settings: dict[str, Any] = {
            "exif": exif, "safety": safety, "batch_size": batch_size, "max_pixels": max_pixels,
        }  # fmt: skip
        if dry_run:
            with rehearsal(self._catalog) as adder:
                adder.removed = removal_list(self._path)
                return replace(sync_folders(adder, places, progress, **settings), dry_run=True)
        report = sync_folders(self._adder(), places, progress, copy=copy, **settings)
        self._index.follow()
        return report

    def merge(
        self, other: str | os.PathLike[str] | Album, *, progress: Progress | None = None
    ) -> MergeReport:
        """Take over the images of another album, which stays as it is; nothing is encoded.

        With records and vectors come kept bytes, stored questions, and cached features if both albums are on
        disk and have the same generator. An image with the bytes of one of this album is known, and only gets
        the questions, features and kept bytes that it lacks. An id that another image has here gets a part of
        the digest appended, as by :meth:`add`. An interrupted call can be repeated.

        Args:
            other: an album's directory, or a retriever.
            progress: called after each batch; may raise to stop.

        Raises:
            MismatchError: the other album has another encoder; names both.
            InvalidInputError: it is this album.
            AlbumError: there is no album, or the disk is full; earlier batches stay.
        """
        folder = other._path if isinstance(other, Album) else opening.album_path(other).absolute()
        if other is self or (
            folder is not None and self._path is not None and folder.resolve() == self._path.resolve()
        ):
            raise InvalidInputError(
                f"{self._path or 'this album'} cannot be merged with itself; name another"
            )
        with contextlib.ExitStack() as stack:
            if isinstance(other, Album):
                theirs = other._catalog
            else:
                theirs = stack.enter_context(Catalog.open(find_catalog(cast(Path, folder))))
            report = merge(self._catalog, theirs, (self._path, folder), progress)
        self._index.follow()
        return report

    def reencode(
        self,
        encoder: Encoder,
        *,
        index: Index | None = None,
        calibration: Calibration | None = None,
        drop: bool = False,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> ReencodeReport:
        """Encode all images and retained questions with another encoder, which becomes the album's.

        Searches in other threads use the old encoder until all is ready, and wait during one transaction
        that replaces all vectors. An interrupted call changes nothing, and continues when repeated.
        Another process that has the album open gets an AlbumError from then on; it has to open it again.
        The round trip of questions is not repeated: ``questions.filter()`` does that.

        Args:
            encoder: the new encoder.
            index: an empty index for it; when None, one of the album's kind and settings.
            calibration: constants for the new encoder and the generator; the defaults when None.
            drop: remove images that cannot be opened or encoded, in place of an error.
            batch_size: images encoded together, >= 1.
            progress: called after each batch; may raise to stop.

        Raises:
            InvalidInputError: images cannot be opened or encoded, which names them; it is the album's
                encoder; or the index has no settings to make another from. Nothing has changed.
            MismatchError: the index is not for that encoder.
            AlbumError: the disk is full; nothing has changed.
        """
        check_part("encoder", encoder)
        check_counts(batch_size=batch_size)
        parts = self._parts
        if encoder.fingerprint == parts.encoder.fingerprint:
            raise InvalidInputError(
                f"{encoder.fingerprint!r} is the album's encoder already; pass another one"
            )
        index = opening.index_like(parts.index.like, encoder) if index is None else index
        check_empty_index(encoder, index)
        calibration = calibration or Calibration()
        settings = {
            **parts.catalog.settings,
            "encoder": encoder.fingerprint,
            "encoder_part": describe("encoder", encoder),
            "index": describe("index", index),
            "calibration": calibration.describe(),
        }
        work = Reencoding(parts.catalog, encoder, index, self._path, batch_size, progress)
        with self._saving:
            catalog, sync, report = work.run(parts.index, settings, drop=drop)
            parts = replace(parts, encoder=encoder, catalog=catalog, index=sync, calibration=calibration)
            self._attach(replace(parts, path=self._path))
        return report

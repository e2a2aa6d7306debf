"""Making and opening albums: the parts of a retriever, new or restored from a catalog."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from zsqretrieval.album.candidates import StatesMode, Viewer
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.info import CATALOG, check_files, find_catalog
from zsqretrieval.album.milvus import MilvusStore
from zsqretrieval.album.settings import AlbumSettings, PartName, SavedIndex
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, MismatchError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.indexes.milvus import Milvus
from zsqretrieval.plugins import (
    Kind,
    check_empty_index,
    check_part,
    describe,
    names_nothing,
    new_index,
    restore,
)
from zsqretrieval.presets import PRESETS, Calibration, Preset
from zsqretrieval.protocols import Configurable, Encoder, Generator, Index
from zsqretrieval.search.store import AlbumStore


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a retriever."""

    encoder: Encoder
    catalog: Catalog
    index: IndexSync  # of images, in step with the catalog
    viewer: Viewer | None  # gives the generator its inputs; None without a generator
    calibration: Calibration  # of encoder and generator
    path: Path | None  # directory of the album; None while it is in memory
    trusted: bool  # whether any part that the album names may be loaded

    @property
    def store(self) -> AlbumStore:
        """The images, as a search needs them."""
        return AlbumStore(self.catalog, self.index)


@dataclass(frozen=True, slots=True)
class MilvusParts:
    """The parts of a retriever over a collection of Milvus."""

    encoder: Encoder
    store: MilvusStore
    viewer: Viewer | None
    calibration: Calibration


def new_parts(
    encoder: Encoder,
    index: Index | None,
    generator: Generator | LazyGenerator | None,
    path: Path | None,
    states: StatesMode,
    calibration: Calibration,
) -> Parts:
    """Make an album; arguments and errors as for :class:`~zsqretrieval.retriever.Retriever`."""
    check_part("encoder", encoder)
    index = new_index("compressed", encoder) if index is None else index
    check_empty_index(encoder, index)
    viewer = Viewer.of(generator, states, path)
    if path is not None:
        make_folder(path)
    settings = {
        "encoder": encoder.fingerprint,
        "encoder_part": describe("encoder", encoder),
        "index": describe("index", index),
        **described_parts(viewer, calibration),
    }
    catalog = Catalog.create(None if path is None else path / CATALOG, dim=encoder.dim, settings=settings)
    return Parts(encoder, catalog, IndexSync(catalog, catalog.log, index), viewer, calibration, path, True)


def preset_parts(preset: Preset, path: Path | None, states: StatesMode) -> Parts:
    """Make an album of a preset's parts."""
    generator = preset.make_generator()
    encoder = preset.make_encoder()
    return new_parts(encoder, new_index(preset.index, encoder), generator, path, states, preset.calibration)


def open_parts(
    path: Path,
    preset: Preset | None,
    encoder: Encoder | None,
    index: Index | None,
    generator: Generator | LazyGenerator | None,
    states: StatesMode | Literal["auto"],
    calibration: Calibration | None,
    trust_parts: bool,
) -> Parts:
    """Open an album; arguments and errors as for :meth:`~zsqretrieval.retriever.Retriever.open`."""
    folder = path.absolute()
    if preset is not None and not os.path.lexists(folder / CATALOG):
        if any(part is not None for part in (encoder, index, generator, calibration)):
            raise InvalidInputError(
                f"{folder} holds no album yet; make one with Retriever(encoder, index, generator, path=...), "
                "or from a preset alone"
            )
        try:
            return preset_parts(preset, folder, "lazy" if states == "auto" else states)
        except AlbumError:
            if not os.path.lexists(folder / CATALOG):
                raise  # else another process has just made it
    catalog = Catalog.open(find_catalog(path).absolute())  # an error names the path as it was given
    path = path.absolute()
    try:
        settings = AlbumSettings.read(catalog)
        index_part = _index_part(catalog, settings)
        if preset is not None:
            preset.check_album(settings.encoder_part, path)
        if not trust_parts:
            _check_named(settings, encoder, generator, calibration, preset, path)
            if index is None and index_part is not None:
                _check_trusted("index", index_part, preset, path)
        encoder = _encoder_of(settings, encoder, catalog.dim, path)
        if index is None:
            empty = restore("index", index_part, path)
            sync = IndexSync.saved(catalog, catalog.log, encoder, path, empty=empty)
        else:
            check_empty_index(encoder, index)
            sync = IndexSync(catalog, catalog.log, index)
        viewer = Viewer.restore(settings, generator, states, path)
        calibration = calibration or Calibration.restore(settings.calibration, path)
    except BaseException:
        catalog.close()
        raise
    return Parts(encoder, catalog, sync, viewer, calibration, path, trust_parts)


def open_milvus(
    place: Milvus,
    preset: Preset | None,
    encoder: Encoder | None,
    index: Index | None,
    generator: Generator | LazyGenerator | None,
    states: StatesMode | Literal["auto"],
    calibration: Calibration | None,
    trust_parts: bool,
) -> MilvusParts:
    """Open a collection; if there is none, make it with the encoder or preset; as :func:`open_parts`."""
    if index is not None or states == "disk":
        raise InvalidInputError(
            "a collection of Milvus has its own index and caches no image features: leave out index and "
            "states='disk'; its parameters are those of zsqretrieval.indexes.milvus.Milvus (docs/milvus.md)"
        )
    store = MilvusStore(place)
    try:
        if not store.open():
            if preset is None and encoder is None:
                raise AlbumError(f"{store.where} does not exist; give a preset or an encoder to make it")
            encoder = encoder or cast(Preset, preset).make_encoder()
            check_part("encoder", encoder)
            generator = generator or (preset.make_generator() if preset else None)
            calibration = calibration or (preset.calibration if preset else Calibration())
            described = {
                "encoder": encoder.fingerprint,
                "encoder_part": describe("encoder", encoder),
                "index": None,
                **described_parts(Viewer.of(generator, None, None), calibration),
            }
            store.create(encoder.dim, described)
        settings = AlbumSettings.read(store)
        if preset is not None and encoder is None:
            preset.check_album(settings.encoder_part, store.where)
        if not trust_parts:
            _check_named(settings, encoder, generator, calibration, preset, store.where)
        encoder = _encoder_of(settings, encoder, store.dim, store.where)
        viewer = Viewer.restore(settings, generator, None, None)
        calibration = calibration or Calibration.restore(settings.calibration, store.where)
    except BaseException:
        store.close()
        raise
    return MilvusParts(encoder, store, viewer, calibration)


def described_parts(viewer: Viewer | None, calibration: Calibration) -> dict[str, Any]:
    """The settings of a generator and a calibration, as they are saved."""
    return {"generator": Viewer.describe(viewer), "calibration": calibration.describe()}


def _check_named(
    settings: AlbumSettings, encoder: object, generator: object, calibration: object,
    preset: Preset | None, path: object,
) -> None:  # fmt: skip
    """Check the parts that an album names and nobody gives, all but the index; as :func:`_check_trusted`."""
    named: list[tuple[Kind, object, Any]] = [
        ("encoder", encoder, settings.encoder_part),
        ("generator", generator, settings.generator),
        *(("fusion", calibration, one) for one in (settings.calibration or {}).values()),
    ]
    for kind, given, part in named:
        if given is None and isinstance(part, dict):
            _check_trusted(kind, cast(PartName, part), preset, path)


def _encoder_of(settings: AlbumSettings, encoder: Encoder | None, dim: int, path: object) -> Encoder:
    """The encoder of an album, given or restored; a MismatchError if its vectors are another's."""
    if encoder is None:
        encoder = cast(Encoder, restore("encoder", settings.encoder_part, path))
    check_part("encoder", encoder)
    if settings.encoder != encoder.fingerprint:
        raise MismatchError(
            f"{path} was made with encoder {settings.encoder!r}, but this encoder is "
            f"{encoder.fingerprint!r}: their vectors cannot be compared; pass that encoder, or add the "
            "images to a new album"
        )
    if dim != encoder.dim:
        raise MismatchError(
            f"{path} has vectors of dim {dim}, its encoder makes vectors of dim {encoder.dim}; "
            "restore a backup"
        )
    return encoder


def index_like(index: Index, encoder: Encoder) -> Index:
    """An empty index of the same class and settings for another encoder.

    Raises:
        InvalidInputError: the index cannot be made from settings.
    """
    if not isinstance(index, Configurable):
        raise InvalidInputError(
            f"a {type(index).__name__} has no settings to make another from; pass an empty one: index=..."
        )
    own = {"dim": encoder.dim, "fingerprint": encoder.fingerprint}
    config = {name: own.get(name, value) for name, value in index.config.items()}
    return cast(Index, type(index).from_config(config))


def _index_part(catalog: Catalog, settings: AlbumSettings) -> PartName | None:
    """The description of the album's index, as it was saved or made."""
    with contextlib.suppress(IntegrityError):  # of which IndexSync warns
        saved = SavedIndex.read(catalog, "index")
        if saved is not None:
            return saved.part
    return settings.index


def pack_parts(parts: Parts) -> tuple[Any, ...]:
    """The arguments of :func:`unpack_parts`: parts by their descriptions, or else the objects themselves.

    Raises:
        AlbumError: the album is in memory, or its index cannot be described.
    """
    if parts.path is None:
        raise AlbumError("an album in memory cannot be pickled; save(path) it first, which puts it on disk")
    index = describe("index", parts.index.like)
    if index is None:
        raise AlbumError(
            f"{parts.path} cannot be pickled: its {type(parts.index.like).__name__} is not a plugin; open "
            "it in the other process with Retriever.open(path, index=...)"
        )
    if index == _index_part(parts.catalog, AlbumSettings.read(parts.catalog)):
        index = None  # the other process loads the saved one
    viewer = (parts.viewer.generator, parts.viewer.states) if parts.viewer else (None, None)
    encoder = describe("encoder", parts.encoder) or parts.encoder
    return parts.path, encoder, index, *viewer, parts.calibration, parts.trusted


def unpack_parts(path: Path, encoder: Any, index: Any, *given: Any) -> Parts:
    """Open the album of :func:`pack_parts` again; errors as for :func:`open_parts`."""
    if isinstance(encoder, dict):
        encoder = restore("encoder", encoder, path)
    return open_parts(path, None, encoder, index and restore("index", index, path), *given)


def _check_trusted(kind: Kind, part: PartName, preset: Preset | None, path: object) -> None:
    """Refuse to load what only the album names.

    A part is restored if all its settings are harmless (:func:`~zsqretrieval.plugins.names_nothing`), apart
    from those of one of the library's presets, or of the caller's. The settings of a preset count together:
    its tag with another model could be a file.

    Raises:
        AlbumError: the album names a file, a repository or something unknown; says what.
    """
    name, config = part["plugin"], part["config"]
    for own in _own_settings(kind, name, preset):
        others = {setting: value for setting, value in config.items() if setting not in own}
        if config == {**others, **own} and names_nothing(kind, {"plugin": name, "config": others}):
            return
    wanted = ", ".join(f"{setting}={value!r}" for setting, value in config.items()) or "no settings"
    raise AlbumError(
        f"{path} asks for the {kind} {name!r} with {wanted}: whoever made the album may have chosen files or "
        "repositories that neither a preset nor you named. If you made it or trust them, say so: "
        f"Retriever.open(path, trust_parts=True), or --trust-parts on the command line; or pass your own "
        f"{kind}: Retriever.open(path, {'calibration' if kind == 'fusion' else kind}=...)"
    )


def _own_settings(kind: Kind, plugin: str, preset: Preset | None) -> Iterator[Mapping[str, Any]]:
    """Settings of a plugin that the library or the caller names."""
    yield {}
    if kind not in ("encoder", "generator"):
        return
    for one in [*PRESETS.values(), *([] if preset is None else [preset])]:
        own = one.encoder_config if kind == "encoder" else one.generator_config
        # A folder here that is called like a repository would be loaded in its place.
        repositories = [name for name in own.values() if isinstance(name, str) and "/" in name]
        hidden = one is not preset and any(Path(name).exists() for name in repositories)
        if plugin == getattr(one, kind) and not hidden:
            yield own


def album_path(path: str | os.PathLike[str]) -> Path:
    """The directory of an album as it was given.

    Raises:
        InvalidInputError: it is no path.
        AlbumError: no directory can have it.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise InvalidInputError(
            f"the path of an album must be a str or a pathlib.Path, not {type(path).__name__}"
        )
    with contextlib.suppress(UnicodeEncodeError):
        if os.fspath(path) and b"\0" not in os.fsencode(path):
            return Path(path)
    raise AlbumError(f"{os.fspath(path)!r} is not an album path; name a directory, such as './album'")


def make_folder(folder: Path) -> None:
    """Make the directory of an album.

    Raises:
        AlbumError: the system refuses, or :func:`~zsqretrieval.album.info.check_files`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AlbumError(f"cannot make the directory {folder}: {error.strerror or error}") from error
    check_files(folder)

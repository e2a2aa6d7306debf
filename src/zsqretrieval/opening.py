"""Making and opening albums: the parts of a retriever, new or restored from a catalog."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zsqretrieval.album.candidates import StatesMode, Viewer
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.info import CATALOG, find_catalog
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.errors import AlbumError, MismatchError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.plugins import check_empty_index, check_part, describe, new_index, restore
from zsqretrieval.presets import Calibration, Preset
from zsqretrieval.protocols import Encoder, Generator, Index


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a retriever."""

    encoder: Encoder
    catalog: Catalog
    index: IndexSync  # of images, in step with the catalog
    viewer: Viewer | None  # gives the generator its inputs; None without a generator
    calibration: Calibration  # of encoder and generator
    path: Path | None  # directory of the album; None while it is in memory


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
    index = new_index("hnsw", encoder) if index is None else index
    check_empty_index(encoder, index)
    viewer = Viewer.of(generator, states, path)
    if path is not None:
        make_folder(path)
    settings = {
        "encoder": encoder.fingerprint,
        "encoder_part": describe("encoder", encoder),
        "index": describe("index", index),
        "generator": Viewer.describe(viewer),
        "calibration": calibration.describe(),
    }
    catalog = Catalog.create(None if path is None else path / CATALOG, dim=encoder.dim, settings=settings)
    return Parts(encoder, catalog, IndexSync(catalog, catalog.log, index), viewer, calibration, path)


def preset_parts(preset: Preset, path: Path | None, states: StatesMode) -> Parts:
    """Make an album of a preset's parts."""
    generator = preset.make_generator()
    encoder = preset.make_encoder()
    return new_parts(encoder, new_index(preset.index, encoder), generator, path, states, preset.calibration)


def stored_parts(
    path: Path,
    preset: Preset | None,
    encoder: Encoder | None,
    index: Index | None,
    generator: Generator | LazyGenerator | None,
    states: StatesMode | Literal["auto"],
    calibration: Calibration | None,
) -> Parts:
    """Open an album; arguments and errors as for :meth:`~zsqretrieval.retriever.Retriever.open`."""
    catalog = Catalog.open(find_catalog(path).absolute())  # an error names the path as it was given
    path = path.absolute()
    try:
        if preset is not None:
            preset.check_album(catalog.settings.get("encoder_part"), path)
        if encoder is None:
            encoder = restore("encoder", catalog.settings.get("encoder_part"), path)
        check_part("encoder", encoder)
        if catalog.settings.get("encoder") != encoder.fingerprint:
            raise MismatchError(
                f"{path} was made with encoder {catalog.settings.get('encoder')!r}, but this encoder is "
                f"{encoder.fingerprint!r}: their vectors cannot be compared; pass that encoder, or add the "
                "images to a new album"
            )
        if index is None:
            sync = IndexSync.load(catalog, catalog.log, encoder, path)
        else:
            check_empty_index(encoder, index)
            sync = IndexSync(catalog, catalog.log, index)
        viewer = Viewer.restore(catalog.setting("generator"), generator, states, path)
        calibration = calibration or Calibration.restore(catalog.setting("calibration"), path)
        sync.update()
    except BaseException:
        catalog.close()
        raise
    return Parts(encoder, catalog, sync, viewer, calibration, path)


def make_folder(folder: Path) -> None:
    """Make the directory of an album; an AlbumError if the system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AlbumError(f"cannot make the directory {folder}: {error.strerror or error}") from error

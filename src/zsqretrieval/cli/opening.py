"""Making and opening retrievers with a progress bar over the download of weights, should there be one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsqretrieval.cli.console import bytes_bar
from zsqretrieval.errors import AlbumError

if TYPE_CHECKING:
    from zsqretrieval.protocols import Encoder
    from zsqretrieval.retriever import Retriever

__all__ = ["CATALOG", "album_facts", "fetch_weights", "new_encoder", "new_retriever", "open_album"]

CATALOG = "catalog.sqlite"
"""Name of the catalog in an album; see :mod:`zsqretrieval.retriever`."""


def new_retriever(preset: str, *, index: str | None = None, path: Path | None = None) -> Retriever:
    """A retriever from a preset, its weights fetched."""
    from zsqretrieval.parts import PRESETS
    from zsqretrieval.retriever import Retriever

    if preset in PRESETS:
        fetch_weights(PRESETS[preset].encoder)
    return Retriever.from_preset(preset, index=index, path=path)


def new_encoder(preset: str, *, weights: Path | None = None) -> Encoder:
    """The encoder of a preset, its weights fetched; or the mini encoder with a trained part of one's own."""
    from zsqretrieval.errors import InvalidInputError
    from zsqretrieval.parts import PRESETS, preset_parts

    if preset in PRESETS:
        fetch_weights(PRESETS[preset].encoder)
    if weights is None:
        return preset_parts(preset, "exact")[0]
    if preset != "mini":
        raise InvalidInputError(
            f"--weights is a trained part of the mini encoder, not of the preset {preset!r}"
        )
    from zsqretrieval.encoders.mini import MiniEncoder

    return MiniEncoder.from_pretrained(weights)


def open_album(path: Path) -> Retriever:
    """The album at ``path``, the weights of its encoder fetched."""
    from zsqretrieval.retriever import Retriever

    encoder = album_facts(path)["encoder"]["plugin"]
    if encoder is not None:
        fetch_weights(encoder)
    return Retriever.load(path)


def fetch_weights(model: str) -> None:
    """Bring the files of an embedded model into the cache; a name that is none needs nothing."""
    from zsqretrieval.weights import MODELS, fetch

    if model in MODELS:
        with bytes_bar() as progress:
            fetch(MODELS[model], progress=progress)


def album_facts(path: Path) -> dict[str, Any]:
    """What the catalog says of an album; reads no model and no index.

    Raises:
        AlbumError: there is no album.
    """
    from zsqretrieval.catalog import Catalog

    if not (path / CATALOG).is_file():
        raise AlbumError(f"{path} is not an album (it holds no {CATALOG}); make one with `zsq index`")
    with Catalog.open(path / CATALOG) as catalog:
        snapshot = catalog.get_meta("index")  # None until the index is first saved
        encoder = catalog.settings.get("encoder_part") or {}  # None when it is not a plugin
        index = (snapshot["part"] if snapshot else catalog.settings.get("index")) or {}
        folder = snapshot["folder"] if snapshot else None
        up_to_date = snapshot is not None and snapshot["position"] == asdict(catalog.position)
        return {
            "album": str(path.absolute()),
            "images": len(catalog),
            "encoder": {
                "plugin": encoder.get("plugin"),
                "config": encoder.get("config"),
                "dim": catalog.dim,
                "fingerprint": catalog.settings.get("encoder"),
            },
            "index": {
                "plugin": index.get("plugin"),
                "config": index.get("config"),
                "saved": folder is not None,
                "up_to_date": up_to_date,
            },
            "bytes_on_disk": {
                "catalog": _size(path.glob(f"{CATALOG}*")),
                "index": _size((path / folder).rglob("*")) if folder else 0,
            },
        }


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())

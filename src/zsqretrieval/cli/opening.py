"""Making and opening retrievers with a progress bar over the download of weights, should there be one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zsqretrieval.cli.console import bytes_bar

if TYPE_CHECKING:
    from zsqretrieval.protocols import Encoder
    from zsqretrieval.retriever import Retriever

__all__ = ["fetch_weights", "new_encoder", "new_retriever", "open_album"]


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
    from zsqretrieval.parts import PRESETS, preset_encoder

    if preset in PRESETS:
        fetch_weights(PRESETS[preset].encoder)
    if weights is None:
        return preset_encoder(preset)
    if preset != "mini":
        raise InvalidInputError(
            f"--weights is a trained part of the mini encoder, not of the preset {preset!r}"
        )
    from zsqretrieval.encoders.mini import MiniEncoder

    return MiniEncoder.from_pretrained(weights)


def open_album(path: Path) -> Retriever:
    """The album at ``path``, the weights of its encoder fetched."""
    from zsqretrieval.album import describe_album
    from zsqretrieval.retriever import Retriever

    encoder = describe_album(path).encoder.plugin
    if encoder is not None:
        fetch_weights(encoder)
    return Retriever.load(path)


def fetch_weights(model: str) -> None:
    """Bring the files of an embedded model into the cache; a name that is none needs nothing."""
    from zsqretrieval.weights import MODELS, fetch

    if model in MODELS:
        with bytes_bar() as progress:
            fetch(MODELS[model], progress=progress)

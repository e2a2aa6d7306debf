"""Make parts and open albums from command-line options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.album.candidates import StatesMode
    from zsqretrieval.presets import LazyGenerator
    from zsqretrieval.protocols import Encoder, Generator
    from zsqretrieval.retriever import Retriever

__all__ = [
    "encoder_config",
    "generator_config",
    "new_encoder",
    "new_generator",
    "new_retriever",
    "open_album",
    "preset_reader",
    "sees_once",
]


def new_retriever(
    preset: str,
    *,
    index: str | None = None,
    path: Path | None = None,
    states: StatesMode = None,
    encoder_weights: Path | None = None,
    generator_weights: Path | None = None,
) -> Retriever:
    """A retriever from a preset; the generator is made on first use."""
    from zsqretrieval.retriever import Retriever

    return Retriever.from_preset(
        preset,
        index=index,
        path=path,
        encoder_config=encoder_config(preset, encoder_weights),
        generator_config=generator_config(preset, generator_weights),
        states=states,
    )


def new_encoder(preset: str, *, weights: Path | None = None) -> Encoder:
    """The encoder of a preset, or with weights from a folder or file."""
    from zsqretrieval.presets import preset_encoder

    return preset_encoder(preset, encoder_config(preset, weights))


def new_generator(preset: str, *, weights: Path | None = None, prefix_cache_bytes: int = 0) -> Generator:
    """The generator of a preset, ready to read.

    Args:
        preset: its name.
        weights: in place of the preset's.
        prefix_cache_bytes: memory for what was read in earlier calls, if it can keep that.
    """
    reader = preset_reader(preset, weights=weights, prefix_cache_bytes=prefix_cache_bytes)
    if reader is None:
        raise _no_generator(preset)
    return reader.get()


def preset_reader(
    preset: str, *, weights: Path | None = None, prefix_cache_bytes: int = 0
) -> LazyGenerator | None:
    """The generator of a preset, made on first use; None when it has none."""
    from zsqretrieval.presets import PRESETS, preset_generator

    config = dict(generator_config(preset, weights))
    if prefix_cache_bytes and preset in PRESETS and PRESETS[preset].generator in ("mini", "kosmos"):
        config["prefix_cache_bytes"] = prefix_cache_bytes
    return preset_generator(preset, config=config)


def sees_once(preset: str) -> bool:
    """Whether the generator of a preset can keep what it sees in an image; tells without loading weights."""
    from zsqretrieval import plugins
    from zsqretrieval.presets import PRESETS

    name = PRESETS[preset].generator if preset in PRESETS else None
    return name is not None and hasattr(plugins.load("generator", name), "image_states")


def open_album(
    path: Path,
    *,
    reader: str | None = None,
    generator_weights: Path | None = None,
    reads: bool = False,
    states: StatesMode | Literal["auto"] = "auto",
) -> Retriever:
    """Open the album at ``path``.

    Args:
        path: the album's directory.
        reader: a preset whose generator, should it have one, and fusion stand in place of the album's.
        generator_weights: weights of that generator, in place of the preset's.
        reads: whether the generator will be needed.
        states: where image states are kept; ``"auto"`` as the album says.

    Raises:
        typer.BadParameter: there are weights of a generator, and no ``reader`` says of which.
        InvalidInputError: the generator will be needed, and ``reader`` has none.
    """
    from zsqretrieval.presets import preset_fusion, preset_generator
    from zsqretrieval.retriever import Retriever

    if generator_weights is not None and reader is None:
        raise typer.BadParameter("--generator-weights needs to know of which --preset; give that as well")
    if reads and reader is not None and preset_generator(reader) is None:
        raise _no_generator(reader)
    generator = preset_reader(reader, weights=generator_weights) if reader else None
    if reader and generator is not None:
        return Retriever.load(path, generator=generator, states=states, fusion=preset_fusion(reader))
    return Retriever.load(path, states=states)


def _no_generator(preset: str) -> InvalidInputError:
    return InvalidInputError(f"the preset {preset!r} has no generator; choose one that has")


def encoder_config(preset: str, weights: Path | None) -> Mapping[str, Any]:
    """The settings that make a preset's encoder take its weights from a folder or file."""
    from zsqretrieval.presets import PRESETS

    if weights is None or preset not in PRESETS:
        return {}
    _check_there(weights)
    path, plugin = str(weights.absolute()), PRESETS[preset].encoder
    if plugin == "clip":  # a folder says itself which architecture it holds
        return {"name": f"local-dir:{path}", "pretrained": None} if weights.is_dir() else {"pretrained": path}
    if plugin == "mini":
        return {"weights": path}
    raise InvalidInputError(f"the encoder {plugin!r} of the preset {preset!r} takes no weights of your own")


def generator_config(preset: str, weights: Path | None) -> Mapping[str, Any]:
    """The same for its generator."""
    from zsqretrieval.presets import PRESETS

    if weights is None or preset not in PRESETS:
        return {}
    _check_there(weights)
    plugin = PRESETS[preset].generator
    if plugin is None:
        raise InvalidInputError(f"the preset {preset!r} has no generator whose weights could be given")
    settings = {"mini": "weights", "kosmos": "name", "vlm": "name_or_path"}
    if plugin not in settings:
        raise InvalidInputError(
            f"the generator {plugin!r} of the preset {preset!r} takes no weights of your own"
        )
    return {settings[plugin]: str(weights.absolute())}


def _check_there(weights: Path) -> None:
    if not weights.exists():
        raise InvalidInputError(f"{weights}: no such folder or file of weights")

"""The parts of an album: which go together, and how it remembers them, by plugin name and settings."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, final

from typing_extensions import Self

from zsqretrieval import plugins
from zsqretrieval.errors import AlbumError, InvalidInputError, MismatchError
from zsqretrieval.protocols import Configurable, Encoder, Generator, Index
from zsqretrieval.search.fusion import Fusion, Maximum, ReciprocalRank, RerankOnly, WeightedSum

__all__ = [
    "PRESETS",
    "LazyGenerator",
    "Preset",
    "check_part",
    "check_parts",
    "describe",
    "describe_fusion",
    "empty_like",
    "new_index",
    "preset_encoder",
    "preset_fusion",
    "preset_generator",
    "preset_index",
    "restore",
    "restore_fusion",
]

_FUSIONS: Mapping[str, type[RerankOnly] | type[WeightedSum] | type[Maximum] | type[ReciprocalRank]] = {
    "rerank_only": RerankOnly,
    "weighted_sum": WeightedSum,
    "maximum": Maximum,
    "reciprocal_rank": ReciprocalRank,
}


@dataclass(frozen=True, slots=True)
class Preset:
    """Parts that go together.

    Attributes:
        encoder: plugin name.
        encoder_config: settings of the encoder; what is left out has the encoder's defaults.
        index: plugin name.
        generator: plugin name; None for the first stage alone.
        generator_config: settings of the generator; what is left out has the generator's defaults.
        fusion: how the generator's scores join the encoder's, unless a search says otherwise.
    """

    encoder: str
    encoder_config: Mapping[str, Any] = field(default_factory=dict)
    index: str = "hnsw"
    generator: str | None = None
    generator_config: Mapping[str, Any] = field(default_factory=dict)
    fusion: Fusion = field(default_factory=WeightedSum)


_CLIP = {"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
_CLIP_L14 = {"name": "ViT-L-14", "pretrained": "laion2b_s32b_b82k"}
_KOSMOS2 = {"name": "microsoft/kosmos-2-patch14-224"}

PRESETS: Mapping[str, Preset] = {
    "mini": Preset(
        "mini", generator="mini", fusion=WeightedSum(weight=1.5, scale="raw", first_stage_scale=100.0)
    ),
    "clip": Preset("clip", _CLIP),
    "clip-kosmos2": Preset("clip", _CLIP, generator="kosmos", generator_config=_KOSMOS2),
    "clip-l14-kosmos2": Preset("clip", _CLIP_L14, generator="kosmos", generator_config=_KOSMOS2),
}
"""The presets by name."""


@final
class LazyGenerator:
    """A generator that is made on its first use, so that work which needs none loads none.

    Args:
        plugin: plugin name.
        config: its settings; what is left out has the generator's defaults.
    """

    def __init__(self, plugin: str, config: Mapping[str, Any] | None = None) -> None:
        self._plugin, self._config = plugin, dict(config or {})
        self._made: Generator | None = None
        self._lock = threading.RLock()

    @classmethod
    def of(cls, generator: Generator) -> Self:
        """A generator that is made already.

        Raises:
            InvalidInputError: it is none.
        """
        check_part("generator", generator)
        part = describe("generator", generator) or {"plugin": "", "config": {}}
        lazy = cls(part["plugin"], part["config"])
        lazy._made = generator
        return lazy

    @property
    def part(self) -> dict[str, Any] | None:
        """What makes it again, JSON-serialisable; None when it is not a plugin with settings."""
        return {"plugin": self._plugin, "config": self._config} if self._plugin else None

    @property
    def made(self) -> Generator | None:
        """The generator if it is made already."""
        return self._made

    def get(self) -> Generator:
        """The generator, made now if need be.

        Raises:
            InvalidInputError: no installed package offers the plugin.
            WeightsError: its weights are neither cached nor to be fetched.
        """
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = cast(Generator, plugins.create("generator", self._plugin, self._config))
        return self._made

    @contextmanager
    def using(self) -> Iterator[Generator]:
        """The generator, for one thread at a time: it keeps all cores busy by itself."""
        with self._lock:
            yield self.get()


def preset_encoder(name: str, config: Mapping[str, Any] | None = None) -> Encoder:
    """Make the encoder of a preset.

    Args:
        name: a key of :data:`PRESETS`.
        config: settings that differ from the preset's.

    Raises:
        InvalidInputError: no such preset.
    """
    preset = _preset(name)
    return cast(
        Encoder, plugins.create("encoder", preset.encoder, {**preset.encoder_config, **(config or {})})
    )


def preset_index(name: str, encoder: Encoder, index: str | None = None) -> Index:
    """Make an empty index for an encoder: the preset's, or that of another plugin name.

    Raises:
        InvalidInputError: no such preset or index.
    """
    return new_index(index or _preset(name).index, encoder)


def preset_generator(
    name: str, generator: str | None = "auto", config: Mapping[str, Any] | None = None
) -> LazyGenerator | None:
    """The generator of a preset, not made yet; None when there is none.

    Args:
        name: a key of :data:`PRESETS`.
        generator: plugin name of another generator; ``"auto"`` is the preset's, None is none.
        config: settings that differ from the preset's, or from the defaults of another generator.

    Raises:
        InvalidInputError: no such preset or generator, or settings for a generator that there is not.
    """
    preset = _preset(name)
    plugin = preset.generator if generator == "auto" else generator
    if plugin is None:
        if config:
            raise InvalidInputError(f"generator_config {dict(config)} needs a generator; name one as well")
        return None
    if generator != "auto" and plugin not in plugins.available("generator"):
        plugins.load("generator", plugin)  # which says what there is
    settings = preset.generator_config if plugin == preset.generator else {}
    return LazyGenerator(plugin, {**settings, **(config or {})})


def preset_fusion(name: str, generator: str | None = "auto") -> Fusion:
    """How a preset joins the scores of its encoder and its generator.

    Args:
        name: a key of :data:`PRESETS`.
        generator: plugin name of another generator, for which the preset's fusion was not made: then it is
            ``WeightedSum()``. ``"auto"`` is the preset's.

    Raises:
        InvalidInputError: no such preset.
    """
    preset = _preset(name)
    return preset.fusion if generator in ("auto", preset.generator) else WeightedSum()


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise InvalidInputError(f"there is no preset {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def new_index(name: str, encoder: Encoder) -> Index:
    """An empty index for an encoder's vectors, of the plugin's default settings."""
    return cast(Index, plugins.load("index", name)(encoder.dim, fingerprint=encoder.fingerprint))


def empty_like(index: Index) -> Index:
    """An empty index of the same kind and settings.

    Raises:
        AlbumError: its class cannot be made anew from settings.
    """
    if not isinstance(index, Configurable):
        raise AlbumError(
            f"a change to the {type(index).__name__} was interrupted, and it has no config to make another "
            "from; open the album again with an empty one"
        )
    return cast(Index, type(index).from_config(index.config))


_MEMBERS: Mapping[plugins.Kind, tuple[str, ...]] = {
    "encoder": ("dim", "fingerprint", "encode_image", "encode_text"),
    "index": ("dim", "fingerprint", "search"),
    "generator": ("fingerprint", "log_likelihood"),
}


def check_part(kind: plugins.Kind, part: object) -> None:
    """Refuse what is no encoder, index or generator, before it becomes an AttributeError from somewhere.

    Raises:
        InvalidInputError: it is a class, a name, or lacks a member; names those.
    """
    if isinstance(part, type):
        raise InvalidInputError(f"the {kind} is the class {part.__name__}; give an object of it")
    if isinstance(part, str):
        raise InvalidInputError(
            f"the {kind} is the text {part!r}; give an object, or name presets in Retriever.from_preset"
        )
    # of the class first: to read a property may be work
    missing = [name for name in _MEMBERS[kind] if not (hasattr(type(part), name) or hasattr(part, name))]
    if missing:
        raise InvalidInputError(f"{part!r} is no {kind}: it has no {', '.join(missing)}")


def check_parts(encoder: Encoder, index: Index) -> None:
    """Refuse an index that cannot be filled with an encoder's vectors.

    Raises:
        MismatchError: dim or fingerprint differ.
        InvalidInputError: one of them is none, or the index is not empty.
    """
    check_part("encoder", encoder)
    check_part("index", index)
    if index.dim != encoder.dim:
        raise MismatchError(f"the index has dim {index.dim}, the encoder {encoder.dim}; make them equal")
    if index.fingerprint and index.fingerprint != encoder.fingerprint:
        raise MismatchError(
            f"the index was made for encoder {index.fingerprint!r}, but the encoder here is "
            f"{encoder.fingerprint!r}; make an index for this one"
        )
    if len(index):
        raise InvalidInputError(f"the index holds {len(index)} vectors already; give an empty one")


def describe(kind: plugins.Kind, part: object) -> dict[str, Any] | None:
    """What :func:`restore` needs, JSON-serialisable; None when the part is not a plugin with settings."""
    name = plugins.name_of(kind, part)
    if name is None or not isinstance(part, Configurable):
        return None
    return {"plugin": name, "config": dict(part.config)}


def restore(kind: plugins.Kind, description: Mapping[str, Any] | None, album: Path) -> Any:
    """Make a part again from its description.

    Raises:
        AlbumError: there is none, because the part was not a plugin.
        InvalidInputError: no installed package offers the plugin.
    """
    if description is None:
        raise AlbumError(
            f"{album} was made with an {kind} that is not a plugin, so it cannot be restored by name; "
            f"give it: Retriever.load(path, {kind}=...)"
        )
    return plugins.create(kind, description["plugin"], description["config"])


def describe_fusion(fusion: Fusion) -> dict[str, Any] | None:
    """What :func:`restore_fusion` needs, JSON-serialisable; None when it is not one of the library's own."""
    for name, kind in _FUSIONS.items():
        if type(fusion) is kind:
            return {"name": name, "config": asdict(fusion)}
    return None


def restore_fusion(description: Mapping[str, Any] | None, album: Path) -> Fusion:
    """Make a fusion again from its description.

    Raises:
        AlbumError: there is none, because the fusion was not one of the library's own; or it is of a later
            version of the library.
    """
    if description is None:
        raise AlbumError(
            f"{album} was made with a fusion that is not the library's own, so it cannot be restored; "
            "give it: Retriever.load(path, fusion=...)"
        )
    try:
        return _FUSIONS[description["name"]](**description["config"])
    except (KeyError, TypeError) as error:
        raise AlbumError(
            f"{album} ranks by the fusion {dict(description)}, which this version of zsqretrieval does not "
            "know; install a later one, or give a fusion: Retriever.load(path, fusion=...)"
        ) from error

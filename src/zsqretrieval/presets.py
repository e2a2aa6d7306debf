"""Presets: parts that belong together, with the constants that were chosen for that pair of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast

from typing_extensions import Self

from zsqretrieval import plugins
from zsqretrieval._util.checks import check_amounts
from zsqretrieval.errors import AlbumError, InvalidInputError, MismatchError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.protocols import Encoder
from zsqretrieval.search.depth import Depth
from zsqretrieval.search.fusion import Fusion, WeightedSum
from zsqretrieval.search.query_bank import SCALE, STRENGTH


@dataclass(frozen=True, slots=True)
class Calibration:
    """The constants of a pair of encoder and generator; ``zsq evaluate --tune-on dev`` estimates the weights.

    The defaults of the bank and the dialog were chosen with the mini models on Flickr8k dev
    (``docs/rerank.md``, ``docs/dialog.md``).

    Attributes:
        fusion: combines first-stage and generator scores.
        expansion: combines similarities to images and to their stored questions; 0.05 is the best weight on
            Flickr8k dev, and the smallest of those tried (``docs/questions.md``).
        bank_scale: inverse temperature of query-bank normalisation, > 0.
        bank_strength: share of the hubness that is subtracted, >= 0.
        dialog_scale: factor from cosine similarity to log-probability, >= 0.
        dialog_temper: exponent of the likelihood of an answer, >= 0.
        dialog_reread: weight of the first-stage score of an answer in a dialog, >= 0; at 0 answers bring no
            new candidates.
        relevance_scale: steepness of the probability that a hit is relevant; 0 when it was not measured for
            this encoder (:func:`zsqretrieval.search.relevance.fit`).
        relevance_margin: margin over other questions at which that probability is one half, >= 0.
        depth_slope: see :class:`zsqretrieval.search.depth.Depth`.
        depth_deviation: the same; 0 when it was not measured for this pair, so that
            ``Rerank(risk=...)`` is refused.
        depth_freedom: the same.

    Raises:
        InvalidInputError: a fusion is not one, or a number is negative or not finite.
    """

    fusion: Fusion = field(default_factory=WeightedSum)
    expansion: Fusion = field(default_factory=lambda: WeightedSum(0.05))
    bank_scale: float = SCALE
    bank_strength: float = STRENGTH
    dialog_scale: float = 30.0
    dialog_temper: float = 0.6
    dialog_reread: float = 1.0
    relevance_scale: float = 0.0
    relevance_margin: float = 0.0
    depth_slope: float = 0.0
    depth_deviation: float = 0.0
    depth_freedom: float = 0.0

    def __post_init__(self) -> None:
        plugins.check_part("fusion", self.fusion)
        plugins.check_part("fusion", self.expansion)
        check_amounts(**self._numbers())
        if self.bank_scale == 0:
            raise InvalidInputError("bank_scale must be above 0")
        _ = self.depth  # checks it

    @property
    def depth(self) -> Depth | None:
        """How the likelihoods of candidates spread; None when it was not measured."""
        if not self.depth_deviation:
            return None
        return Depth(self.depth_slope, self.depth_deviation, self.depth_freedom)

    def _numbers(self) -> dict[str, float]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.type == "float"}

    def describe(self) -> dict[str, Any] | None:
        """Describe the calibration as JSON; None when a fusion is not a plugin."""
        found = {name: plugins.describe("fusion", getattr(self, name)) for name in ("fusion", "expansion")}
        return {**found, **self._numbers()} if all(found.values()) else None

    @classmethod
    def restore(cls, description: Mapping[str, Any] | None, album: object) -> Self:
        """Rebuild the calibration of an album; an AlbumError if this version cannot."""
        if description is None:
            raise AlbumError(
                f"{album} was made with a fusion that is not a plugin, so its calibration cannot be "
                "restored; pass it: Retriever.open(path, calibration=...)"
            )
        try:
            restored = {
                name: plugins.create("fusion", value["plugin"], value["config"])
                if isinstance(value, Mapping)
                else value
                for name, value in description.items()
            }
            return cls(**restored)
        except (InvalidInputError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise AlbumError(
                f"{album} has the calibration {dict(description)}, which this version of zsqretrieval cannot "
                "read; upgrade zsqretrieval, or pass one: Retriever.open(path, calibration=...)"
            ) from error


@dataclass(frozen=True, slots=True)
class Preset:
    """Parts that belong together; :meth:`variant` exchanges some of them.

    Attributes:
        encoder: plugin name.
        encoder_config: settings of the encoder; missing ones take its defaults.
        index: plugin name.
        generator: plugin name; None for the first stage alone.
        generator_config: settings of the generator; missing ones take its defaults.
        calibration: constants of this pair of encoder and generator.
    """

    encoder: str
    encoder_config: Mapping[str, Any] = field(default_factory=dict)
    index: str = "compressed"
    generator: str | None = None
    generator_config: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)

    def variant(
        self,
        *,
        encoder: str | None = None,
        index: str | None = None,
        generator: str | Literal["auto"] | None = "auto",
        encoder_config: Mapping[str, Any] | None = None,
        generator_config: Mapping[str, Any] | None = None,
    ) -> Self:
        """Exchange parts or settings.

        Args:
            encoder: plugin name of another encoder.
            index: plugin name of another index.
            generator: plugin name of another generator; ``"auto"`` keeps the preset's, None is none.
            encoder_config: settings that differ from the preset's, such as local weights; another encoder
                starts from its own defaults.
            generator_config: the same for the generator.

        Returns:
            The variant. Another encoder or generator gets the default calibration, which is the preset's only
            for its own pair.
        """
        own_encoder = encoder in (None, self.encoder)
        own_generator = generator in ("auto", self.generator)
        return replace(
            self,
            encoder=encoder or self.encoder,
            index=index or self.index,
            generator=self.generator if own_generator else generator,
            encoder_config={**(self.encoder_config if own_encoder else {}), **(encoder_config or {})},
            generator_config={**(self.generator_config if own_generator else {}), **(generator_config or {})},
            calibration=self.calibration
            if own_encoder and (own_generator or generator is None)
            else Calibration(),
        )

    def make_encoder(self) -> Encoder:
        """Make the encoder; errors as :func:`zsqretrieval.plugins.create`."""
        return cast(Encoder, plugins.create("encoder", self.encoder, self.encoder_config))

    def make_generator(self) -> LazyGenerator | None:
        """Make the generator, which loads on first use; None when there is none.

        Raises:
            InvalidInputError: no such generator, or settings without a generator.
        """
        if self.generator is None:
            if self.generator_config:
                raise InvalidInputError(
                    f"generator_config {dict(self.generator_config)} needs a generator; name one as well"
                )
            return None
        if self.generator not in plugins.available("generator"):
            plugins.load("generator", self.generator)  # raises the error that lists the installed ones
        return LazyGenerator(self.generator, self.generator_config)

    def check_album(self, encoder_part: Mapping[str, Any] | None, album: object) -> None:
        """Check by its description that an album has this preset's encoder; a MismatchError if not."""
        part = encoder_part or {"plugin": "that is not a plugin", "config": {}}
        same = all(part["config"].get(name) == value for name, value in self.encoder_config.items())
        if part["plugin"] != self.encoder or not same:
            raise MismatchError(
                f"{album} was made with the encoder {part['plugin']} {dict(part['config'])}, not with the "
                f"preset's {self.encoder} {dict(self.encoder_config)}; open it without a preset, or choose "
                "another path"
            )


_CLIP = {"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
_CLIP_L14 = {"name": "ViT-L-14", "pretrained": "laion2b_s32b_b82k"}
_KOSMOS2 = {"name": "microsoft/kosmos-2-patch14-224"}

PRESETS: Mapping[str, Preset] = {
    "mini": Preset(
        "mini",
        generator="mini",
        calibration=Calibration(
            fusion=WeightedSum(weight=1.5, scale="raw", first_stage_scale=100.0),
            relevance_scale=29.4,  # benchmarks/nothing_found.py
            relevance_margin=0.183,
            depth_slope=32.0,  # python -m benchmarks.depth ... --fit
            depth_deviation=2.81,
            depth_freedom=10.2,
        ),
    ),
    "clip": Preset("clip", _CLIP),
    "clip-kosmos2": Preset("clip", _CLIP, generator="kosmos", generator_config=_KOSMOS2),
    "clip-l14-kosmos2": Preset("clip", _CLIP_L14, generator="kosmos", generator_config=_KOSMOS2),
}
"""The presets by name."""


def preset_named(preset: str | Preset) -> Preset:
    """Look up a preset by name, unless it is one; an InvalidInputError lists the names."""
    if isinstance(preset, Preset):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InvalidInputError(f"there is no preset {preset!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[preset]

"""Options that several commands share, and the parts and albums that they name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.album.candidates import StatesMode
    from zsqretrieval.album.filters import Filter
    from zsqretrieval.presets import Preset
    from zsqretrieval.retriever import Retriever
    from zsqretrieval.search.rerank import Rerank


Reranks: TypeAlias = Literal["likelihood", "yes_no", "none"]
Fusions: TypeAlias = Literal["weighted-sum", "reciprocal-rank", "rerank-only"]


def album_path(text: str) -> Path:
    """As :func:`zsqretrieval.retriever.opening.album_path`; ``Path("")`` would be the current folder."""
    from zsqretrieval.retriever import opening

    if text.startswith("milvus:"):
        raise typer.BadParameter(
            "commands work on albums in a directory; open a collection of Milvus in Python: docs/milvus.md"
        )
    return opening.album_path(text)


def given_path(text: str) -> Path:
    """A path that a command writes to or loads from; ``Path("")`` would be the current folder."""
    if not text:
        raise typer.BadParameter("the path is empty; the current folder is '.'")
    return Path(text)


def given_location(text: str) -> Path | str:
    """A path, or a URL of fsspec, of which ``Path`` would drop a slash."""
    return text if "://" in text else given_path(text)


Album = Annotated[Path, typer.Argument(metavar="ALBUM", parser=album_path, help="Directory of the album.")]
Candidates = Annotated[int, typer.Option(min=1, help="First-stage candidates that the generator scores.")]
HowReranked = Annotated[
    Reranks | None,
    typer.Option("--rerank", help="How to re-rank.", show_default="likelihood, if there is a generator"),
]
HowFused = Annotated[
    Fusions | None,
    typer.Option(help="How to combine both scores.", show_default="the preset's or the album's"),
]
Weight = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Combine them by a weighted sum with this weight of the generator.",
        show_default="1 with --fusion weighted-sum",
    ),
]
GeneratorPreset = Annotated[
    str | None, typer.Option("--preset", help="Use this preset's generator and calibration, not the album's.")
]
EncoderWeights = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        parser=given_path,
        help="Local file or folder with the encoder's weights, not the preset's.",
    ),
]
GeneratorWeights = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        parser=given_path,
        help="Local file or folder with the generator's weights, not the preset's.",
    ),
]
TrustParts = Annotated[
    bool,
    typer.Option(
        "--trust-parts",
        help="Load the weights that the album names; for albums that you made or trust.",
    ),
]
Copy = Annotated[
    bool,
    typer.Option("--copy", help="Keep copies of the files in the album, which then works without them."),
]
Exif = Annotated[
    bool,
    typer.Option("--exif/--no-exif", help="Read time, camera and place of photographs into their metadata."),
]
Safe = Annotated[
    bool,
    typer.Option(
        "--safety/--no-safety", help="Leave out rows of LAION that are not known to be safe; docs/laion.md."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images encoded together.")]
MaxPixels = Annotated[
    int,
    typer.Option(
        min=1, max=2**30, help="Skip images of more pixels than this; a decompression bomb has billions."
    ),
]


def _use_device(ctx: typer.Context, device: str | None) -> None:
    """Use a device for all models until the command ends."""
    if device is not None:
        before = os.environ.get(DEVICE)
        os.environ[DEVICE] = device
        ctx.call_on_close(
            lambda: os.environ.pop(DEVICE) if before is None else os.environ.update({DEVICE: before})
        )


DEVICE = "ZSQ_DEVICE"
Device = Annotated[
    str | None,
    typer.Option(
        callback=_use_device,
        help=f"Device of all models: cpu, cuda, cuda:1, mps; also by {DEVICE}.",
        show_default="the best there is",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def rerank_of(
    candidates: int, rerank: Reranks | None, fusion: Fusions | None, weight: float | None
) -> Rerank | Literal["auto"] | None:
    """Turn the options into the argument ``rerank`` of :meth:`zsqretrieval.retriever.Retriever.search`."""
    from zsqretrieval.search.fusion import ReciprocalRank, RerankOnly, WeightedSum
    from zsqretrieval.search.rerank import CANDIDATES, Rerank
    from zsqretrieval.search.scoring import Likelihood, YesNo

    if weight is not None and fusion not in (None, "weighted-sum"):
        raise typer.BadParameter(f"--weight belongs to --fusion weighted-sum, not to {fusion}")
    if rerank == "none":
        if fusion is not None or weight is not None:
            raise typer.BadParameter("--rerank none has nothing to combine; leave --fusion and --weight out")
        return None
    if rerank is None and fusion is None and weight is None and candidates == CANDIDATES:
        return "auto"
    fusions = {
        None: None if weight is None else WeightedSum(weight),
        "weighted-sum": WeightedSum(1.0 if weight is None else weight),
        "reciprocal-rank": ReciprocalRank(),
        "rerank-only": RerankOnly(),
    }
    rule = YesNo() if rerank == "yes_no" else Likelihood()
    return Rerank(rule, fusion=fusions[fusion], candidates=candidates)


def preset_with(
    name: str,
    *,
    index: str | None = None,
    encoder_weights: Path | None = None,
    generator_weights: Path | None = None,
) -> Preset:
    """The preset of a name with another index or local weights."""
    from zsqretrieval.presets import preset_named

    preset = preset_named(name)
    return preset.variant(
        index=index,
        encoder_config=_encoder_config(preset, encoder_weights),
        generator_config=_generator_config(preset, generator_weights),
    )


def _encoder_config(preset: Preset, weights: Path | None) -> Mapping[str, Any]:
    """Settings that load the encoder's weights from a folder or file."""
    if weights is None:
        return {}
    path = _existing(weights)
    if preset.encoder == "clip":  # a folder says which architecture it holds
        return {"name": f"local-dir:{path}", "pretrained": None} if weights.is_dir() else {"pretrained": path}
    if preset.encoder == "mini":
        return {"weights": path}
    raise InvalidInputError(f"the encoder {preset.encoder!r} takes no --encoder-weights")


def _generator_config(preset: Preset, weights: Path | None) -> Mapping[str, Any]:
    """Settings that load the generator's weights from a folder or file."""
    if weights is None:
        return {}
    path = _existing(weights)
    setting = {"mini": "weights", "kosmos": "name", "vlm": "name_or_path"}.get(preset.generator or "")
    if setting is None:
        raise InvalidInputError(
            f"the generator {preset.generator!r} takes no --generator-weights; choose another preset"
        )
    return {setting: path}


def _existing(weights: Path) -> str:
    if not weights.exists():
        raise InvalidInputError(f"{weights}: no such file or folder of weights")
    return str(weights.absolute())


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """Parse the settings of a plugin; an InvalidInputError if they are no JSON object."""
    try:
        found = {} if text is None else json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{option}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{option} must be a JSON object, not {text}")
    return found


def caches_features(preset: Preset) -> bool:
    """Whether the preset's generator can cache image features; loads no weights."""
    from zsqretrieval import plugins

    name = preset.generator
    return name is not None and hasattr(plugins.load("generator", name), "image_states")


def open_album(
    path: Path,
    *,
    preset: str | None = None,
    generator_weights: Path | None = None,
    needs_generator: bool = False,
    states: StatesMode | Literal["auto"] = "auto",
    made_with: Preset | None = None,
    trust_parts: bool = False,
) -> Retriever:
    """Open an album; a preset with a generator replaces the album's generator and calibration.

    The album must have the encoder of ``made_with``. ``trust_parts`` loads weights that only the album names.
    """
    from zsqretrieval.retriever import Retriever

    if preset is None:
        if generator_weights is not None:
            raise typer.BadParameter("--generator-weights needs the --preset whose weights they are")
        return Retriever.open(path, made_with, states=states, trust_parts=trust_parts)
    chosen = preset_with(preset, generator_weights=generator_weights)
    generator = chosen.make_generator()
    if generator is None:
        if needs_generator:
            raise InvalidInputError(f"the preset {preset!r} has no generator; choose one with a generator")
        return Retriever.open(path, made_with, states=states, trust_parts=trust_parts)
    return Retriever.open(
        path,
        made_with,
        generator=generator,
        calibration=chosen.calibration,
        states=states,
        trust_parts=trust_parts,
    )


def read_lines(path: Path) -> list[str]:
    """Read a UTF-8 file of texts, one a line; empty lines are left out."""
    from zsqretrieval._util import files

    if not (texts := [line.strip() for _, line in files.read_lines(path)]):
        raise InvalidInputError(f"{path} holds no text; write one question a line")
    return texts


def parse_where(text: str | None) -> Filter | None:
    """Parse the value of ``--where``; one that is no filter is a usage error."""
    from zsqretrieval.album.filters import Filter

    try:
        return None if text is None else Filter.parse(text)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from error

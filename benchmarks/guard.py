"""A guard against regressions: the ratios of a new measurement beside those of an earlier one.

python -m benchmarks.guard NEW.json docs/data/performance-index.json --share 0.2
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.output import run
from zsqretrieval.errors import InvalidInputError, ZsqError

_LOWER_IS_BETTER = ("build_ratio", "memory_ratio")
SHARE = 0.2


class RegressionError(ZsqError):
    """A ratio became worse than allowed."""


def ratios(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All numbers with ratio, speedup or share in their name or that of a table around them."""
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from ratios(value, f"{name}/")
        elif isinstance(value, (int, float)) and any(word in name for word in ("ratio", "speedup", "share")):
            yield name, float(value)


def worse(new: Mapping[str, Any], old: Mapping[str, Any], share: float = SHARE) -> list[str]:
    """A sentence for each ratio of ``old`` that is missing, or worse by more than a share of itself."""
    now, said = dict(ratios(new)), []
    for name, before in ratios(old):
        after = now.get(name)
        lower = name.startswith(_LOWER_IS_BETTER)
        if after is None:
            said.append(f"{name} was {before:.3g} and is missing")
        elif (after > before * (1 + share)) if lower else (after < before * (1 - share)):
            said.append(f"{name} was {before:.3g} and is {after:.3g}")
    return said


def check_against(new: Mapping[str, Any], file: Path, share: float = SHARE) -> None:
    """Compare with a file.

    Raises:
        InvalidInputError: the file is not a JSON object with ratios, or it measured something else.
        RegressionError: a ratio is worse by more than the share.
    """
    old = read(file)
    if not dict(ratios(old)):
        raise InvalidInputError(f"{file} has no ratios; give the JSON of a benchmark")
    for fact in ("index", "data", "count", "dim"):
        if old.get(fact) != new.get(fact):
            raise InvalidInputError(
                f"{file} measured {fact} {old.get(fact)!r}, the new run {new.get(fact)!r}; measure the same"
            )
    if said := worse(new, old, share):
        raise RegressionError(f"worse than {file} by more than {share:.0%}: {'; '.join(said)}")


def read(file: Path) -> dict[str, Any]:
    """The JSON object of a benchmark; an InvalidInputError for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{file} is not a JSON object; give the JSON of a benchmark")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = ArgumentParser("python -m benchmarks.guard", description="Fail if a ratio became worse.")
    parser.add_argument("new", type=Path, help="JSON of a new measurement.")
    parser.add_argument("old", type=Path, help="JSON of the measurement before.")
    parser.add_argument("--share", type=float, default=SHARE, help=f"Allowed loss [default: {SHARE}].")
    given = parser.parse_args(arguments)
    check_against(read(given.new), given.old, given.share)
    sys.stdout.write(f"no ratio is worse by more than {given.share:.0%}\n")


if __name__ == "__main__":
    run(main)

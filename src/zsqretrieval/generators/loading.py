"""What all generators that transformers loads have to see to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from zsqretrieval.errors import MissingDependencyError, WeightsError

__all__ = ["check_complete", "missing_package", "tokenizer_facts"]


def check_complete(name: str, report: Mapping[str, Iterable[object]]) -> None:
    """Refuse a model some of whose weights transformers has drawn at random, which it only logs.

    Args:
        name: of the model.
        report: what ``from_pretrained(..., output_loading_info=True)`` gives beside the model.

    Raises:
        WeightsError: weights are missing, or of another shape; names three of them.
    """
    if absent := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise WeightsError(
            f"{name} has no weights, or weights of another shape, for {', '.join(absent[:3])}"
            f"{' and others' if len(absent) > 3 else ''}; fetch or save it again"
        )


def missing_package(error: ImportError, needed_for: str) -> MissingDependencyError:
    """What transformers says when it lacks a package, as an error of this library's."""
    package = error.name or next(iter(re.findall(r"`([\w-]+)`", str(error))), str(error))
    return MissingDependencyError(package, needed_for, f"pip install {package}")


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """All that its tokens depend on, for a fingerprint; JSON takes it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"vocab": tokenizer.get_vocab()}
    facts = json.loads(backend.to_str())
    return {key: fact for key, fact in facts.items() if key not in ("truncation", "padding")}  # set by calls

"""A check that a call is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zsqretrieval.errors import InvalidInputError


def refused(message: str, call: Callable[..., object], *given: object, **options: object) -> None:
    """Check that a call raises InvalidInputError whose text matches ``message``, a regular expression."""
    with pytest.raises(InvalidInputError, match=message):
        call(*given, **options)

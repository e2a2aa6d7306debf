"""Which checks of a generator run by default on generators that share their code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from zsqretrieval.testing import generator_checks

# These checks are about code that several generators share; the others are about how one reads a prompt.
_COMMON = {
    *("fingerprint_is_stable", "scoring_is_deterministic", "inputs_are_not_changed", "broken_image_is_named"),
    *("no_pairs_give_no_likelihoods", "unequal_lengths_are_refused", "empty_continuation_is_refused"),
    *("settings_out_of_range_are_refused", "over_long_prompt_is_refused", "progress_reaches_the_total"),
    *("progress_can_cancel", "n_texts_per_context", "generation_order_is_kept", "sampling_varies"),
    *("greedy_generation_is_deterministic", "seed_makes_sampling_repeatable"),
}


def contract_cases(names: Sequence[str], whole: Sequence[str] = (), states: bool = True) -> list[Any]:
    """Parameters (name, check): all checks of ``whole``, of the others those of shared code with --slow only.

    Without ``states``, checks of image states are left out.
    """
    checks = [check for check in generator_checks if states or "state" not in check.name]
    return [
        pytest.param(
            name,
            check,
            id=f"{name}-{check.name}",
            marks=[pytest.mark.slow] if check.name in _COMMON and name not in whole else [],
        )
        for name in names
        for check in checks
    ]

"""Every check catches at least one implementation that is broken in the way the check is about."""

import inspect

import pytest

import broken_encoders
import broken_generators
import broken_indexes
import broken_rerankers
from zsqretrieval.testing import (
    ContractError,
    GeneratorCase,
    ToyGenerator,
    encoder_checks,
    generator_checks,
    index_checks,
    reranker_checks,
)


def broken(module):
    classes = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if hasattr(kind, "caught_by")]
    return [*classes, *module.SPOILED]


def closed_case(kind):
    return lambda: GeneratorCase(kind(), vocabulary=ToyGenerator.vocabulary)


KITS = {
    "encoder": (encoder_checks, broken(broken_encoders), lambda kind: kind),
    "index": (index_checks, broken(broken_indexes), lambda kind: kind),
    "generator": (generator_checks, broken(broken_generators), closed_case),
    "reranker": (reranker_checks, broken(broken_rerankers), lambda kind: kind),
}
CASES = [
    pytest.param(name, checks, as_factory(kind), id=f"{kit}-{kind.__name__}-{name}")
    for kit, (checks, kinds, as_factory) in KITS.items()
    for kind in kinds
    for name in kind.caught_by
]


@pytest.mark.parametrize(("name", "checks", "factory"), CASES)
def test_check_catches(name, checks, factory):
    (check,) = [check for check in checks if check.name == name]
    with pytest.raises(ContractError, match=rf"^{name}: ") as caught:
        check(factory)
    assert list(caught.value.failures) == [name]


@pytest.mark.parametrize("kit", KITS)
def test_every_check_is_proven(kit):
    checks, kinds, _ = KITS[kit]
    assert {name for kind in kinds for name in kind.caught_by} == {check.name for check in checks}


def test_improbable_probabilities_are_caught_without_a_closed_vocabulary():
    (check,) = [check for check in generator_checks if check.name == "next_token_probabilities_sum_to_one"]
    with pytest.raises(ContractError, match="with a sum <= 1"):
        check({kind.__name__: kind for kind in broken_generators.SPOILED}["Temperature"])

"""The library's own indexes keep the contract that third parties are held to."""

import pytest
from hypothesis import given, settings

from strategies import operations
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.testing import index_checks, parametrize_checks
from zsqretrieval.testing.index_model import play


@parametrize_checks(index_checks, ExactIndex)
def test_exact_index(check):
    check()


@parametrize_checks(index_checks, HNSWIndex)
def test_hnsw_index(check):
    check()


@pytest.mark.parametrize("kind", [ExactIndex, HNSWIndex])
@settings(max_examples=50)
@given(steps=operations)
def test_any_operations_agree_with_the_model(kind, steps):
    play(kind(4), steps)

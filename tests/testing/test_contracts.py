"""The library's own indexes keep the contract that third parties are held to."""

from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.testing import index_checks, parametrize_checks


@parametrize_checks(index_checks, ExactIndex)
def test_exact_index(check):
    check()


@parametrize_checks(index_checks, CompressedIndex)
def test_compressed_index(check):
    check()


@parametrize_checks(index_checks, HNSWIndex)
def test_hnsw_index(check):
    check()

"""Contract tests for your own encoder, index, generator or re-ranker; see ``docs/testing.md``.

In a script, ``check_index(MyIndex)`` runs all checks and reports every broken promise. In pytest,
:func:`parametrize_checks` makes one test case of each check. The toys are small exact parts for tests.
"""

from __future__ import annotations

from zsqretrieval.testing.checks import Check, ContractError, parametrize_checks
from zsqretrieval.testing.encoder import check_encoder, encoder_checks
from zsqretrieval.testing.generator import check_generator, generator_checks
from zsqretrieval.testing.generator_case import GeneratorCase
from zsqretrieval.testing.index import check_index, index_checks
from zsqretrieval.testing.reranker import RerankerCase, check_reranker, reranker_checks
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator, ToyIndex, ToyStatesGenerator

__all__ = [
    "Check", "ContractError", "GeneratorCase", "RerankerCase", "ToyEncoder", "ToyGenerator", "ToyIndex",
    "ToyStatesGenerator", "check_encoder", "check_generator", "check_index", "check_reranker",
    "encoder_checks", "generator_checks", "index_checks", "parametrize_checks", "reranker_checks",
]  # fmt: skip

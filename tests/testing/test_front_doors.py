import subprocess
import sys

import pytest

from zsqretrieval.rerankers.generative import LikelihoodReranker
from zsqretrieval.testing import (
    Check,
    ContractError,
    GeneratorCase,
    ToyEncoder,
    ToyGenerator,
    ToyIndex,
    check_encoder,
    check_generator,
    check_index,
    check_reranker,
    encoder_checks,
    generator_checks,
    index_checks,
    parametrize_checks,
    reranker_checks,
)

KITS = {
    "encoder": encoder_checks,
    "index": index_checks,
    "generator": generator_checks,
    "reranker": reranker_checks,
}


def test_conforming_parts_pass_in_silence(capsys):
    check_encoder(ToyEncoder())
    check_index(ToyIndex)
    check_generator(GeneratorCase(ToyGenerator(), vocabulary=ToyGenerator.vocabulary))
    check_reranker(LikelihoodReranker(ToyGenerator()))
    assert capsys.readouterr() == ("", "")


def test_every_failure_is_reported_with_expectation_and_finding():
    class Doubled(ToyEncoder):
        def encode_text(self, texts, *, batch_size=32):
            return 2 * super().encode_text(texts)

        def encode_image(self, images, *, batch_size=32):
            if not images:
                raise RuntimeError("stack expects a non-empty list")
            return super().encode_image(images)

    with pytest.raises(ContractError) as caught:
        check_encoder(Doubled())
    failures, message = caught.value.failures, str(caught.value)
    assert set(failures) == {
        "text_rows_are_unit_vectors",
        "no_images_give_no_rows",
        "unusual_texts_are_accepted",
    }
    assert message.startswith(f"3 of {len(encoder_checks)} checks failed:\n")
    assert "text_rows_are_unit_vectors: " in message
    assert "Expected rows of length 1 to 1e-5; got lengths [2." in message
    assert "raised RuntimeError: stack expects a non-empty list" in message
    assert isinstance(failures["no_images_give_no_rows"].__cause__, RuntimeError)


def test_a_contract_error_fails_a_test_like_any_assertion():
    assert issubclass(ContractError, AssertionError)


@pytest.mark.parametrize("checks", KITS.values(), ids=KITS)
def test_checks_have_unique_names_and_a_promise(checks):
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert check.name.isidentifier() and check.promise.endswith(".")


def test_long_findings_are_shortened():
    def verify(factory):
        from zsqretrieval.testing.checks import expect

        expect(False, "little", "x" * 10_000)

    with pytest.raises(ContractError, match=r"\(10000 characters\)") as caught:
        Check("brief", "Messages are short.", verify)(None)
    assert len(str(caught.value)) < 600


def test_unknown_name_among_expected_failures_is_an_error():
    with pytest.raises(ValueError, match="no such check: no_such_check"):
        parametrize_checks(index_checks, ToyIndex, expected_failures={"no_such_check": "a typo"})


def test_ids_are_the_names_of_the_checks():
    mark = parametrize_checks(index_checks, ToyIndex).mark
    assert [case.id for case in mark.args[1]] == [check.name for check in index_checks]


PLUGIN_TEST = """
from zsqretrieval.testing import ToyIndex, index_checks, parametrize_checks

class MyIndex(ToyIndex):
    def save(self, path):
        raise OSError("read-only")

chosen = [check for check in index_checks if "save" in check.name or check.name == "scores_fall"]

@parametrize_checks(chosen, MyIndex, expected_failures={REASONS})
def test_contract(check):
    check()
"""


@pytest.mark.parametrize(
    ("reasons", "outcome"),
    [
        ({}, "3 failed, 1 passed"),
        (
            {
                "save_and_load_keep_every_answer": "in memory only",
                "empty_index_can_be_saved": "in memory only",
                "save_replaces_an_earlier_save": "in memory only",
            },
            "1 passed, 3 xfailed",
        ),
        ({"scores_fall": "wrongly expected"}, "4 failed"),  # strict: an expected failure must fail
    ],
    ids=["unexpected failures", "expected failures", "unexpected pass"],
)
def test_expected_failures_are_strict_xfails(tmp_path, reasons, outcome):
    file = tmp_path / "test_mine.py"
    file.write_text(PLUGIN_TEST.replace("REASONS", repr(reasons)[1:-1]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert outcome in run.stdout

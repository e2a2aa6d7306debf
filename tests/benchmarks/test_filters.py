"""The results of the benchmark of filters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.filters import bench_filters, main
from benchmarks.synthetic import cliplike
from refusing import refused


def test_command_prints_json_or_a_table_of_every_share(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--images", "1000", "--dim", "16"]
    main([*options, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["dim"]) == (1000, 16)
    assert [(one["images"], one["share"]) for one in facts["filters"]] == [
        (images, share) for images in ("scattered", "alike") for share in (0.01, 0.1, 0.5)
    ]
    for one in facts["filters"]:
        assert min(one["text_recall_at_10"], one["image_recall_at_10"]) > 0.95
        assert min(one["matching_ms"], one["indexed_ms"], one["hnsw_ms"], one["exact_ms"]) > 0
    main(options)
    said = capsys.readouterr().out
    assert "recall@10: texts" in said and "1000 images with synthetic vectors of dim 16" in said


def test_gallery_of_which_one_percent_is_too_few_is_refused(tmp_path: Path) -> None:
    refused("give 1,000, not 999", bench_filters, cliplike(999, 10, dim=16, rank=4), tmp_path)

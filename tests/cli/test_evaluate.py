"""``zsq evaluate``: from a data set to a report, with toys."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from running import Zsq
from small_sets import write_colours, write_folder

LITTLE = ("--candidates", 3, "--ablation-queries", 4, "--tune-queries", 4, "--questions", 1)


def test_one_command_makes_a_report(zsq: Zsq, tmp_path: Path) -> None:
    data = write_colours(tmp_path / "colours")
    command = ("evaluate", f"shards:{data}", "--preset", "reading", "--report", "out", *LITTLE)
    ran = zsq(*command, "--systems", "all", "--tune-on", "dev", "--json")
    assert ran.code == 0, ran.stderr
    facts = ran.json
    assert facts == json.loads(Path("out/report.json").read_text())
    assert {(part["direction"], part["form"]) for part in facts["parts"]} == {
        (direction, form)
        for direction in ("text to image", "image to text")
        for form in ("caption", "question/which")
    }
    systems = {one["system"] for one in facts["parts"][0]["results"]}
    assert systems == {"clip", "likelihood", "yes_no", "fused", "expand", "normalized", "normalized_fused"}
    assert facts["choice"]["origin"] == "tuned for R@1 on colours dev"
    assert facts["fingerprints"] == {"encoder": "toy-encoder-1", "generator": "toy-generator-1"}
    assert all(Path("out", name).is_file() for name in facts["files"])
    again = shlex.split(facts["command"])
    assert again[:3] == ["zsq", "evaluate", f"shards:{data}"] and "--ablation-queries" in again
    second = zsq(*again[1:], "--json")
    assert second.code == 0, second.stderr
    assert second.json["parts"] == facts["parts"] and second.json["command"] == facts["command"]

    ran = zsq(*command, "--systems", "clip,yesno", "--forms", "caption", "--no-cost")
    assert ran.code == 0, ran.stderr
    assert "Text to image, caption: yes_no" in ran.stdout and "report.html" in ran.stderr
    table = ran.stdout.splitlines()
    assert sum("clip" in line and "caption" in line and "to image" in line for line in table[2:]) == 1


def test_a_folder_of_ones_own_in_one_direction(zsq: Zsq, tmp_path: Path) -> None:
    own = write_folder(tmp_path / "own")
    ran = zsq(
        *("evaluate", own, "--report", "out", "--preset", "reading", "--systems", "clip,likelihood"),
        *("--forms", "human-question,question/is-there", "--directions", "text-to-image", "--no-cost"),
        *("--queries", 3, "--json", *LITTLE),
    )
    assert ran.code == 0, ran.stderr
    found = [(part["direction"], part["form"], part["queries"]) for part in ran.json["parts"]]
    assert found == [("text to image", "human question", 3), ("text to image", "question/is there", 3)]
    assert ran.json["cost"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "neither a folder nor kind:path; there are shards:FOLDER"),
        (("DATA", "--split", "train"), "holds no shards train-*.tar"),
        (("DATA", "--tune-on", "train"), "holds no shards train-*.tar"),
        (("DATA", "--tune-on", "test"), "share 6 images"),
        (("DATA", "--tune-on", "dev", "--weight", 1), "use one of them"),
        (("DATA", "--systems", "clip,bm25"), "there is no system 'bm25'; choose from clip, likelihood"),
        (("DATA", "--directions", "text-to-text"), "there is no direction 'text to text'"),
        (("DATA", "--forms", "question/why"), "no queries of the form 'question/why'; it has caption, quest"),
        (("DATA", "--preset", "toy"), "has no generator"),
        (("DATA", "--report", "DATA/test-000.tar"), "is a file; a report is a folder"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    zsq: Zsq, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    data = str(write_colours(tmp_path / "colours"))
    given = [str(one).replace("DATA", data) for one in arguments]
    report = () if "--report" in given else ("--report", "out")
    preset = () if "--preset" in given else ("--preset", "reading")
    ran = zsq("evaluate", *given, *report, *preset, *LITTLE)
    assert ran.code == 1 and not ran.stdout
    assert said in ran.stderr and len(ran.stderr.splitlines()) == 1


def test_files_that_contradict_themselves_are_named_with_their_line(zsq: Zsq, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        ran = zsq("evaluate", *arguments, "--report", "out", "--preset", "reading")
        assert ran.code == 1
        return ran.stderr

    own = write_folder(tmp_path / "own")
    captions = own / "captions.jsonl"
    lines = captions.read_text()
    captions.write_text(lines + '{"image": "pink.png", "caption": "pink"}\n')
    assert "captions.jsonl:7: the image 'pink.png' is not in" in refused(own)
    captions.write_text(lines + '{"image": "red.png", "caption": " "}\n')
    assert "captions.jsonl:7" in refused(own)
    captions.write_text("")
    assert "own: there are no queries" in refused(own)
    inquire = tmp_path / "inquire"
    inquire.mkdir()
    (inquire / "inquire_queries_test.csv").write_text("query_id,query_text\n1,red\n1,blue\n")
    (inquire / "inquire_annotations.csv").write_text("query_id,image_path\n1,red.png\n")
    assert "inquire_queries_test.csv:3: the query '1' stands there twice" in refused(
        f"inquire:{inquire},{own}"
    )
    (inquire / "inquire_annotations.csv").write_text("query_id,image_path\n1,pink.png\n")
    assert "inquire_annotations.csv:2: the image 'pink.png' is not in" in refused(f"inquire:{inquire},{own}")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "captions.jsonl").write_text("")
    assert "the gallery is empty" in refused(f"folder:{empty}")


def test_the_verdict_is_one_command(zsq: Zsq, tmp_path: Path) -> None:
    data = write_colours(tmp_path / "colours", shades=12)
    (Path(data) / "ExpertAnnotations.txt").write_text(
        "".join(
            f"test-000/{n:04}\ttest-000/{m:04}#0\t{1 + (n + m) % 3}\t1\t2\n"
            for n in range(6)
            for m in range(6)
        )
    )
    command = ("verdict", f"flickr8k:{data}", "--preset", "reading", "--tune-on", "dev", "--work", "work")
    little = ("--queries", 8, "--candidates", 3, "--ablation-queries", 4, "--tune-queries", 4)
    ran = zsq(*command, *little, "--out", "docs/verdict.md", "--no-gallery", "--no-alternatives")
    assert ran.code == 0, ran.stderr
    text = Path("docs/verdict.md").read_text()
    assert text.startswith("# Does question generation find images") and "Agreement with people" in text
    again = shlex.split(next(line for line in text.splitlines() if line.startswith("zsq verdict flickr8k")))
    assert {"--no-gallery", "--no-alternatives", "--ablation-queries"} <= set(again)
    assert Path("docs/verdict/runs/text-to-image/caption/fused.run.gz").is_file()
    ran = zsq(*command, "--out", "docs/verdict.html")
    assert ran.code == 1 and "ends in .md" in ran.stderr

"""``zsq evaluate``: from a data set to a report or a verdict, with toys."""

from __future__ import annotations

import json
import shlex
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from running import Zsq
from small_sets import write_colours, write_folder

LITTLE = ("--candidates", 3, "--ablation-queries", 4, "--tune-queries", 4, "--questions", 1)


def systems_of(table: list[dict[str, object]], direction: str = "text to image") -> list[object]:
    rows = [one for one in table if one["group"] == "systems" and one["direction"] == direction]
    return list(dict.fromkeys(one["system"] for one in rows))


def test_one_command_makes_a_report_and_repeats_it(zsq: Zsq, tmp_path: Path) -> None:
    data = write_colours(tmp_path / "colours")
    command = ("evaluate", f"shards:{data}", "--preset", "reading", "--report", "out", *LITTLE)
    ran = zsq(*command, "--systems", "all", "--tune-on", "dev", "--json")
    assert ran.code == 0, ran.stderr
    assert "zsq: expected time: " in ran.stderr
    facts, table = ran.json["facts"], ran.json["table"]
    assert ran.json == json.loads(Path("out/report.json").read_text())
    forms = {(one["direction"], one["form"]) for one in table if one["group"] == "systems"}
    assert forms == {*product(("text to image", "image to text"), ("caption", "question/which"))}
    assert systems_of(table) == [
        *("toy", "likelihood", "yes_no", "fused", "expanded", "fused+expanded"),
        *("normalized", "normalized+fused"),
    ]
    assert facts["choice"]["origin"] == "tuned for R@1 on colours dev"
    assert facts["fingerprints"] == {"encoder": "toy-encoder-1", "generator": "toy-generator-1"}
    assert all(Path("out", name).is_file() for name in facts["files"])
    again = shlex.split(facts["command"])
    assert again[:3] == ["zsq", "evaluate", f"shards:{data}"] and "--ablation-queries" in again
    second = zsq(*again[1:], "--json")
    assert second.code == 0, second.stderr
    measured = [[one for one in some if one["group"] != "cost"] for some in (second.json["table"], table)]
    assert measured[0] == measured[1] and second.json["facts"]["command"] == facts["command"]

    ran = zsq(*command, "--systems", "yes-no", "--forms", "caption", "--no-cost")
    assert ran.code == 0, ran.stderr
    assert "report.html" in ran.stderr
    lines = [line for line in ran.stdout.splitlines() if "text to image" in line and " toy " in line]
    assert len(lines) == 1, "one row of the first stage"


def test_a_folder_of_images_in_one_direction(zsq: Zsq, tmp_path: Path) -> None:
    own = write_folder(tmp_path / "own")
    ran = zsq(
        *("evaluate", own, "--report", "out", "--preset", "reading", "--systems", "likelihood"),
        *("--forms", "human-question,question/is-there", "--directions", "text-to-image", "--no-cost"),
        *("--queries", 3, "--json", *LITTLE),
    )
    assert ran.code == 0, ran.stderr
    table = pd.DataFrame(ran.json["table"])
    counts = table[table["group"] == "systems"].groupby("form", sort=False)["queries"].first()
    assert counts.to_dict() == {"human question": 3, "question/is there": 3}
    assert set(table["direction"].dropna()) == {"text to image"} and "cost" not in set(table["group"])
    assert "a fixed sample of 3 queries of each form and direction, 3 candidates" in ran.stderr


def test_any_plugin_can_be_named(zsq: Zsq, tmp_path: Path) -> None:
    data = write_colours(tmp_path / "colours")
    command = ("evaluate", f"shards:{data}", "--report", "out", "--no-cost", "--json", *LITTLE)
    ran = zsq(*command, "--preset", "mini", "--encoder", "toy", "--generator", "none", "--index", "exact")
    assert ran.code == 0, ran.stderr
    assert systems_of(ran.json["table"]) == ["toy"]
    encoder = ("--encoder", "toy", "--encoder-config", "{}")
    generator = ("--generator", "reader", "--generator-config", "{}")
    ran = zsq(*command, *encoder, *generator, "--systems", "fused")
    assert ran.code == 0, ran.stderr
    assert systems_of(ran.json["table"]) == ["toy", "fused"]
    assert "WeightedSum(weight=1.0" in ran.json["facts"]["settings"]["fusion"], "not the weight of mini"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "neither a folder nor kind:path; the kinds are shards:FOLDER"),
        (("DATA", "--split", "train"), "holds no shards train-*.tar"),
        (("DATA", "--tune-on", "train"), "holds no shards train-*.tar"),
        (("DATA", "--tune-on", "test"), "share 6 images"),
        (("DATA", "--tune-on", "dev", "--weight", 1), "use one of them"),
        (("DATA", "--systems", "bm25"), "there is no system 'bm25'; choose from first_stage, likelihood"),
        (("DATA", "--directions", "text-to-text"), "there is no direction 'text to text'"),
        (("DATA", "--forms", "question/why"), "no queries of the form 'question/why'; it has caption, quest"),
        (("DATA", "--preset", "toy", "--systems", "fused"), "needs a generator"),
        (("DATA", "--report", "DATA/test-000.tar"), "is a file; a report is a folder"),
        (("DATA", "--template", "verdict"), "give --report a name in .md, and --work"),
        (("DATA", "--encoder-config", "{"), "--encoder-config: not JSON"),
        (("DATA", "--generator-config", "[]"), "--generator-config must be a JSON object"),
        (("DATA", "--gallery-sizes", "many"), "--gallery-sizes must be auto or integers, not 'many'"),
        (("DATA", "--gallery-sizes", "auto"), "scaling needs more than 200"),
    ],
)
def test_wrong_arguments_are_one_line_errors(
    zsq: Zsq, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    data = str(write_colours(tmp_path / "colours"))
    given = [str(one).replace("DATA", data) for one in arguments]
    report = () if "--report" in given else ("--report", "out")
    preset = () if "--preset" in given else ("--preset", "reading")
    ran = zsq("evaluate", *given, *report, *preset, *LITTLE, "--no-cost")
    assert ran.code == 1 and not ran.stdout
    notices = ("zsq: expected time: ", " queries of each form")
    errors = [line for line in ran.stderr.splitlines() if not any(one in line for one in notices)]
    assert message in ran.stderr and len(errors) == 1


def test_contradictory_files_are_named_with_their_line(zsq: Zsq, tmp_path: Path) -> None:
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
    assert "inquire_queries_test.csv:3: the query '1' is repeated" in refused(f"inquire:{inquire},{own}")
    (inquire / "inquire_annotations.csv").write_text("query_id,image_path\n1,pink.png\n")
    assert "inquire_annotations.csv:2: the image 'pink.png' is not in" in refused(f"inquire:{inquire},{own}")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "captions.jsonl").write_text("")
    assert "the gallery is empty" in refused(f"folder:{empty}")


def test_the_verdict_is_a_template(zsq: Zsq, tmp_path: Path) -> None:
    data = write_colours(tmp_path / "colours", shades=12)
    pairs = [(n, m) for n in range(6) for m in range(6)]
    ratings = [f"test-000/{n:04}\ttest-000/{m:04}#0\t{1 + (n + m) % 3}\t1\t2\n" for n, m in pairs]
    (Path(data) / "ExpertAnnotations.txt").write_text("".join(ratings))
    ran = zsq(
        *("evaluate", f"flickr8k:{data}", "--preset", "reading", "--tune-on", "dev", "--systems", "all"),
        *("--template", "verdict", "--report", "docs/verdict.md", "--work", "work", "--queries", 8),
        *("--dialogs", 4, "--rounds", 1, *LITTLE),
    )
    assert ran.code == 0, ran.stderr
    text = Path("docs/verdict.md").read_text()
    assert text.startswith("# Does question generation find images")
    again = shlex.split(next(line for line in text.splitlines() if line.startswith("zsq evaluate flickr8k")))
    assert {"--template", "--dialogs", "--ablation-queries"} <= set(again)
    assert Path("docs/verdict/runs/text-to-image/caption/fused.run.gz").is_file()
    numbers = json.loads(Path("docs/verdict/numbers.json").read_text())
    assert {"agreement", "dialogs", "ablations"} <= {one["group"] for one in numbers["table"]}
    assert numbers["facts"]["dialogs"]

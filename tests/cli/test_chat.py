"""``zsq chat``, with toys that ask for colours."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from running import Zsq
from zsqretrieval.cli import app
from zsqretrieval.data.images import decode
from zsqretrieval.types import Image, LogLikelihood

Chat = Callable[..., tuple[int, str]]
QUESTION = "what is the colour of the thing?"


@pytest.fixture
def asking(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator of the preset ``reading`` asks for colours, and answers with one."""

    def colour(image: Image) -> str:
        return ("red", "green", "blue")[int(np.asarray(decode(image)).mean((0, 1)).argmax())]

    def log_likelihood(self: Any, contexts: Any, continuations: Any, **settings: Any) -> list[LogLikelihood]:
        pairs = zip(contexts, continuations, strict=True)
        likely = [0.9 if text.strip() == colour(context[0]) else 0.05 for context, text in pairs]
        return [
            LogLikelihood((text,), np.log(np.array([p], np.float32)))
            for p, text in zip(likely, continuations, strict=True)
        ]

    def generate(self: Any, contexts: Any, *, n: int = 1, **settings: Any) -> list[list[str]]:
        said = {"A question about this picture:": QUESTION, "An image of": "a thing"}
        return [[said.get(prompt) or colour(image)] * n for image, prompt in contexts]

    reader = importlib.import_module("cli_toys").Reader
    monkeypatch.setattr(reader, "log_likelihood", log_likelihood)
    monkeypatch.setattr(reader, "generate", generate)


@pytest.fixture
def chat(zsq: Zsq, asking: None, colours: Path) -> Chat:
    """Chat about an album of colours, given what is typed."""
    zsq("index", colours, "--out", "album", "--preset", "reading")

    def run(typed: str, *options: object) -> tuple[int, str]:
        arguments = ["chat", "album", "a thing", "--sure", "1", *map(str, options)]
        result = CliRunner().invoke(app, arguments, input=typed)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


def test_a_question_is_answered_and_the_image_found(chat: Chat) -> None:
    code, said = chat("blue\n")
    assert code == 0
    assert QUESTION in said
    tables = said.split(QUESTION)
    assert tables[0].count(".png") == 4 and "%" in tables[0]
    assert tables[1].index("blue.png") < tables[1].index("red.png")
    assert "nats" in tables[1]
    assert "No question would separate these images." in said
    assert "Likeliest: blue.png" in said.splitlines()[-1]
    assert chat("blue\n\nred\n")[1].count(QUESTION) == 1  # Enter ends it


def test_end_of_input_ends_the_dialog(chat: Chat) -> None:
    code, said = chat("")
    assert code == 0
    assert "Aborted" not in said and "Likeliest: " in said


def test_quit_and_undo(chat: Chat) -> None:
    code, said = chat("undo\nquit\n")
    assert code == 0
    assert "nothing to undo" in said and "Likeliest" in said
    _, said = chat("don't know\n", "--budget", 5)
    assert "No question would separate" in said
    _, said = chat("?!\nblue\n")  # says nothing: is asked again
    assert said.count(QUESTION) == 2 and "must have letters or digits" in said


def test_undo_takes_an_answer_back(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "who is next to it?"
    reader = importlib.import_module("cli_toys").Reader
    generate = reader.generate

    def asks_two(self: Any, contexts: Sequence[Any], *, n: int = 1, **settings: Any) -> list[list[str]]:
        if contexts[0][-1] == "A question about this picture:":
            return [([QUESTION, other] * n)[:n] for _ in contexts]
        return generate(self, contexts, n=n, **settings)  # type: ignore[no-any-return]

    monkeypatch.setattr(reader, "generate", asks_two)
    _, said = chat("blue\nundo\nquit\n")
    shown = said.split("probability")[1:]
    assert len(shown) == 3
    before, after, again = (table.split("Likeliest")[0].split("blue.png")[0] for table in shown)
    assert before == again != after


def test_undo_works_after_the_dialog_has_ended(chat: Chat) -> None:
    code, said = chat("blue\nundo\ngreen\n\n", "--sure", 0.5)
    assert code == 0
    assert said.count("One image is probable enough.") == 2 and said.count(QUESTION) == 2
    assert "Likeliest: green.png" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--budget", 0), "The budget of questions is spent."),
        (("--sure", 0.01), "One image is probable enough."),
    ],
)
def test_end_of_the_dialog_names_its_reason(chat: Chat, options: tuple[object, ...], reason: str) -> None:
    code, said = chat("blue\n", *options)
    assert code == 0 and reason in said and QUESTION not in said


def test_invalid_input_is_a_one_line_message(zsq: Zsq, chat: Chat, colours: Path) -> None:
    zsq("index", colours, "--out", "mute", "--preset", "toy")
    ran = zsq("chat", "mute", "a thing")
    assert ran.code == 1 and "a dialog needs a generator" in ran.stderr
    assert zsq("chat", "nowhere", "a thing").code == 1
    assert zsq("chat", "album", "a thing", "--generator-weights", "x").code == 2

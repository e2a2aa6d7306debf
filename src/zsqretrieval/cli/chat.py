"""``zsq chat``: look for an image by being asked about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsqretrieval.cli.console import PlainTable, printable, say, show
from zsqretrieval.cli.opening import open_album
from zsqretrieval.cli.reading import GeneratorWeights, Reread, Scale, Temper
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.dialog.dialog import Dialog

__all__ = ["chat"]

_UNDO = "undo"
_QUIT = frozenset({"quit", "exit"})
_WHY = {
    "sure": "I am sure enough.",
    "budget": "I have asked as much as I may.",
    "nothing to ask": "I know of no question that would tell these apart.",
    "no candidates": "All of these images were removed from the album.",
}


def chat(
    album: Annotated[Path, typer.Argument(metavar="ALBUM", help="Directory of the album.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What you are looking for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many images to show.")] = 5,
    candidates: Annotated[
        int, typer.Option(min=1, help="Images of the first stage to consider; answers bring more.")
    ] = 100,
    budget: Annotated[int, typer.Option(min=0, help="Most questions.")] = 10,
    sure: Annotated[float, typer.Option(help="Ask no more when an image is that probable.")] = 0.9,
    scale: Scale = None,
    temper: Temper = None,
    reread: Reread = 1.0,
    preset: Annotated[
        str | None, typer.Option(help="Ask with the generator of this preset, in place of the album's.")
    ] = None,
    generator_weights: GeneratorWeights = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the questions that are drawn.")] = 0,
) -> None:
    """Look for an image of an album, and be asked what would tell it from the others.

    Answer in words, with yes or no, or with "don't know". "undo" takes the last answer back, "quit" or the
    end of the input (Ctrl-D) ends the dialog.
    """
    from zsqretrieval.dialog.dialog import SCALE, TEMPER

    with open_album(album, reader=preset, generator_weights=generator_weights, reads=True) as retriever:
        dialog = retriever.dialog(
            text,
            candidates=candidates,
            budget=budget,
            sure=sure,
            scale=SCALE if scale is None else scale,
            temper=TEMPER if temper is None else temper,
            reread=reread,
            seed=seed,
        )
        _show(dialog, k)
        while True:
            question = dialog.question
            if question is None:
                say(_WHY[dialog.stopped or "nothing to ask"])
                if not dialog.history:
                    break
            said = _heard(question)
            if said is None or said.lower() in _QUIT or (question is None and said.lower() != _UNDO):
                break
            if _taken(dialog, said):
                _show(dialog, k)
        best = next(iter(dialog.ranking), None)
        if best is not None:
            say(f"Likeliest: {best.id}, {best.source}")


def _heard(question: str | None) -> str | None:
    """What is typed; None at the end of the input."""
    try:
        if question is None:
            return str(typer.prompt(f'Enter to end, or "{_UNDO}"', default="", show_default=False)).strip()
        return str(typer.prompt(printable(question), prompt_suffix="\n> ")).strip()
    except typer.Abort:
        say()
        return None


def _taken(dialog: Dialog, said: str) -> bool:
    """Whether what was said changed anything; says what was wrong with it otherwise."""
    try:
        if said.lower() == _UNDO:
            dialog.undo()
        else:
            dialog.answer(said)
    except InvalidInputError as error:
        say(str(error))
        return False
    return True


def _show(dialog: Dialog, k: int) -> None:
    table = PlainTable("", "probability", "image", numbers=("", "probability"))
    for place, (name, p) in enumerate(list(dialog.probabilities.items())[:k], start=1):
        table.add_row(str(place), f"{100 * p:.1f} %", name)
    show(table)
    if dialog.history:
        turn = dialog.history[-1]
        say(f"{turn.entropy_before:.2f} -> {turn.entropy_after:.2f} nats")

"""``zsq chat``: a dialog that asks clarifying questions in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from zsqretrieval._util.checks import printable
from zsqretrieval.cli.console import progress_bars, say, show
from zsqretrieval.cli.options import Album, Device, GeneratorPreset, GeneratorWeights, TrustParts, open_album
from zsqretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from zsqretrieval.dialog.dialog import Dialog
    from zsqretrieval.types import Progress

_UNDO = "undo"
_QUIT = frozenset({"quit", "exit"})
_WHY = {
    "sure": "One image is probable enough.",
    "budget": "The budget of questions is spent.",
    "nothing to ask": "No question would separate these images.",
    "no candidates": "All of these images were removed from the album.",
}


def chat(
    album: Album,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Description of the target image.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of images to show.")] = 5,
    candidates: Annotated[
        int, typer.Option(min=1, help="First-stage candidates to begin with; answers bring more.")
    ] = 100,
    budget: Annotated[int, typer.Option(min=0, help="Most questions.")] = 10,
    sure: Annotated[float, typer.Option(help="Stop when an image is that probable.")] = 0.9,
    preset: GeneratorPreset = None,
    generator_weights: GeneratorWeights = None,
    trust_parts: TrustParts = False,
    device: Device = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random draws.")] = 0,
) -> None:
    """Find one image of an album by answering questions about it.

    Answer in words, with yes or no, or with "don't know". "undo" takes the last answer back; "quit" or the
    end of the input (Ctrl-D) ends the dialog.
    """
    with open_album(
        album,
        preset=preset,
        generator_weights=generator_weights,
        needs_generator=True,
        trust_parts=trust_parts,
    ) as retriever:
        bars = _Bars()
        dialog = retriever.dialog(
            text, candidates=candidates, budget=budget, sure=sure, seed=seed, progress=bars.report
        )
        _show(dialog, k)
        while True:
            with bars.shown():
                question = dialog.question
            if question is None:
                say(_WHY[dialog.stopped or "nothing to ask"])
                if not dialog.history:
                    break
            said = _input(question)
            if said is None or said.lower() in _QUIT or (question is None and said.lower() != _UNDO):
                break
            with bars.shown():
                applied = _apply(dialog, said)
            if applied:
                _show(dialog, k)
        best = next(iter(dialog.ranking), None)
        if best is not None:
            say(f"Likeliest: {best.id}, {best.source}")


class _Bars:
    """Progress bars of a dialog, not shown while it waits for an answer."""

    def __init__(self) -> None:
        self._bars: Progress | None = None

    def report(self, step: str, done: int, total: int | None) -> None:
        if self._bars is not None:
            self._bars(step, done, total)

    @contextmanager
    def shown(self) -> Iterator[None]:
        with progress_bars() as self._bars:
            yield
        self._bars = None


def _input(question: str | None) -> str | None:
    """A line of input; None at its end."""
    try:
        if question is None:
            return str(typer.prompt(f'Enter to end, or "{_UNDO}"', default="", show_default=False)).strip()
        return str(typer.prompt(printable(question), prompt_suffix="\n> ")).strip()
    except typer.Abort:
        say()
        return None


def _apply(dialog: Dialog, said: str) -> bool:
    """Apply an answer or undo; prints the error and returns False if it is not valid."""
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
    likeliest = enumerate(list(dialog.probabilities.items())[:k], start=1)
    rows = [(str(rank), f"{100 * p:.1f} %", name) for rank, (name, p) in likeliest]
    show(("", "probability", "image"), rows, numbers=("", "probability"))
    if dialog.history:
        turn = dialog.history[-1]
        say(f"Entropy: {turn.entropy_before:.2f} -> {turn.entropy_after:.2f} nats")

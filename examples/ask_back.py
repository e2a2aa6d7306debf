"""Look for a photograph of which little is said, and be asked about it.

    python examples/ask_back.py

The album is the photographs that arrive inside the wheels of scikit-image and scikit-learn
(``pip install "zsqretrieval[demo]"``). Somebody means one of them, begins with a few words, and answers what
is asked by what they remember; for this example their memory is a sentence or two, read by rule. To answer
yourself: ``zsq index FOLDER --out ALBUM``, then ``zsq chat ALBUM "a few words"``.
"""

from __future__ import annotations

from zsqretrieval import Dialog, InformationGain, Retriever
from zsqretrieval.demo import photographs
from zsqretrieval.evaluation.simulated_user import CaptionUser

MEANT = {
    "astronaut": ("somebody", ["a woman in an orange suit is smiling in front of a flag"]),
    "photographer": ("somebody", ["a man in a black coat is looking through a camera in a field"]),
    "motorcycle": ("a thing", ["a red motorcycle is standing in a garage"]),
}
"""By photograph: what is said to begin with, and what is remembered."""


def main() -> None:
    """Print one dialog for each photograph that is meant."""
    with Retriever.from_preset("mini", states="memory") as retriever:
        retriever.add(photographs())
        for wanted, (text, memory) in MEANT.items():
            print(f'\n"{text}" (meant: {wanted})')  # noqa: T201
            ask(retriever.dialog(text, policy=InformationGain(top=18), budget=4), CaptionUser(memory))


def ask(dialog: Dialog, user: CaptionUser) -> None:
    """Ask until the dialog stops, and print what is believed in between."""
    tell(dialog)
    while (question := dialog.question) is not None:
        dialog.answer(user.answer(question))
        turn = dialog.history[-1]
        print(f"  {turn.question} {turn.answer}")  # noqa: T201
        tell(dialog)
    print(f"  stopped: {dialog.stopped}")  # noqa: T201


def tell(dialog: Dialog) -> None:
    """Print the likeliest three photographs."""
    likeliest = list(dialog.probabilities.items())[:3]
    told = ", ".join(f"{name} {100 * p:.0f} %" for name, p in likeliest)
    print(f"    {dialog.entropy:.2f} nats: {told}")  # noqa: T201


if __name__ == "__main__":
    main()

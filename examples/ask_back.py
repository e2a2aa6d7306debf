"""Find a photograph from a few words by answering clarifying questions; prints Markdown.

    python examples/ask_back.py

The album is the photographs that arrive inside the wheels of scikit-image and scikit-learn
(``pip install "zsqretrieval[demo]"``). A simulated user has one of them as the target image, begins with a
few words, and answers by rule from a sentence about the target. To answer yourself: ``zsq index FOLDER --out
ALBUM``, then ``zsq chat ALBUM "a few words"``.
"""

from __future__ import annotations

from zsqretrieval import Retriever
from zsqretrieval.data.samples import photographs
from zsqretrieval.dialog.dialog import Dialog
from zsqretrieval.dialog.policies import InformationGain
from zsqretrieval.evaluation.simulated_user import CaptionUser

TARGETS = {
    "astronaut": ("somebody", ["a woman in an orange suit is smiling in front of a flag"]),
    "photographer": ("somebody", ["a man in a black coat is looking through a camera in a field"]),
    "motorcycle": ("a thing", ["a red motorcycle is standing in a garage"]),
}
"""By target image: the query, and the sentences that the user remembers."""


def main() -> None:
    """Print one dialog for each target image."""
    with Retriever.from_preset("mini") as retriever:
        retriever.add(photographs())
        for target, (text, memory) in TARGETS.items():
            dialog = retriever.dialog(text, policy=InformationGain(top=18), budget=4)
            print(f'**"{text}"**, target image {target}: {posterior(dialog)}\n')  # noqa: T201
            ask(dialog, CaptionUser(memory))


def ask(dialog: Dialog, user: CaptionUser) -> None:
    """Answer until the dialog ends, and print the posterior after every answer."""
    while (question := dialog.question) is not None:
        dialog.answer(user.answer(question))
        turn = dialog.history[-1]
        print(f"1. *{turn.question}* {turn.answer}: {posterior(dialog)}")  # noqa: T201
    print(f"\nStopped: {dialog.stopped}.\n")  # noqa: T201


def posterior(dialog: Dialog) -> str:
    """The three most probable photographs, and the entropy."""
    likeliest = list(dialog.probabilities.items())[:3]
    told = ", ".join(f"{name} {100 * p:.0f} %" for name, p in likeliest)
    return f"{told} ({dialog.entropy:.2f} nats)"


if __name__ == "__main__":
    main()

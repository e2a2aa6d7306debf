"""Find a photograph from two words by answering clarifying questions; prints Markdown.

    python examples/chat.py

The query "an animal" fits twenty photographs of the demo. A simulated user has one of them in mind, knows one
sentence about it, and answers by rule. Two dialogs find their photograph by one question, about what the dog
is doing. The third does not: its target is a cat, and the mini generator asks about dogs, women and grass,
because it was trained on photographs of these. A quarter of a minute on two cores. To answer yourself:
``zsq chat``.
"""

# ruff: noqa: T201

from __future__ import annotations

from zsqretrieval import Retriever
from zsqretrieval.data.samples import photographs
from zsqretrieval.dialog.dialog import Dialog
from zsqretrieval.dialog.policies import InformationGain
from zsqretrieval.evaluation.simulated_user import CaptionUser
from zsqretrieval.presets import PRESETS

PRECISE = PRESETS["mini"].variant(generator_config={"dtype": "float32"})
"""The same dialogs on every processor; by default some compute in bfloat16."""
QUERY = "an animal"
TARGETS = {
    "two_dogs": "two brown dogs are looking out of a window",
    "dog": "a brown dog is sticking out its tongue",
    "cat_lying": "a cat is rolling on its back on the ground",
}
"""By target image: the sentence that the user knows."""


def main() -> None:
    """Print one dialog for each target image."""
    with Retriever.from_preset(PRECISE) as retriever:
        retriever.add(photographs())
        dialog = retriever.dialog(QUERY, policy=InformationGain(top=18), budget=3)
        for target, memory in TARGETS.items():
            print(f"**{QUERY}**, target image {target}: {place(dialog, target)}\n")
            user = CaptionUser([memory])
            while (question := dialog.question) is not None:
                dialog.answer(user.answer(question))
                turn = dialog.history[-1]
                gain = f"expected gain {turn.expected_gain:.2f} nats, " if turn.expected_gain else ""
                print(f"1. *{turn.question}* {turn.answer} ({gain}{place(dialog, target)})")
            found = next(iter(dialog.probabilities)) == target
            print(f"\n{'Found' if found else 'Not found'}; stopped: {dialog.stopped}.\n")
            while dialog.history:
                dialog.undo()  # the next user begins with the query, and finds the same questions prepared


def place(dialog: Dialog, target: str) -> str:
    """Rank and probability of the target image, and the entropy."""
    rank = list(dialog.probabilities).index(target) + 1
    return f"rank {rank}, {100 * dialog.probabilities[target]:.0f} %; entropy {dialog.entropy:.2f}"


if __name__ == "__main__":
    main()

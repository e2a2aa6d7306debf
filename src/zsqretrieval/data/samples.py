"""An album to begin with: everyday photographs that the package ships, and questions for them.

Their authors and terms are in ``demo/photographs.csv`` and ``demo/LICENSES.md``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from zsqretrieval.types import Image

FOLDER = Path(__file__).with_name("demo")
"""The photographs, JPEG of at most 512 pixels per side, and the table of their authors and terms."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the id of the one photograph that answers it; None when nobody has said which does."""

    text: str
    expected: str | None = None
    answerable: bool = True  # False: no photograph answers it


QUESTIONS: tuple[Question, ...] = (
    Question("Who is smiling next to a flag?", "astronaut"),
    Question("Who is walking on the moon?", "moonwalk"),
    Question("Which man looks through a camera on a tripod?", "photographer"),
    Question("Where are people climbing stairs?", "stairs"),
    Question("Which cat is rolling on the ground?", "cat_lying"),
    Question("Which cat has blue eyes?", "cat_portrait"),
    Question("Where are two dogs looking out of a window?", "two_dogs"),
    Question("Is a dog sticking out its tongue?", "dog"),
    Question("Which bird is hiding behind a piece of wood?", "owl"),
    Question("Which animal with antlers is having a rest?", "moose"),
    Question("What did we drink by the sea?", "cocktail"),
    Question("What is being eaten with chopsticks?", "sushi"),
    Question("Which fruit is lying in a red bowl?", "fig"),
    Question("What was stacked on a plate for breakfast?", "pancakes"),
    Question("Which bridge is lit up at night?", "bridge"),
    Question("Is there a glass pyramid in front of an old palace?", "louvre"),
    Question("Which building is leaning to one side?", "leaning_tower"),
    Question("Which building has sails that turn in the wind?", "stone_windmill"),
    Question("In which room is a drum lying on a cushion?", "drum"),
    Question("What is moving so fast that the road is blurred?", "sports_car"),
    Question("What carries people in a basket through the air?", "balloon"),
    Question("Is a rocket still standing on its launch pad?", "rocket"),
    Question("What do I need to play video games?", "gamepad"),
    Question("Where do flowers lie on top of two books?", "books"),
    Question("Which flowers have turned into seeds that the wind can blow away?", "dandelions"),
    Question("Which path leads towards mountains with snow?", "mountain_path"),
)
"""Written before any model had seen the photographs, and not changed to suit one."""

UNANSWERABLE: tuple[Question, ...] = (
    Question("Is somebody riding a bicycle?", answerable=False),
    Question("Where is a child with a birthday cake?", answerable=False),
    Question("Which train is waiting at the station?", answerable=False),
    Question("Who is playing the piano?", answerable=False),
)
"""Written with the others; no photograph answers them."""

GENERIC_QUESTIONS: tuple[Question, ...] = (
    Question("Where are people together?"),
    Question("Is there an animal?"),
    Question("What is there to eat or drink?"),
    Question("Which picture was taken in nature?"),
    Question("Is there a building?"),
    Question("Where is something with wheels?"),
)
"""For an album of which nothing is known."""


def photographs() -> list[Image]:
    """The photographs by id, not opened; their metadata is ``credit`` (author and licence) and ``source``."""
    with (FOLDER / "photographs.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    return [
        Image(
            path := FOLDER / f"{row['id']}.jpg",
            str(path),
            id=row["id"],
            metadata={"credit": f"{row['author']} ({row['licence']})", "source": row["source"]},
        )
        for row in rows
    ]

"""Data sets of six colours, in shards and as a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PILImage

from plain import write_plain
from tars import pack
from zsqretrieval.testing.pictures import encoded
from zsqretrieval.testing.toys import COLOURS

CAPTIONS = {
    name: (f"A {name} dog runs through the grass .", f"Two dogs run beside a {name} ball .")
    for name in COLOURS
}


def write_colours(folder: Path, splits: Sequence[str] = ("dev", "test"), shades: int = 1) -> Path:
    """Shards of plain images, each with two captions that name its colour; several shades of each.

    A pixel differs from split to split, so no image is in two.
    """
    folder.mkdir()
    for place, split in enumerate(splits):
        members = {}
        for number in range(shades * len(COLOURS)):
            name = list(COLOURS)[number % len(COLOURS)]
            picture = PILImage.new("RGB", (8, 8), name)
            picture.putpixel((0, 0), (number, number, number + 100 * place))
            members[f"{number:04}.png"] = encoded(picture)
            members[f"{number:04}.json"] = json.dumps({"captions": CAPTIONS[name]}).encode()
        pack(folder / f"{split}-000.tar", members)
    return folder


def write_folder(folder: Path) -> Path:
    """Images of one's own, with captions and a question of a person."""
    write_plain(folder, COLOURS)
    lines = []
    for name in COLOURS:
        said = {"captions": list(CAPTIONS[name]), "questions": [f"who is {name} ?"]}
        lines.append(json.dumps({"image": f"{name}.png", **said}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder

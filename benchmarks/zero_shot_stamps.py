"""Make a captioned test set of Tux Paint's photographic stamps, on which no model here was trained.

The stamps are cut-out photographs (and a few drawings) of animals, food, clothes, vehicles and so on, each
with its name in one line ("A marmot."). They ship with Linux distributions, under their own free licences:

    apt-get install tuxpaint-stamps-default
    python -m benchmarks.zero_shot_stamps /usr/share/tuxpaint/stamps OUT
    zsq evaluate shards:OUT --generator none --report REPORT

Drawings and symbols are left out, and so are all but the first of several stamps with the same line. Writes
``OUT/test-00000.tar``, one sample a stamp: ``{key}.png`` and ``{key}.txt``.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

DRAWN = frozenset({"cartoon", "symbols", "flags", "naturalforces"})


def stamps(folder: Path) -> Iterator[tuple[str, bytes, str]]:
    """Key, PNG and English line of every photographic stamp, in a stable order."""
    seen: set[str] = set()
    for image in sorted(folder.rglob("*.png")):
        line = image.with_suffix(".txt")
        path = image.relative_to(folder)
        if DRAWN.intersection(path.parts) or "cartoon" in image.stem or not line.exists():
            continue
        # The first line is English; translations follow, each after the name of its language.
        english = line.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        if english and english not in seen:
            seen.add(english)
            yield "-".join(path.with_suffix("").parts).replace(".", "_"), image.read_bytes(), english


def write_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append one file to the tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def main() -> None:
    """Write the shard."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stamps", type=Path, help="folder of the stamps")
    parser.add_argument("out", type=Path, help="folder for the shard")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(args.out / "test-00000.tar", "w") as tar:
        for key, png, line in stamps(args.stamps):
            write_member(tar, f"{key}.png", png)
            write_member(tar, f"{key}.txt", line.encode())


if __name__ == "__main__":
    main()

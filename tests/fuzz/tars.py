"""Tars of samples: damaged bytes, headers that lie with the right checksum, pax, links, joins and gzip."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from dataclasses import dataclass

from tests.fuzz.images import plain
from tests.fuzz.oracle import ENCODER, Case, Target, WrongError, check_caption, check_found, damage, odd_text
from zsqretrieval.errors import ZsqError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyGenerator

_FIELDS = {  # offset and size in a header
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "size": (124, 12), "mtime": (136, 12),
    "type": (156, 1), "link": (157, 100), "magic": (257, 8), "major": (329, 8), "prefix": (345, 155),
}  # fmt: skip
_SIZES = (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + bytes(7) + b"\1\0\0\0", b"-1")
_TYPES = b"0123567LKSxgXZ\0"
_PAX = {
    "size": ("1", "-1", "1e30", str(10**30), "x"), "path": ("", "/", "../x.png", "\0", "a" * 5000),
    "mtime": ("nan", "inf", "1e400"), "linkpath": ("x",), "hdrcharset": ("BINARY", "x"), "uid": ("-1", "x"),
    "GNU.sparse.map": ("0,1", "0,99999999999999", "x", "1"), "GNU.sparse.size": (str(10**15), "-1", "x"),
    "GNU.sparse.major": ("1",), "GNU.sparse.realsize": (str(2**50),), "GNU.sparse.name": ("a.png",),
}  # fmt: skip
_ODD_JSON = (
    b"", b"{", b"[]", b"null", b"3", b"[" * 50_000, b'{"a": 1e999}', b'{"a": NaN}', b'{"caption": 3}',
    b"\xff", b'{"caption": ["a"]}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a": {"b": [1, {"c": null}]}}',
    b'{"": ""}', b'{"x": "\\ud800"}', b'{"caption": "\\udfff x"}', b'{"a": "\\u0000"}', b'{"a": 1, "a": 2}',
)  # fmt: skip
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
_PLACES = ("/dev/zero", "link", "0.png", "gone", "../../etc/passwd")


@dataclass(frozen=True)
class Sample:
    """One sample of a tar, and the position in the tar where it ends."""

    key: str
    image: bytes
    caption: str
    end: int


class Tars(Target):
    def case(self, chance: random.Random) -> Case:
        kinds = ("bytes", "bytes", "headers", "headers", "pax", "joined", "texts", "links", "gzip", "bomb")
        kind = chance.choices(kinds, (*[10] * 9, 0.3))[0]
        content, samples = packed(kind, "", chance)
        suffix, note = ".tar", ""
        if kind in ("bytes", "headers"):
            content, first, note = (damage_header if kind == "headers" else damage_bytes)(content, chance)
            samples = [one for one in samples if one.end <= first]
        elif kind == "joined":
            more, others = packed(kind, "other ", chance)
            content, samples = content + more, samples + others
        elif kind in ("gzip", "bomb"):
            suffix, note = chance.choice([".tar.gz", ".tgz"]), kind
            if kind == "gzip":
                note = chance.choice(["whole", "parts", "behind", "damaged", "damaged"])
            content = zipped(content, note, chance)
            samples = [] if note in ("damaged", "bomb") else samples
        path = self.room / f"shard{suffix}"
        path.write_bytes(content)
        generator, batch_size = chance.choice([None, None, ToyGenerator()]), chance.choice([1, 32])

        def run() -> str:
            refused: ZsqError | None = None
            skipped: tuple[object, ...] = ()
            with Retriever(ENCODER, ExactIndex(ENCODER.dim), generator) as album:
                try:
                    skipped = album.add(path, batch_size=batch_size).skipped
                except ZsqError as error:
                    refused = error
                # Of the sample before the damage nobody knows whether it is whole.
                whole = samples[:-1] if refused and kind in ("bytes", "headers", "pax") else samples
                check_samples(album, whole, f"{kind}: {refused or skipped}")
                if len(album) and len(album.search("a red thing", 99)) != len(album):
                    raise WrongError("a search loses images")
            if refused is not None:
                raise refused
            return "skipped" if skipped else "right"

        return Case(f"{kind} {note}: {len(content)} bytes, {len(samples)} samples expected", run)


def packed(kind: str, prefix: str, chance: random.Random) -> tuple[bytes, list[Sample]]:
    """A tar of a few samples, with odd members or headers; and the samples that must be found."""
    buffer, samples, sound = io.BytesIO(), list[Sample](), True
    format = chance.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
    format = tarfile.PAX_FORMAT if kind == "pax" else format
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for number in range(chance.randint(1, 4)):
            key = f"{chance.choice(['', '', 'folder/'])}{prefix}{number}"
            image, caption, pax = plain(chance), odd_text(chance), dict[str, str]()
            members = {"png": image, "txt": caption.encode()}
            if kind == "texts":
                members["json"] = chance.choice(_ODD_JSON)
            for _ in range(chance.randint(0, 2) if kind == "links" else 0):
                link = tarfile.TarInfo(chance.choice(["link", "0.png", f"{key}.png", "/dev/zero", "../up"]))
                link.type, link.linkname = chance.choice(_LINKS), chance.choice(_PLACES)
                tar.addfile(link)
            if kind == "pax" and chance.random() < 0.5:
                names = chance.sample(sorted(_PAX), chance.randint(1, 3))
                pax, sound = {name: chance.choice(_PAX[name]) for name in names}, False
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.pax_headers = len(content), dict(pax)
                tar.addfile(member, io.BytesIO(content))
            if sound:  # an odd header may end the tar
                samples.append(Sample(key, image, caption, tar.offset))
    return buffer.getvalue(), samples


def damage_bytes(content: bytes, chance: random.Random) -> tuple[bytes, int, str]:
    return *damage(content, chance), ""


def damage_header(content: bytes, chance: random.Random) -> tuple[bytes, int, str]:
    """Change a field of one header, and its checksum; also gives the position of the header."""
    marks = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    at, name = chance.choice(marks), chance.choice(sorted(_FIELDS))
    header, (offset, size) = bytearray(content[at : at + 512]), _FIELDS[name]
    odd = {"size": chance.choice(_SIZES), "type": bytes([chance.choice(_TYPES)])}
    value = odd.get(name, chance.randbytes(size))
    header[offset : offset + size] = value.ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + header + content[at + 512 :], at, f"{name} {value[:20]!r} at {at}"


def zipped(content: bytes, how: str, chance: random.Random) -> bytes:
    """A compressed tar: whole, in parts, with bytes behind its end, damaged, or a bomb of 2 GiB."""
    if how == "bomb":
        member = tarfile.TarInfo("0.png")
        member.size = 2**31
        return _zip(member.tobuf()) + _zip(bytes(2**26), 1) * 32 + _zip(bytes(1024))
    if how == "parts":
        cut = chance.randrange(len(content))
        return _zip(content[:cut]) + _zip(content[cut:])
    content = _zip(content)
    if how == "damaged":
        return damage(content, chance)[0]
    return content + bytes(chance.choice([1, 600, 20_000]) if how == "behind" else 0)


def check_samples(album: Retriever, samples: list[Sample], told: str) -> None:
    """Every sample is there with its image and caption, and found."""
    images = {f"shard/{one.key}": one.image for one in samples}
    for one in samples:
        record = album.find(f"shard/{one.key}")
        if record is None or record.bytes != len(one.image):
            there = [record.id for record in album.records()]
            raise WrongError(f"a sample is lost: {told}: {one.key}; there are {there}")
        check_caption(album, record.id, one.caption)
    if len(album):
        check_found(album, images)


def _zip(content: bytes, level: int = 9) -> bytes:
    return gzip.compress(content, level, mtime=0)  # else every second has bytes of its own

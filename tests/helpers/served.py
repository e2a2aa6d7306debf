"""An album of plain pictures behind the page and its API, without a network."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image as PILImage
from starlette.testclient import TestClient

from zsqretrieval.presets import Calibration
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import ToyEncoder, ToyGenerator
from zsqretrieval.testing.pictures import encoded
from zsqretrieval.testing.toys import COLOURS
from zsqretrieval.types import Image
from zsqretrieval.web.app import make_app
from zsqretrieval.web.server import Server, listening
from zsqretrieval.web.settings import Settings

HOST = frozenset({"testserver"})
MARKUP = "<script>alert('x')</script> & \"more\""
ODD = 'odd "name";\r\nSet-Cookie: x=1; ü #1.png'
BITMAP, GONE = "bitmap.bmp", "gone.png"


def picture(colour: str = "red", size: tuple[int, int] = (64, 48), format: str = "PNG") -> bytes:
    return encoded(PILImage.new("RGB", size, colour), format)


def images(folder: Path) -> Iterator[Image]:
    """Six plain pictures and three odd ones, in files."""
    folder.mkdir(parents=True)
    names = [*(f"{colour}.png" for colour in COLOURS), ODD, BITMAP, GONE]
    for n, name in enumerate(names):
        colour = (*COLOURS, "gray", "brown", "purple")[n]
        (folder / name).write_bytes(picture(colour, (64 + n, 48), "BMP" if name == BITMAP else "PNG"))
        facts = {"year": 2000 + n, "camera": "A" if n < 4 else "B", "credit": "somebody"}
        taken = {} if n == 3 else {"taken": f"2020-01-{20 - n:02}T10:00:00"}
        caption = MARKUP if n == 2 else None
        yield Image(folder / name, str(folder / name), name, caption, {**facts, **taken})


def make_album(folder: Path, **parts: Any) -> Retriever:
    """An album in a folder of the pictures."""
    calibration = Calibration(relevance_scale=10.0, relevance_margin=0.1)
    generator = parts.pop("generator", ToyGenerator())
    made = Retriever(
        ToyEncoder(), generator=generator, path=folder / "secret album", calibration=calibration, **parts
    )
    made.add(images(folder / "secret pictures"))
    (folder / "secret pictures" / GONE).unlink()
    return made


@contextmanager
def client(retriever: Retriever, **settings: Any) -> Iterator[TestClient]:
    """A client of an album; errors of the server are answers."""
    app = make_app(retriever, Settings(**{"names": HOST, "upload_rate": 10_000, **settings}))
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as made:
        yield made


@contextmanager
def listening_at(retriever: Retriever, **settings: Any) -> Iterator[tuple[str, Server]]:
    """A server of an album on a free port, in a thread: its address, and itself."""
    server = Server(make_app(retriever, Settings(**settings)))
    with listening("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join()


def path_of(prefix: str, id: str) -> str:
    return prefix + quote(id, safe="")


def events(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]

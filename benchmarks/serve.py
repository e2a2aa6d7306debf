"""Many clients of one ``zsq serve`` on loopback: the first paint, load, and an end in the middle of it.

Every client searches and then loads the thumbnails of its first hits. A client that gets 429 waits as long as
the server asks. The vectors of the album are drawn at random, so its rankings mean nothing.

python -m benchmarks.serve --images 10000 --clients 200 --json
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np

from benchmarks.embed import crops
from benchmarks.output import command_line, run, write_results
from zsqretrieval.retriever import Retriever

_ZSQ = ("-c", "from zsqretrieval.cli import main; main()")
_PLACES = ("beside the water", "in the snow", "at night", "on a street")
_QUESTIONS = [f"a dog running {place}" for place in _PLACES]
_THUMBNAILS = 6
_FIRST_SCREEN = 60
_LONGEST_PAUSE = 2.0  # seconds, whatever the server asks for


def make_album(folder: Path, images: int) -> Path:
    """An album of photographs' crops with random vectors."""
    files = []
    (folder / "photographs").mkdir()
    for n, content in enumerate(crops(images)):
        files.append(folder / "photographs" / f"{n:06d}.jpg")
        files[-1].write_bytes(content)
    drawn = np.random.default_rng(0)
    with Retriever.open(folder / "album", preset="mini") as retriever:
        vectors = drawn.standard_normal((images, retriever.encoder.dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        metadata = [
            {"taken": f"20{n % 20 + 10}-07-01T12:00:00", "camera": f"C{n % 9}"} for n in range(images)
        ]
        ids = [path.name for path in files]
        retriever.add_embeddings(vectors, ids=ids, sources=files, metadata=metadata)
        retriever.save()
    return folder / "album"


@contextmanager
def serving(album: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process ``zsq serve`` and its address."""
    command = [sys.executable, *_ZSQ, "serve", str(album), "--port", "0", *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(album.parent / "cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[-1].rstrip("/")
        finally:
            process.kill()


class Load:
    """Clients that search; what they got, and how long it took."""

    def __init__(self, address: str, clients: int, rerank: bool) -> None:
        self.statuses: Counter[int] = Counter()
        self.lost = self.refused = self.half = self.failed = 0
        self.seconds: dict[str, list[float]] = {"first results": [], "all results": [], "thumbnail": []}
        self._rerank = rerank
        limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
        self._client = httpx2.AsyncClient(base_url=address, limits=limits, timeout=600)

    async def run(self, clients: int, rounds: int) -> float:
        """Let all clients do their rounds; the seconds that they took."""
        begin = time.perf_counter()
        async with self._client:
            await asyncio.gather(*(self._visit(n, rounds) for n in range(clients)))
        return time.perf_counter() - begin

    async def _visit(self, client: int, rounds: int) -> None:
        for n in range(rounds):
            question = _QUESTIONS[(client + n) % len(_QUESTIONS)]
            found = await self._ask("POST", "/api/search", {
                "terms": [{"text": question}], "k": _THUMBNAILS, "candidates": 20, "rerank": self._rerank
            })  # fmt: skip
            for hit in found:
                await self._ask("GET", f"/thumb/{quote(hit['id'], safe='')}?size=256")

    async def _ask(self, method: str, path: str, body: Any = None) -> list[dict[str, Any]]:
        """Repeat a request until it is answered; the hits of a search."""
        while True:
            lines: list[str] = []
            answer, begin = None, time.perf_counter()
            try:
                async with self._client.stream(method, path, json=body) as answer:
                    if answer.status_code == 200 and body is not None:
                        async for line in answer.aiter_lines():
                            if not lines:
                                self._took("first results", begin)
                            lines.append(line)
                    else:
                        await answer.aread()
            except httpx2.ConnectError:
                self.refused += 1
                return []
            except httpx2.HTTPError:
                self.lost += answer is None
                self.half += answer is not None
                return []
            self.statuses[answer.status_code] += 1
            if answer.status_code != 429:
                break
            await asyncio.sleep(min(float(answer.headers["retry-after"]), _LONGEST_PAUSE))
        if answer.status_code != 200:
            return []
        self._took("all results" if lines else "thumbnail", begin)
        last = json.loads(lines[-1]) if lines else {"event": "done", "hits": []}
        self.failed += last["event"] == "error"
        self.half += last["event"] not in ("done", "error")
        return list(last.get("hits", []))

    def _took(self, name: str, begin: float) -> None:
        self.seconds[name].append(time.perf_counter() - begin)

    def facts(self) -> dict[str, Any]:
        """Counts, and quantiles of the time of the last attempt in seconds."""
        return {
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "lost": self.lost,
            "half_answered": self.half,
            "streams_with_error": self.failed,
            "connections_refused": self.refused,
            "seconds": {
                name: dict(zip(("p50", "p99"), np.quantile(some, (0.5, 0.99)).tolist(), strict=True))
                for name, some in self.seconds.items()
                if some
            },
        }


def first_paint(address: str) -> dict[str, float]:
    """Median seconds of the page and the first answers of the API, and of new thumbnails of one screen."""
    with httpx2.Client(base_url=address, timeout=600) as client:
        found = client.get("/api/images", params={"limit": _FIRST_SCREEN}).json()["images"]
        paths = [f"/thumb/{quote(one['id'], safe='')}" for one in found]
        rounds = {"page": ["/"], "album": ["/api/album"], "images": ["/api/images"]}
        times = {name: [_time(client, path) for path in paths * 9] for name, paths in rounds.items()}
        made, kept = ([_time(client, path) for path in paths] for _ in range(2))
    medians = {name: float(np.median(some)) for name, some in times.items()}
    return {**medians, "new thumbnail": float(np.median(made)), "kept thumbnail": float(np.median(kept))}


def _time(client: httpx2.Client, path: str) -> float:
    begin = time.perf_counter()
    assert client.get(path).status_code == 200
    return time.perf_counter() - begin


async def ended_during(process: subprocess.Popen[str], load: Load, clients: int, seconds: float) -> None:
    """Load that goes on while the server ends."""
    running = asyncio.create_task(load.run(clients, 1000))
    await asyncio.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait)
    running.cancel()
    await asyncio.wait([running])


def bench(folder: Path, images: int, clients: int, rounds: int) -> dict[str, Any]:
    """Measure in an empty folder."""
    album = make_album(folder, images)
    facts: dict[str, Any] = {"images": images, "clients": clients, "rounds": rounds}
    with serving(album) as (process, address):
        facts["first_paint_s"] = first_paint(address)
        warm = Load(address, 1, True)
        asyncio.run(warm.run(1, len(_QUESTIONS)))
        for name, rerank in (("first stage", False), ("re-ranked", True)):
            load = Load(address, clients, rerank)
            seconds = asyncio.run(load.run(clients, rounds))
            searches = len(load.seconds["all results"])
            facts[name] = {**load.facts(), "wall_s": seconds, "searches_per_s": searches / seconds}
        load = Load(address, clients, True)
        asyncio.run(ended_during(process, load, clients, 3.0))
        facts["ended"] = {**load.facts(), "exit_code": process.returncode}
    return facts


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "serve",
        "Load a server with many clients on loopback.",
        images=(10_000, "Images of the album."),
        clients=(200, "Clients at the same time."),
        rounds=(3, "Searches of each."),
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        facts = bench(Path(folder), given.images, given.clients, given.rounds)
    rows = [
        (load, name, *(f"{1000 * facts[load]['seconds'][name][one]:.0f}" for one in ("p50", "p99")))
        for load in ("first stage", "re-ranked")
        for name in facts[load]["seconds"]
    ]
    notes = [f"{name}: {1000 * seconds:.0f} ms" for name, seconds in facts["first_paint_s"].items()]
    notes += [
        f"{load}: answers by status {facts[load]['statuses']}, lost {facts[load]['lost']}, "
        f"half-answered {facts[load]['half_answered']}, ended by an error {facts[load]['streams_with_error']}"
        for load in ("first stage", "re-ranked", "ended")
    ]
    write_results(facts, ("load", "milliseconds", "p50", "p99"), rows, notes, as_json=given.json)


if __name__ == "__main__":
    run(main)

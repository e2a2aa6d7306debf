"""Regenerate frozen numbers and compare them with the committed files.

    python tests/golden/golden.py --data FLICKR8K --work DIR   # flickr8k_dev.npz and .json, in minutes
    python tests/golden/golden.py --small                      # scikit_image.json, in seconds
    python tests/golden/golden.py ... --write                  # writes the files instead of comparing

FLICKR8K is a folder of shards, ``dev-*.tar`` with ``{key}.jpg`` and ``{key}.json`` (``image``, a file name,
and ``captions``). The files hold none of its pictures and captions: a picture is named by its file, a query
``{file}#{number of the caption}``. The texts in them are the mini generator's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from comparing import HEADER, Numbers, compare, line, load, save

Ranking: TypeAlias = "list[tuple[str, Mapping[str, float]]]"
"""Pictures and their scores by stage, best first."""

T = TypeVar("T")

# --- the library: every call into it is in this section ---------------------------------------------------


@dataclass(frozen=True)
class Album:
    """An opened album, and its pictures as the library names them."""

    retriever: Any
    pictures: Mapping[str, Any]


def build_album(folder: Path, pictures: Mapping[str, bytes]) -> Album:
    """Make an album of the preset "mini" in float32, which is alike on all machines, with the exact index."""
    from zsqretrieval import Retriever
    from zsqretrieval.presets import PRESETS
    from zsqretrieval.types import Image

    preset = PRESETS["mini"].variant(index="exact", generator_config={"dtype": "float32"})
    retriever = Retriever.open(folder, preset, states="disk")
    images = {name: Image(content, name, id=name) for name, content in pictures.items()}
    retriever.add(images.values())
    return Album(retriever, images)


def close(album: Album) -> None:
    """Close an album."""
    album.retriever.close()


def query_bank(album: Album, texts: Sequence[str]) -> Any:
    """A query bank for :func:`search`."""
    return album.retriever.query_bank(texts)


def search(
    album: Album, text: str, count: int, scoring: str | None, bank: Any = None, batch_size: int = 16
) -> Ranking:
    """Rank the first ``count`` candidates: ids and the scores of all stages, best first."""
    from zsqretrieval import Likelihood, Rerank, YesNo

    rules = {None: None, "likelihood": Likelihood(), "yes_no": YesNo()}
    how = Rerank(rules[scoring], candidates=count, batch_size=batch_size)
    ranking = album.retriever.search(text, count, rerank=how, bank=bank)
    return [(hit.id, hit.scores) for hit in ranking]


def caption(album: Album, names: Sequence[str], batch_size: int = 16) -> list[str]:
    """Describe pictures by the likeliest words."""
    contexts = [[album.pictures[name], "An image of"] for name in names]
    return [text for (text,) in album.retriever.generator.generate(contexts, batch_size=batch_size)]


def likelihoods(
    album: Album, names: Sequence[str], prompt: str, texts: Sequence[str], batch_size: int = 16
) -> list[float]:
    """Score texts: log P(text | picture, prompt) in nats."""
    contexts = [[album.pictures[name], prompt] for name in names]
    continuations = [f" {text}" for text in texts]
    found = album.retriever.generator.log_likelihood(contexts, continuations, batch_size=batch_size)
    return [one.sum for one in found]


def questions(album: Album) -> tuple[list[str], list[str]]:
    """Let every picture be asked, and keep all questions: names of the pictures, and texts."""
    album.retriever.questions.generate(top_k=None)
    stored = list(album.retriever.questions.list())
    return [one.id for one in stored], [one.text for one in stored]


def encode(album: Album, texts: Sequence[str]) -> NDArray[np.float32]:
    """The vectors of texts."""
    vectors: NDArray[np.float32] = album.retriever.encoder.encode_text(texts)
    return vectors


def dialog(album: Album, text: str, answers: Sequence[str]) -> tuple[list[str], list[Ranking]]:
    """Answer what a dialog asks: its questions, and the probabilities after each answer, likeliest first."""
    begun = album.retriever.dialog(text, sure=1.0)
    asked: list[str] = []
    believed: list[Ranking] = []
    for answer in answers:
        asked.append(str(begun.question))
        begun.answer(answer)
        believed.append([(id, {"probability": p}) for id, p in begun.probabilities.items()])
    return asked, believed


def nearest(
    gallery: NDArray[np.float32], queries: NDArray[np.float32], k: int, efs: Sequence[int]
) -> Iterator[NDArray[np.int64]]:
    """The keys that the exact index finds, then the HNSW index for every ef; row numbers."""
    from zsqretrieval.indexes.exact import ExactIndex
    from zsqretrieval.indexes.hnsw import HNSWIndex

    keys = np.arange(len(gallery))
    exact, graph = ExactIndex(gallery.shape[1]), HNSWIndex(gallery.shape[1], threads=1)
    for index in (exact, graph):
        index.add(keys, gallery)
    yield exact.search(queries, k).keys
    for ef in efs:
        graph.ef = ef
        yield graph.search(queries, k).keys


# --- what is measured -------------------------------------------------------------------------------------

HERE = Path(__file__).parent
BIG, SMALL = HERE / "flickr8k_dev", HERE / "scikit_image.json"
CANDIDATES, TOP = 50, 10
EFS = (20, 40, 80, 160)
ANSWERS = ("yes", "no", "yes", "no")
BANK = (
    "a dog", "a person outside", "somebody on a street", "children at play", "a man in a red shirt",
    "water and the sky", "a group of friends", "two animals", "a woman with a hat", "a game with a ball",
    "snow on a mountain", "a bicycle", "a crowd at night", "a picture of a building", "grass and trees",
    "a boy who jumps", "something blue", "a girl at the beach", "a rider in the mud", "a table with food",
)  # fmt: skip
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip
QUESTIONS = (
    "who is ready to fly to the moon?", "where is an animal with whiskers?", "what can i drink?",
    "a machine with two wheels", "somebody who takes pictures", "very old money",
)  # fmt: skip


def measure_big(data: Path, work: Path, old: Numbers | None, batch_size: int) -> Numbers:
    """Everything about the photographs of Flickr8k dev; texts of ``old`` are scored where there are some."""
    pictures, captions = read_dev(data)
    names = sorted(pictures)
    some, asked = names[::50], [(name, n % 5) for n, name in enumerate(names[::5])]
    texts = [captions[name][number] for name, number in asked]
    now: Numbers = {"pictures": names, "queries": [f"{name}#{number}" for name, number in asked]}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        album = timed("album", lambda: build_album(Path(folder, "all"), pictures))
        now |= timed("search", lambda: stages(album, names, texts, batch_size))
        now |= timed("bank", lambda: with_bank(album, names, texts[::10], batch_size))
        now |= timed("captions", lambda: described(album, some, old, batch_size))
        now |= timed("dialog", lambda: talked(album, names, captions[names[7]][0]))
        few = timed(
            "album", lambda: build_album(Path(folder, "few"), {name: pictures[name] for name in some})
        )
        now |= timed("questions", lambda: asked_about(few, old, batch_size))
        for each in (album, few):
            close(each)
    return now | timed("recall", recalls)


def measure_small(old: Numbers | None, batch_size: int = 16) -> Numbers:
    """The same of a few photographs that scikit-image ships."""
    spec = importlib.util.find_spec("skimage")  # found, not imported
    assert spec is not None and spec.submodule_search_locations
    shipped = Path(spec.submodule_search_locations[0], "data")
    names = list(PHOTOGRAPHS)
    now: Numbers = {"pictures": names, "queries": list(QUESTIONS)}
    with tempfile.TemporaryDirectory() as folder:
        pictures = {name: (shipped / name).read_bytes() for name in names}
        album = build_album(Path(folder, "all"), pictures)
        now |= stages(album, names, QUESTIONS, batch_size, len(names))
        now |= described(album, names[3:6], old, batch_size)
        close(album)
    return now


def read_dev(data: Path) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """The photographs and captions of Flickr8k dev, by the photographs' file names."""
    members: dict[str, bytes] = {}
    for shard in sorted(data.glob("dev-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    members[f"{shard.name}/{member.name}"] = file.read()
    facts = {key[:-5]: json.loads(content) for key, content in members.items() if key.endswith(".json")}
    pictures = {fact["image"]: members[f"{key}.jpg"] for key, fact in facts.items()}
    return pictures, {fact["image"]: fact["captions"] for fact in facts.values()}


def stages(
    album: Album, names: list[str], texts: Sequence[str], batch_size: int, count: int = CANDIDATES
) -> Numbers:
    """The candidates of queries with the scores of every stage, and the fused orders with theirs."""
    first = [search(album, text, count, None) for text in texts]
    fused = [search(album, text, count, "likelihood", batch_size=batch_size) for text in texts]
    polar = [search(album, text, count, "yes_no", batch_size=batch_size) for text in texts]
    return {
        "search.candidates": places(first, names),
        "search.cosines": scores(first, "first_stage"),
        "search.likelihoods": scores(fused, "likelihood", first),
        "search.yes_no": scores(polar, "yes_no", first),
        "search.order": places(fused, names),
        "search.fused": scores(fused, "fused"),
    }


def with_bank(album: Album, names: list[str], texts: Sequence[str], batch_size: int) -> Numbers:
    """The order of the candidates after a query bank, and what it is fused to."""
    bank = query_bank(album, BANK)
    first = [search(album, text, CANDIDATES, None, bank) for text in texts]
    fused = [search(album, text, CANDIDATES, "likelihood", bank, batch_size) for text in texts]
    return {
        "bank.candidates": places(first, names),
        "bank.normalized": scores(first, "normalized"),
        "bank.order": places(fused, names),
        "bank.fused": scores(fused, "fused"),
    }


def described(album: Album, names: Sequence[str], old: Numbers | None, batch_size: int) -> Numbers:
    """Captions, and how likely they are; those of ``old`` where there are some, whatever is written now."""
    texts = caption(album, names, batch_size)
    scored = list((old or {}).get("captions.texts", texts))
    found = likelihoods(album, names, "An image of", scored, batch_size)
    return {"captions.texts": texts, "captions.likelihoods": compact(found)}


def asked_about(album: Album, old: Numbers | None, batch_size: int) -> Numbers:
    """Stored questions, their vectors, and how likely they are; those of ``old`` where there are some."""
    pictures, texts = (found[:50] for found in questions(album))
    now: Numbers = {"questions.pictures": pictures, "questions.texts": texts}
    kept = old or now
    about, scored = list(kept["questions.pictures"]), list(kept["questions.texts"])
    found = likelihoods(album, about, "A question about this picture:", scored, batch_size)
    vectors = encode(album, scored).astype(np.float16)
    return now | {"questions.likelihoods": compact(found), "questions.vectors": vectors}


def talked(album: Album, names: list[str], text: str) -> Numbers:
    """A dialog, turn by turn: what was asked, and the likeliest pictures after every answer."""
    asked, believed = dialog(album, text, ANSWERS)
    top = [ranking[:TOP] for ranking in believed]
    return {
        "dialog.questions": asked,
        "dialog.order": places(top, names),
        "dialog.probabilities": scores(top, "probability"),
    }


def recalls() -> Numbers:
    """Recall@10 against plain sorting: of the exact index, and of the graph for every ef."""
    gallery, queries = synthetic(20_000, 1000)
    wanted = np.argsort(-(queries @ gallery.T), axis=1)[:, :TOP]
    found = nearest(gallery, queries, TOP, EFS)
    shares = [(keys[:, :, None] == wanted[:, None, :]).any(2).mean() for keys in found]
    return {"recall.exact": compact(shares[:1]), "recall.graph": compact(shares[1:])}


def synthetic(n: int, q: int, dim: int = 128) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A gallery in clusters along few directions, and queries from beside it, as texts are to photographs."""
    random = np.random.default_rng(8)
    scale = np.arange(1, dim + 1) ** -0.5
    centres = random.standard_normal((500, dim)) * scale
    gallery = centres[random.integers(0, 500, n)] + 0.7 * random.standard_normal((n, dim)) * scale
    beside = centres[random.integers(0, 500, q)] + 1.2 * random.standard_normal((q, dim)) * scale
    gallery[:, 0] += 3
    beside[:, -1] += 3
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (gallery, beside)]
    return unit[0].astype(np.float32), unit[1].astype(np.float32)


def places(rankings: Sequence[Ranking], names: list[str]) -> NDArray[Any]:
    """The pictures of rankings, by their places among all names."""
    return compact([[names.index(id) for id, _ in ranking] for ranking in rankings])


def scores(rankings: Sequence[Ranking], what: str, order: Sequence[Ranking] | None = None) -> NDArray[Any]:
    """One score of rankings, in the order of these or of others of the same pictures."""
    found = [dict(ranking) for ranking in rankings]
    pairs = zip(found, order or rankings, strict=True)
    return compact([[one[id][what] for id, _ in ranking] for one, ranking in pairs])


def compact(values: Any) -> NDArray[Any]:
    """An array of uint16 or float32."""
    array = np.asarray(values)
    return array.astype(np.uint16 if array.dtype.kind == "i" else np.float32)


def timed(part: str, make: Callable[[], T]) -> T:
    """What ``make`` gives; says how long it took."""
    begin = time.perf_counter()
    made = make()
    sys.stdout.write(f"{part}: {time.perf_counter() - begin:.0f} s\n")
    return made


def main() -> int:
    """Measure, and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the shards of Flickr8k")
    parser.add_argument("--work", type=Path, help="folder for the albums, which are made anew")
    parser.add_argument("--small", action="store_true", help="the photographs of scikit-image instead")
    parser.add_argument("--write", action="store_true", help="write what is measured instead of comparing")
    parser.add_argument("--batch-size", type=int, default=16, help="of the generator; must change nothing")
    given = parser.parse_args()
    path = SMALL if given.small else BIG
    old = None if given.write else load(path)
    if given.small:
        now = measure_small(old, given.batch_size)
    elif given.data and given.work:
        now = measure_big(given.data, given.work, old, given.batch_size)
    else:
        parser.error("give --data and --work, or --small")
    if old is None:
        save(path, now)
        return 0
    rows = compare(old, now)
    sys.stdout.write("\n".join([HEADER, *map(line, rows)]) + "\n")
    return int(not all(row.ok for row in rows))


if __name__ == "__main__":
    sys.exit(main())

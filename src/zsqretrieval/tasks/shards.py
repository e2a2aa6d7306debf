"""Tasks of a shard worker: embeddings, questions and image features of tars, by name.

embed      img_emb/img_emb_0003.npy, metadata/metadata_0003.parquet
questions  questions/questions_0003.parquet
states     states-1f2e3d4c5b6a7980/states_0003.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias, cast, final

from numpy.typing import NDArray

from zsqretrieval import plugins
from zsqretrieval._util.checks import check_counts
from zsqretrieval.album.features import states_facts, states_folder, write_states
from zsqretrieval.data.loader import Skipped
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.checked import read_images
from zsqretrieval.laion.embed import Embed
from zsqretrieval.laion.shards import Run, Task
from zsqretrieval.laion.storage import parquet_module
from zsqretrieval.protocols import Generator, ImageStates
from zsqretrieval.tasks.questions import check_style, generate_questions
from zsqretrieval.types import ImageState

Part: TypeAlias = Mapping[str, Any]
"""Description of an encoder or generator: ``{"plugin": "mini", "config": {}}``."""


def make_task(name: str, part: Part, **settings: Any) -> Task:
    """Make the task of a name; for a worker elsewhere, ``functools.partial(make_task, name, part)``.

    Args:
        name: ``"embed"``, ``"questions"`` or ``"states"``.
        part: the encoder of ``"embed"``, the generator of the others; :func:`zsqretrieval.plugins.describe`
            describes one.
        settings: further arguments of :class:`~zsqretrieval.laion.embed.Embed`, :class:`WriteQuestions` or
            :class:`KeepStates`.

    Raises:
        InvalidInputError: there is no such task.
        ZsqError: as :func:`zsqretrieval.plugins.create`.
    """
    tasks = {"embed": Embed, "questions": WriteQuestions, "states": KeepStates}
    if name not in tasks:
        raise InvalidInputError(f"there is no task {name!r}; choose from {', '.join(tasks)}")
    made = plugins.create("encoder" if name == "embed" else "generator", part["plugin"], part["config"])
    return cast(Task, tasks[name](made, **settings))


@final
class WriteQuestions:
    """The task of writing questions: a table of them.

    It has the columns ``id``, ``image_path`` and ``digest`` of the image, and those of
    :class:`~zsqretrieval.tasks.questions.Question`. A draw is named by the seed and the image's position in
    its batch, as in an album.

    Args:
        generator: writes them.
        n: questions for each image at most.
        batch_size: images per batch; another one draws other questions.
        style: as in :func:`~zsqretrieval.tasks.questions.generate_questions`.
        answers: as there.
        temperature: as there.
        seed: as there.
    """

    name = "questions"
    size_hint: int | None = None

    def __init__(
        self,
        generator: Generator,
        n: int = 3,
        *,
        batch_size: int = 16,
        style: str = "questions",
        answers: bool = False,
        temperature: float = 0.7,
        seed: int = 0,
    ) -> None:
        parquet_module()
        check_counts(n=n, batch_size=batch_size)
        self._generator, self.batch_size = generator, batch_size
        self._settings: dict[str, Any] = {
            "n": n,
            "style": check_style(style, answers=answers).name,
            "answers": answers,
            "temperature": temperature,
            "seed": seed,
            "batch_size": batch_size,
        }
        self.facts: Mapping[str, Any] = {"generator": generator.fingerprint, **self._settings}

    def files(self, number: str) -> Sequence[str]:
        """The table."""
        return (f"questions/questions_{number}.parquet",)

    def run(self, run: Run, files: Sequence[Path]) -> int:
        """Write questions about the images of a shard; those that the generator cannot take are refused."""
        import pyarrow as pa

        texts = ("id", "image_path", "digest", "text", "answer", "style", "prompt")
        types = [
            *((name, pa.string()) for name in texts),
            ("log_likelihood", pa.float64()),
            ("tokens", pa.int32()),
        ]
        schema = pa.schema(types)
        count = 0
        with parquet_module().ParquetWriter(files[0], schema) as table:
            for pictures, samples in run.groups:
                faults: dict[int, ImageError] = {}
                with run.stage("questions"):
                    written = generate_questions(
                        self._generator, list(pictures.values()), faults=faults, **self._settings
                    )
                asked = dict(zip(pictures, written, strict=True))
                refused = {digest: faults[n] for n, digest in enumerate(pictures) if n in faults}
                run.refused += [
                    Skipped(one.source, refused[one.digest].reason)
                    for one in samples
                    if one.digest in refused
                ]
                able = [one for one in samples if one.digest not in refused]
                rows = [
                    {"id": one.id, "image_path": one.source, "digest": one.digest, **asdict(question)}
                    for one in able
                    for question in asked[one.digest]
                ]
                count += len(able)
                table.write_table(pa.Table.from_pylist(rows, schema))
        return count

    def finish(self, out: Path, stats: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: every table is complete by itself."""


@final
class KeepStates:
    """The task of computing image features, in files that an album reads.

    The features of one shard are in memory together. An album has them when the folder ``states-*`` is copied
    into its own.

    Args:
        generator: computes them.
        batch_size: images computed together.
    """

    name = "states"
    size_hint: int | None = None

    def __init__(self, generator: Generator, *, batch_size: int = 16) -> None:
        check_counts(batch_size=batch_size)
        if not isinstance(generator, ImageStates):
            raise InvalidInputError(
                f"the generator {type(generator).__name__} computes no image features; choose one that does"
            )
        self._generator, self.batch_size = generator, batch_size
        self.facts: Mapping[str, Any] = states_facts(generator)

    def files(self, number: str) -> Sequence[str]:
        """The features, each under the digest of its image."""
        return (f"{states_folder(self.facts)}/states_{number}.safetensors",)

    def run(self, run: Run, files: Sequence[Path]) -> int:
        """Compute features of the images of a shard; those that the generator cannot take are refused."""
        states: dict[str, NDArray[Any]] = {}
        count = 0
        for pictures, samples in run.groups:
            new = [digest for digest in pictures if digest not in states]
            with run.stage("states"):
                made = read_images(self._generator, [pictures[digest] for digest in new])
            states.update(
                (digest, one.values)
                for digest, one in zip(new, made, strict=True)
                if isinstance(one, ImageState)
            )
            refused = {
                digest: one for digest, one in zip(new, made, strict=True) if isinstance(one, ImageError)
            }
            run.refused += [
                Skipped(one.source, refused[one.digest].reason) for one in samples if one.digest in refused
            ]
            count += sum(one.digest not in refused for one in samples)
        with run.stage("write"):
            write_states(files[0], self.facts, states)
        return count

    def finish(self, out: Path, stats: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: every file is complete by itself."""

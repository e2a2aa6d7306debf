"""The questions generated for the images of a catalog, and the vectors of the retained ones.

Questions and their vectors are deleted with their image by the foreign keys of the schema. Only retained
questions have a vector. A question that is retained again gets a vector with a new key, so
:attr:`QuestionTable.log` keeps an index of questions in step like the index of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval.album.changes import VectorLog, key_list
from zsqretrieval.album.sqlite import Database, Table
from zsqretrieval.errors import IntegrityError

_T = TypeVar("_T")

SCHEMA = (
    """CREATE TABLE recipes (
        id INTEGER PRIMARY KEY, recipe TEXT NOT NULL UNIQUE, crc32 INTEGER NOT NULL)""",
    """CREATE TABLE asked (
        image INTEGER NOT NULL REFERENCES images ON DELETE CASCADE,
        recipe INTEGER NOT NULL REFERENCES recipes ON DELETE CASCADE,
        crc32 INTEGER NOT NULL,
        PRIMARY KEY (image, recipe)) WITHOUT ROWID""",
    """CREATE TABLE questions (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        image INTEGER NOT NULL REFERENCES images ON DELETE CASCADE,
        recipe INTEGER NOT NULL REFERENCES recipes ON DELETE CASCADE,
        prompt TEXT NOT NULL,
        text TEXT NOT NULL,
        form TEXT NOT NULL,
        answer TEXT,
        log_likelihood REAL NOT NULL,
        tokens INTEGER NOT NULL,
        rank INTEGER,
        top_k INTEGER,
        gallery INTEGER NOT NULL,
        kept INTEGER NOT NULL,
        crc32 INTEGER NOT NULL,
        UNIQUE (image, form))""",
    """CREATE TABLE question_vectors (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        question INTEGER NOT NULL UNIQUE REFERENCES questions ON DELETE CASCADE,
        vector BLOB NOT NULL,
        crc32 INTEGER NOT NULL)""",
    """CREATE TABLE question_removals (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL, inverse INTEGER NOT NULL)""",
    """CREATE TRIGGER question_vector_removed AFTER DELETE ON question_vectors
        BEGIN INSERT INTO question_removals (key, inverse) VALUES (OLD.key, ~OLD.key); END""",
    "CREATE INDEX asked_by_recipe ON asked (recipe)",
    "CREATE INDEX questions_by_recipe ON questions (recipe)",
)
"""Tables of questions; ``asked`` also lists the images for which a recipe gave no question."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings that made a question. Different settings make different questions of the same image.

    A draw depends on the seed and on the image's place in its batch, so the same questions come back only for
    the same images in the same batches.
    """

    style: str
    prompts: tuple[str, ...]  # templates of the questions
    answer_prompt: str | None  # template of the answers
    generator: str  # fingerprint
    encoder: str  # fingerprint; of the vectors and the round trip
    n: int  # most questions per image
    temperature: float
    seed: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """Result of the round trip: searching the album with a question."""

    rank: int | None  # of the question's own image, from 1; None when it is not among the first ``top_k``
    top_k: int | None  # search depth; None for a question that was retained without a search
    gallery: int  # number of images in the album at that time
    kept: bool  # whether the question is retained


@dataclass(frozen=True, slots=True, eq=False)
class NewQuestion:
    """A question to be stored."""

    text: str  # a question or caption
    form: str  # normalised text; two questions of an image with the same form are one
    answer: str | None  # the generator's
    prompt: str  # template of the question
    log_likelihood: float  # log P(text | image) in nats
    tokens: int  # length of the text
    judgement: Judgement
    vector: NDArray[np.float32]  # [dim], finite, not zero; stored only if the question is retained


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """A question of the catalog; fields as in :class:`NewQuestion`."""

    key: int  # > 0
    image: int  # key of its image
    id: str  # of its image
    text: str
    answer: str | None
    prompt: str
    log_likelihood: float
    tokens: int
    judgement: Judgement
    recipe: Recipe


@dataclass(frozen=True, slots=True, eq=False)
class KeptVectors:
    """Vectors of retained questions."""

    images: NDArray[np.int64]  # [n], keys of their images
    texts: tuple[str, ...]  # n
    vectors: NDArray[np.float32]  # [n, dim]


@dataclass(frozen=True, slots=True)
class StyleFacts:
    """Counts of one style."""

    style: str
    images: int  # with questions requested in this style
    questions: int  # each counts for the style that wrote it first
    kept: int  # retained questions
    answered: int  # questions with an answer


Asked: TypeAlias = "tuple[Recipe, dict[int, list[NewQuestion]]]"
"""A recipe, and by the key of an image the questions that it wrote; none where it was run without success."""

_RECIPES = Table("recipes", "recipe", id=int, recipe=str)
_ASKED = Table("asked", "list of recipes of image", image=int, recipe=int)
_QUESTIONS = Table(
    "questions",
    "question",
    key=int,
    image=int,
    recipe=int,
    prompt=str,
    text=str,
    form=str,
    answer=(str, None),
    log_likelihood=float,
    tokens=int,
    rank=(int, None),
    top_k=(int, None),
    gallery=int,
    kept=int,
)
_VECTORS = Table("question_vectors", "vector of question", key=int, question=int, vector=bytes)


@final
class QuestionTable:
    """The questions of a catalog.

    Every method is atomic, may be called from any thread, and raises as
    :class:`~zsqretrieval.album.catalog.Catalog` does.

    Args:
        database: holds the tables.
        dim: length of every vector.
        images: table of the images, which begins with ``key`` and ``id``.

    Attributes:
        log: vectors of the retained questions, and their change log.
    """

    def __init__(self, database: Database, dim: int, images: Table) -> None:
        self._database, self._images = database, images
        self.log = VectorLog(
            database,
            dim,
            vectors=_VECTORS,
            numbered="question_vectors",
            removals="question_removals",
            what="question",
        )

    def __len__(self) -> int:
        """Number of retained questions."""
        return int(self._database.value("SELECT count(*) FROM question_vectors"))

    # --- writing ----------------------------------------------------------------------------------------

    def asked(self, recipe: Recipe, images: ArrayLike) -> set[int]:
        """The images, out of some, for which this recipe was run; by key."""
        with self._database.transaction():
            made_by = self._database.read(_RECIPES, "recipe", [_recipe_text(recipe)])
            found = self._database.read(_ASKED, "image", key_list(images))
        return {image for image, by in found if by in dict(made_by)}

    def write(self, recipe: Recipe, questions: Mapping[int, Sequence[NewQuestion]]) -> tuple[int, int]:
        """Store questions, and the images for which the recipe was run; on disk when this returns.

        Skips images that were removed, or for which another process has run the recipe in the meantime. A
        question that an image has already only gains the answer, if it had none. A vector of another shape,
        not finite or zero is an InvalidInputError; nothing has changed then.

        Args:
            recipe: the settings that made the questions.
            questions: by key of the image; empty for an image without any.

        Returns:
            How many questions are new, and how many of these are retained.
        """
        with self._database.transaction("IMMEDIATE") as run:
            text = _recipe_text(recipe)
            if known := self._database.read(_RECIPES, "recipe", [text]):
                made_by = known[0][0]
            else:
                made_by = self._database.value("SELECT coalesce(max(id), 0) + 1 FROM recipes")
                run.execute(_RECIPES.insert, _RECIPES.pack((made_by, text)))
            present = {key for (key,) in self._database.select("key", "images", "key", list(questions))}
            images = sorted(present - self.asked(recipe, list(questions)))
            rows = {row[0]: row for row in self._database.read(_QUESTIONS, "image", images)}
            key_of = {(row[1], row[5]): key for key, row in rows.items()}
            last = self._database.counters().get("questions", 0)
            columns = attrgetter("prompt", "text", "form", "answer", "log_likelihood", "tokens")
            new: dict[int, NewQuestion] = {}  # by key
            answered: set[int] = set()  # keys of questions that were there and gain an answer
            for image in images:
                for one in questions[image]:
                    key = key_of.setdefault((image, one.form), last + len(new) + 1)
                    if key not in rows:
                        rows[key] = (key, image, made_by, *columns(one), *astuple(one.judgement))
                        new[key] = one
                    elif rows[key][6] is None:
                        rows[key] = (*rows[key][:6], one.answer, *rows[key][7:])
                        answered.add(key)
            run.executemany(_ASKED.insert, (_ASKED.pack((image, made_by)) for image in images))
            run.executemany(_QUESTIONS.insert, (_QUESTIONS.pack(rows[key]) for key in new))
            self._update(rows[key] for key in answered - new.keys())
            kept = [(key, one.text, one.vector) for key, one in new.items() if one.judgement.kept]
            self._add_vectors(kept)
        return len(new), len(kept)

    def judge(self, judgements: Mapping[int, Judgement], vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """Replace the judgements of questions by key; ``vectors`` are of the retained ones."""
        with self._database.transaction("IMMEDIATE") as run:
            keys = list(judgements)
            found = {row[0]: row for row in self._database.read(_QUESTIONS, "key", keys)}
            rows = self._database.select("question", "question_vectors", "question", keys)
            having = {key for (key,) in rows}
            self._update((*row[:9], *astuple(judgements[key])) for key, row in found.items())
            dropped = [(key,) for key in found if not judgements[key].kept]
            run.executemany("DELETE FROM question_vectors WHERE question = ?", dropped)
            kept = [key for key in found if judgements[key].kept and key not in having]
            self._add_vectors([(key, found[key][4], vectors[key]) for key in kept])

    def _update(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Replace answers and judgements by those of rows of the table; within a transaction."""
        self._database.connection.executemany(
            "UPDATE questions SET answer = ?, rank = ?, top_k = ?, gallery = ?, kept = ?, crc32 = ? "
            "WHERE key = ?",
            ((row[6], *row[9:], row[0]) for row in map(_QUESTIONS.pack, rows)),
        )

    def _add_vectors(self, kept: Sequence[tuple[int, str, NDArray[np.float32]]]) -> None:
        """Store vectors by key and text of the question; within a transaction."""
        first = self.log.next_key()
        packed = self.log.pack([vector for *_, vector in kept], [text for _, text, _ in kept])
        rows = [(key, vector) for (key, *_), vector in zip(kept, packed, strict=True)]
        self._database.connection.executemany(
            _VECTORS.insert, (_VECTORS.pack((n, *row)) for n, row in enumerate(rows, start=first))
        )

    def set_encoder(self, fingerprint: str) -> None:
        """Name another encoder in all recipes; within a transaction that replaces all vectors."""
        for row, recipe in self._recipes().items():
            packed = _RECIPES.pack((row, _recipe_text(replace(recipe, encoder=fingerprint))))
            self._database.connection.execute(
                "UPDATE recipes SET recipe = ?, crc32 = ? WHERE id = ?", (*packed[1:], row)
            )

    def remove(self, style: str | None = None) -> int:
        """Remove the questions of one style, or all; returns how many.

        A question belongs to the recipe that wrote it first, though others may have written it too. So an
        image that loses a question counts as not asked by any recipe, and gets it back when one of them runs
        again.
        """
        with self._database.transaction("IMMEDIATE") as run:
            before = int(self._database.value("SELECT count(*) FROM questions"))
            for row in self._recipes(style):
                run.execute(
                    "DELETE FROM asked WHERE image IN (SELECT image FROM questions WHERE recipe = ?)", (row,)
                )
                run.execute("DELETE FROM recipes WHERE id = ?", (row,))
            return before - int(self._database.value("SELECT count(*) FROM questions"))

    # --- reading ----------------------------------------------------------------------------------------

    def of(self, images: ArrayLike) -> list[StoredQuestion]:
        """The questions of images, by key of the image, then by falling likelihood."""
        with self._database.transaction():
            found = self._stored(self._database.read(_QUESTIONS, "image", key_list(images)))
        return sorted(found, key=lambda one: (one.image, -one.log_likelihood, one.key))

    def batches(self, size: int = 900) -> Iterator[list[StoredQuestion]]:
        """All questions, by rising key. Those added or removed in the meantime may or may not appear."""
        query = f"SELECT {_QUESTIONS.columns} FROM questions WHERE key > ? ORDER BY key LIMIT ?"
        last = 0
        while True:
            with self._database.transaction():
                found = self._stored(
                    self._database.checked(_QUESTIONS, self._database.rows(query, (last, size)))
                )
            if not found:
                return
            yield found
            last = found[-1].key

    def asked_of(self, images: ArrayLike) -> list[Asked]:
        """The questions of images, as :meth:`write` of a catalog with the same encoder takes them."""
        keys = key_list(images)
        with self._database.transaction():
            self.log.check_encoder()
            recipes = self._recipes()
            found: dict[int, dict[int, list[NewQuestion]]] = {recipe: {} for recipe in recipes}
            for image, recipe in self._database.read(_ASKED, "image", keys):
                self._part_of(found, recipe)[image] = []
            rows = self._database.read(_QUESTIONS, "image", keys)
            vectors = self._database.select(
                _VECTORS.columns, _VECTORS.name, "question", [row[0] for row in rows]
            )
            question_of = [row[1] for row in vectors]
            kept = dict(zip(question_of, self.log.unpack(vectors), strict=True))
        for row in rows:
            key, image, recipe, prompt, text, form, answer, likelihood, tokens = row[:9]
            rank, top_k, gallery, is_kept = row[9:]
            vector = kept.get(key, np.empty(0, np.float32))
            one = NewQuestion(
                text,
                form,
                answer,
                prompt,
                likelihood,
                tokens,
                Judgement(rank, top_k, gallery, bool(is_kept)),
                vector,
            )
            self._part_of(found, recipe).setdefault(image, []).append(one)
        return [(recipes[recipe], some) for recipe, some in found.items() if some]

    def vector_texts(self) -> Iterator[dict[int, str]]:
        """The texts of the retained questions by the keys of their vectors, in parts."""
        for batch in self.batches():
            text_of = {one.key: one.text for one in batch}
            rows = self._database.read(_VECTORS, "question", list(text_of))
            yield {key: text_of[question] for key, question, _ in rows}

    def owners(self, vector_keys: ArrayLike) -> dict[int, int]:
        """Keys of images by the keys of vectors; only for vectors that are present."""
        with self._database.transaction():
            question_of = {
                key: question
                for key, question, _ in self._database.read(_VECTORS, "key", key_list(vector_keys))
            }
            rows = self._database.read(_QUESTIONS, "key", list(question_of.values()))
        image_of = {row[0]: row[1] for row in rows}
        return {key: image_of[question] for key, question in question_of.items() if question in image_of}

    def kept(self, images: ArrayLike) -> KeptVectors:
        """The retained questions of images, by key of the question."""
        with self._database.transaction():
            self.log.check_encoder()
            found = {row[0]: row for row in self._database.read(_QUESTIONS, "image", key_list(images))}
            rows = self._database.select(_VECTORS.columns, _VECTORS.name, "question", list(found))
        rows.sort(key=lambda row: row[1])
        owners = np.array([found[row[1]][1] for row in rows], np.int64)
        return KeptVectors(owners, tuple(found[row[1]][4] for row in rows), self.log.unpack(rows))

    def sample(self, style: str, size: int) -> NDArray[np.float32]:
        """Vectors float32 [n, dim] of a style's retained questions: all, or the same random ``size``."""
        with self._database.transaction():
            made = self._database.read(_QUESTIONS, "recipe", list(self._recipes(style)))
            found = self._database.select("key", _VECTORS.name, "question", [row[0] for row in made])
            keys = np.array(sorted(key for (key,) in found), np.int64)
            drawn = np.random.default_rng(0).permutation(len(keys))[:size]
            return self.log.get(keys[np.sort(drawn)])

    def styles(self) -> list[StyleFacts]:
        """Counts by style, sorted by name; only styles with images."""
        images: dict[str, set[int]] = {}
        totals: dict[str, list[int]] = {}  # questions, kept, answered
        with self._database.transaction() as run:
            styles = {row: recipe.style for row, recipe in self._recipes().items()}
            for row in run.execute(f"SELECT {_ASKED.columns} FROM asked"):
                [(image, recipe)] = self._database.checked(_ASKED, [row])
                images.setdefault(self._part_of(styles, recipe), set()).add(image)
            for row in run.execute(f"SELECT {_QUESTIONS.columns} FROM questions"):
                [(_, image, recipe, *_, answer, _, _, _, _, _, kept)] = self._database.checked(
                    _QUESTIONS, [row]
                )
                style = self._part_of(styles, recipe)
                images.setdefault(style, set()).add(image)
                counts = totals.setdefault(style, [0, 0, 0])
                for n, one in enumerate((1, kept, answer is not None)):
                    counts[n] += one
        return [
            StyleFacts(style, len(images[style]), *totals.get(style, (0, 0, 0))) for style in sorted(images)
        ]

    def verify(self) -> None:
        """Read everything; damage is an IntegrityError."""
        self.log.verify()
        self.styles()  # also the recipes, and the images that were asked
        for _ in self.batches():
            pass

    def _recipes(self, style: str | None = None) -> dict[int, Recipe]:
        """The recipes of a style, or all, by their row."""
        rows = self._database.rows(f"SELECT {_RECIPES.columns} FROM recipes")
        recipes = {row: self._recipe(text) for row, text in self._database.checked(_RECIPES, rows)}
        return {row: recipe for row, recipe in recipes.items() if style in (None, recipe.style)}

    def _recipe(self, text: str) -> Recipe:
        facts = self._database.from_json(text, "recipe of a question")
        try:
            recipe = Recipe(**{**facts, "prompts": tuple(facts["prompts"])})
            texts = (recipe.style, *recipe.prompts, recipe.generator, recipe.encoder)
            if not all(isinstance(part, str) for part in texts):
                raise TypeError("style, prompts and fingerprints must be strings")
        except (KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{self._database.where}: the recipe of a question is damaged: {text!r}; restore a backup"
            ) from error
        return recipe

    def _stored(self, rows: Sequence[tuple[Any, ...]]) -> list[StoredQuestion]:
        """Rows of the table as questions; within a transaction."""
        recipes = self._recipes() if rows else {}
        images = self._database.read(self._images, "key", sorted({row[1] for row in rows}))
        id_of = {row[0]: row[1] for row in images}
        return [
            StoredQuestion(
                key, image, self._part_of(id_of, image), text, answer, prompt, likelihood, tokens,
                Judgement(rank, top_k, gallery, bool(kept)), self._part_of(recipes, recipe),
            )
            for (
                key, image, recipe, prompt, text, _, answer, likelihood, tokens, rank, top_k, gallery, kept
            ) in rows
        ]  # fmt: skip

    def _part_of(self, found: Mapping[int, _T], key: int) -> _T:
        """The image or recipe that a row refers to."""
        if key not in found:
            raise IntegrityError(
                f"{self._database.where} is damaged: a question is of the image or recipe {key}, which is "
                "not there; restore a backup"
            )
        return found[key]


def _recipe_text(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)

"""The questions generated for the images of a catalog, and the vectors of the retained ones.

Questions and their vectors are deleted with their image by the foreign keys of the schema. Only retained
questions have a vector. A question that is retained again gets a vector with a new key, so
:attr:`QuestionTable.log` keeps an index of questions in step like the index of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from operator import attrgetter
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval.album.changes import VectorLog, key_list
from zsqretrieval.album.sqlite import Database
from zsqretrieval.errors import IntegrityError

SCHEMA = (
    "CREATE TABLE recipes (id INTEGER PRIMARY KEY, recipe TEXT NOT NULL UNIQUE)",
    """CREATE TABLE asked (
        image INTEGER NOT NULL REFERENCES images ON DELETE CASCADE,
        recipe INTEGER NOT NULL REFERENCES recipes ON DELETE CASCADE,
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
        UNIQUE (image, form))""",
    """CREATE TABLE question_vectors (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        question INTEGER NOT NULL UNIQUE REFERENCES questions ON DELETE CASCADE,
        vector BLOB NOT NULL,
        crc32 INTEGER NOT NULL)""",
    "CREATE TABLE question_removals (seq INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL)",
    """CREATE TRIGGER question_vector_removed AFTER DELETE ON question_vectors
        BEGIN INSERT INTO question_removals (key) VALUES (OLD.key); END""",
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


_COLUMNS = (
    "key, image, (SELECT id FROM images WHERE key = image), text, answer, prompt, log_likelihood, tokens, "
    "rank, top_k, gallery, kept, (SELECT recipe FROM recipes WHERE id = questions.recipe)"
)
_WITH_VECTORS = "question_vectors JOIN questions ON questions.key = question"


@final
class QuestionTable:
    """The questions of a catalog.

    Every method is atomic, may be called from any thread, and raises as
    :class:`~zsqretrieval.album.catalog.Catalog` does.

    Attributes:
        log: vectors of the retained questions, and their change log.
    """

    def __init__(self, database: Database, dim: int) -> None:
        self._database = database
        self.log = VectorLog(
            database,
            dim,
            vectors="question_vectors",
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
            made_by = self._database.rows("SELECT id FROM recipes WHERE recipe = ?", (_recipe_text(recipe),))
            found = self._database.select("image, recipe", "asked", "image", key_list(images))
        return {image for image, by in found if (by,) in made_by}

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
            run.execute("INSERT OR IGNORE INTO recipes (recipe) VALUES (?)", (_recipe_text(recipe),))
            made_by = self._database.value("SELECT id FROM recipes WHERE recipe = ?", (_recipe_text(recipe),))
            present = {key for (key,) in self._database.select("key", "images", "key", list(questions))}
            images = sorted(present - self.asked(recipe, list(questions)))
            stored = self._database.select("image, form, key", "questions", "image", images)
            key_of = {(image, form): key for image, form, key in stored}
            last = dict(self._database.rows("SELECT name, seq FROM sqlite_sequence")).get("questions", 0)
            new: list[tuple[int, int, NewQuestion]] = []  # key, key of the image, question
            answers: list[tuple[str | None, int]] = []  # of questions that are stored already
            for image in images:
                for one in questions[image]:
                    if (image, one.form) in key_of:
                        answers.append((one.answer, key_of[image, one.form]))
                    else:
                        new.append((last + len(new) + 1, image, one))
                        key_of[image, one.form] = new[-1][0]
            run.executemany("INSERT INTO asked VALUES (?, ?)", ((image, made_by) for image in images))
            columns = attrgetter("prompt", "text", "form", "answer", "log_likelihood", "tokens")
            rows = [(key, image, made_by, *columns(one), *astuple(one.judgement)) for key, image, one in new]
            run.executemany(f"INSERT INTO questions VALUES ({', '.join('?' * 13)})", rows)
            run.executemany("UPDATE questions SET answer = coalesce(answer, ?) WHERE key = ?", answers)
            kept = [(key, one.text, one.vector) for key, _, one in new if one.judgement.kept]
            self._add_vectors(kept)
        return len(new), len(kept)

    def judge(self, judgements: Mapping[int, Judgement], vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """Replace the judgements of questions by key; ``vectors`` are of the retained ones."""
        with self._database.transaction("IMMEDIATE") as run:
            keys = list(judgements)
            found = dict(self._database.select("key, text", "questions", "key", keys))
            rows = self._database.select("question", "question_vectors", "question", keys)
            having = {key for (key,) in rows}
            run.executemany(
                "UPDATE questions SET rank = ?, top_k = ?, gallery = ?, kept = ? WHERE key = ?",
                ((*astuple(judgements[key]), key) for key in found),
            )
            dropped = [(key,) for key in found if not judgements[key].kept]
            run.executemany("DELETE FROM question_vectors WHERE question = ?", dropped)
            kept = [key for key in found if judgements[key].kept and key not in having]
            self._add_vectors([(key, found[key], vectors[key]) for key in kept])

    def _add_vectors(self, kept: Sequence[tuple[int, str, NDArray[np.float32]]]) -> None:
        """Store vectors by key and text of the question; within a transaction."""
        self._database.connection.executemany(
            "INSERT INTO question_vectors (question, vector, crc32) VALUES (?, ?, ?)",
            [(key, *self.log.pack(vector, text)) for key, text, vector in kept],
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
        rows = self._database.select(_COLUMNS, "questions", "image", key_list(images))
        return sorted(map(self._stored, rows), key=lambda one: (one.image, -one.log_likelihood, one.key))

    def batches(self, size: int = 900) -> Iterator[list[StoredQuestion]]:
        """All questions, by rising key. Those added or removed in the meantime may or may not appear."""
        query = f"SELECT {_COLUMNS} FROM questions WHERE key > ? ORDER BY key LIMIT ?"
        last = 0
        while rows := self._database.rows(query, (last, size)):
            yield list(map(self._stored, rows))
            last = rows[-1][0]

    def owners(self, vector_keys: ArrayLike) -> dict[int, int]:
        """Keys of images by the keys of vectors; only for vectors that are present."""
        column = "question_vectors.key"
        found = self._database.select(f"{column}, image", _WITH_VECTORS, column, key_list(vector_keys))
        return dict(found)

    def kept(self, images: ArrayLike) -> KeptVectors:
        """The retained questions of images, by key of the question."""
        columns = "question, vector, crc32, image, text"
        rows = sorted(self._database.select(columns, _WITH_VECTORS, "image", key_list(images)))
        owners = np.array([row[3] for row in rows], np.int64)
        return KeptVectors(owners, tuple(row[4] for row in rows), self.log.unpack([row[:3] for row in rows]))

    def sample(self, style: str, size: int) -> NDArray[np.float32]:
        """Vectors float32 [n, dim] of a style's retained questions: all, or the same random ``size``."""
        with self._database.transaction():
            made = list(self._recipes(style))
            found = self._database.select("question_vectors.key", _WITH_VECTORS, "recipe", made)
            keys = np.array(sorted(key for (key,) in found), np.int64)
            drawn = np.random.default_rng(0).permutation(len(keys))[:size]
            return self.log.get(keys[np.sort(drawn)])

    def styles(self) -> list[StyleFacts]:
        """Counts by style, sorted by name; only styles with images."""
        with self._database.transaction():
            asked = self._database.rows(
                "SELECT recipe, image FROM asked UNION SELECT recipe, image FROM questions"
            )
            counts = self._database.rows(
                "SELECT recipe, count(*), sum(kept), count(answer) FROM questions GROUP BY recipe"
            )
            styles = {row: recipe.style for row, recipe in self._recipes().items()}
        images: dict[str, set[int]] = {}
        for row, image in asked:
            images.setdefault(styles[row], set()).add(image)
        totals = {style: np.zeros(3, int) for style in images}
        for row, *count in counts:
            totals[styles[row]] += count
        return [StyleFacts(style, len(images[style]), *map(int, totals[style])) for style in sorted(images)]

    def verify(self) -> None:
        """Read everything; damage is an IntegrityError."""
        self.log.verify()
        self.styles()
        for _ in self.batches():
            pass

    def _recipes(self, style: str | None = None) -> dict[int, Recipe]:
        """The recipes of a style, or all, by their row."""
        recipes = {row: self._recipe(text) for row, text in self._database.rows("SELECT * FROM recipes")}
        return {row: recipe for row, recipe in recipes.items() if style in (None, recipe.style)}

    def _recipe(self, text: str) -> Recipe:
        facts = self._database.from_json(text, "recipe of a question")
        try:
            recipe = Recipe(**{**facts, "prompts": tuple(facts["prompts"])})
            if not all(isinstance(part, str) for part in (recipe.style, *recipe.prompts)):
                raise TypeError("style and prompts must be strings")
        except (KeyError, TypeError) as error:
            raise IntegrityError(
                f"{self._database.where}: the recipe of a question is damaged: {text!r}; restore a backup"
            ) from error
        return recipe

    def _stored(self, row: tuple[Any, ...]) -> StoredQuestion:
        rank, top_k, gallery, kept, recipe = row[8:]
        values = (*row[:8], Judgement(rank, top_k, gallery, bool(kept)), self._recipe(recipe))
        return StoredQuestion(*values)


def _recipe_text(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)

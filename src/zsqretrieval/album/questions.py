"""What was asked of every image, in the catalog: questions, their origin, and the vectors of the kept ones.

A question and its vector go when their image goes, by the rules of the schema, whoever removes it. Only kept
questions have a vector; one that is kept again gets a new vector key, so that an index can follow by
:attr:`QuestionTable.log` as it follows the images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval.album.changes import VectorLog, key_list
from zsqretrieval.album.sqlite import Database
from zsqretrieval.errors import IntegrityError

__all__ = [
    "SCHEMA",
    "Judgement",
    "KeptVectors",
    "NewQuestion",
    "QuestionTable",
    "Recipe",
    "StoredQuestion",
    "StyleFacts",
]

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
"""What version 2 of the catalog's format adds to version 1."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How questions were made: whatever would make others of the same image.

    Attributes:
        style: its name.
        prompts: the templates that were continued.
        answer_prompt: the template that was answered, or None.
        generator: fingerprint of what asked.
        encoder: fingerprint of what made the vectors and searched in the round trip.
        n: the most questions of one image.
        temperature: of the sampling.
        seed: of the sampling. A draw is named by it and by the place of its image in the batch, so it makes
            the same questions of the same images in the same batches only.
        max_new_tokens: the longest text, in tokens.
    """

    style: str
    prompts: tuple[str, ...]
    answer_prompt: str | None
    generator: str
    encoder: str
    n: int
    temperature: float
    seed: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a question when it was searched.

    Attributes:
        rank: where its own image stood, from 1; None when it was not among the first ``top_k``.
        top_k: how many were looked at; None when it was not searched at all, and kept for that.
        gallery: how many images the album held then.
        kept: whether it is one of the texts that find its image.
    """

    rank: int | None
    top_k: int | None
    gallery: int
    kept: bool


@dataclass(frozen=True, slots=True, eq=False)
class NewQuestion:
    """A question to be written down.

    Attributes:
        text: what is asked, or said.
        form: equal for texts that say the same.
        answer: what the image answers, or None.
        prompt: the template it continued.
        log_likelihood: log P(text | image) in nats.
        tokens: its length in tokens.
        judgement: of the round trip.
        vector: float32 [dim], finite, not zero; kept only with the question.
    """

    text: str
    form: str
    answer: str | None
    prompt: str
    log_likelihood: float
    tokens: int
    judgement: Judgement
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """A question of the catalog.

    Attributes:
        key: its own, > 0.
        image: key of the image it was asked of.
        id: that image's name.
        text: what is asked, or said.
        answer: what the image answers, or None.
        prompt: the template it continued.
        log_likelihood: log P(text | image) in nats.
        tokens: its length in tokens.
        judgement: of the round trip.
        recipe: how it was made.
    """

    key: int
    image: int
    id: str
    text: str
    answer: str | None
    prompt: str
    log_likelihood: float
    tokens: int
    judgement: Judgement
    recipe: Recipe


@dataclass(frozen=True, slots=True, eq=False)
class KeptVectors:
    """The vectors of kept questions.

    Attributes:
        images: int64 [n], key of the image each was asked of.
        texts: n texts.
        vectors: float32 [n, dim].
    """

    images: NDArray[np.int64]
    texts: tuple[str, ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StyleFacts:
    """How much was asked in one style.

    Attributes:
        style: its name.
        images: of how many images.
        questions: how many questions came of it; one belongs to the style that it was first written in.
        kept: how many of these are kept.
        answered: how many have an answer.
    """

    style: str
    images: int
    questions: int
    kept: int
    answered: int


_COLUMNS = (
    "key, image, (SELECT id FROM images WHERE key = image), text, answer, prompt, log_likelihood, tokens, "
    "rank, top_k, gallery, kept, (SELECT recipe FROM recipes WHERE id = questions.recipe)"
)
_BATCH = 900


@final
class QuestionTable:
    """The questions of a catalog.

    Every method is atomic and may be called from any thread, and raises as
    :class:`~zsqretrieval.album.catalog.Catalog` does.

    Args:
        database: where the tables are.
        dim: length of every vector.
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
        """Number of kept questions."""
        with self._database.transaction():
            return int(self._database.value("SELECT count(*) FROM question_vectors"))

    # --- writing ----------------------------------------------------------------------------------------

    def asked(self, recipe: Recipe, images: ArrayLike) -> set[int]:
        """Of some images' keys, those that were asked by this recipe."""
        wanted = key_list(images)
        with self._database.transaction() as run:
            row = run.execute("SELECT id FROM recipes WHERE recipe = ?", (_written(recipe),)).fetchone()
            if row is None:
                return set()
            found = self._database.select("image, recipe", "asked", "image", wanted)
            return {image for image, by in found if by == row[0]}

    def write(self, recipe: Recipe, questions: Mapping[int, Sequence[NewQuestion]]) -> tuple[int, int]:
        """Write down what was asked of images, and that they were asked; on disk once this returns.

        Images that are gone, or that another process has asked meanwhile, are passed over. A text that an
        image has already only takes the answer, if it had none.

        Args:
            recipe: how the questions were made.
            questions: by key of the image; none when nothing came of it.

        Returns:
            How many questions are new, and how many of these are kept.

        Raises:
            InvalidInputError: a vector has another shape, is not finite or zero. Nothing has changed.
        """
        new = kept = 0
        with self._database.transaction("IMMEDIATE") as run:
            run.execute("INSERT OR IGNORE INTO recipes (recipe) VALUES (?)", (_written(recipe),))
            made_by = self._database.value("SELECT id FROM recipes WHERE recipe = ?", (_written(recipe),))
            present = {key for (key,) in self._database.select("key", "images", "key", list(questions))}
            for image in present - self.asked(recipe, list(questions)):
                run.execute("INSERT INTO asked VALUES (?, ?)", (image, made_by))
                known = dict(self._database.select("form, key", "questions", "image", [image]))
                for question in questions[image]:
                    if question.form in known:
                        run.execute(
                            "UPDATE questions SET answer = coalesce(answer, ?) WHERE key = ?",
                            (question.answer, known[question.form]),
                        )
                        continue
                    judged = question.judgement
                    facts = (
                        *(image, made_by, question.prompt, question.text, question.form, question.answer),
                        *(question.log_likelihood, question.tokens),
                        *(judged.rank, judged.top_k, judged.gallery, int(judged.kept)),
                    )
                    added = run.execute(
                        "INSERT INTO questions (image, recipe, prompt, text, form, answer, log_likelihood, "
                        "tokens, rank, top_k, gallery, kept) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        facts,
                    )
                    assert added.lastrowid is not None
                    known[question.form] = added.lastrowid
                    new += 1
                    if judged.kept:
                        kept += 1
                        self._put(added.lastrowid, question.text, question.vector)
        return new, kept

    def judge(self, judgements: Mapping[int, Judgement], vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """Judge questions anew; those that are gone are passed over.

        Args:
            judgements: by key of the question.
            vectors: float32 [dim] each, of those that are kept.
        """
        with self._database.transaction("IMMEDIATE") as run:
            found = self._database.select("key, text", "questions", "key", list(judgements))
            having = {key for (key,) in self._database.select(
                "question", "question_vectors", "question", list(judgements)
            )}  # fmt: skip
            for key, text in list(found):
                judged = judgements[key]
                run.execute(
                    "UPDATE questions SET rank = ?, top_k = ?, gallery = ?, kept = ? WHERE key = ?",
                    (judged.rank, judged.top_k, judged.gallery, int(judged.kept), key),
                )
                if judged.kept and key not in having:
                    self._put(key, text, vectors[key])
                elif not judged.kept:
                    run.execute("DELETE FROM question_vectors WHERE question = ?", (key,))

    def _put(self, question: int, text: str, vector: NDArray[np.float32]) -> None:
        self._database.connection.execute(
            "INSERT INTO question_vectors (question, vector, crc32) VALUES (?, ?, ?)",
            (question, *self.log.pack(vector, text)),
        )

    def remove(self, style: str | None = None) -> int:
        """Forget all questions, or those of one style, and that they were asked; gives how many.

        A text belongs to the recipe that wrote it first, and others may have written it as well. So an image
        that loses a question counts as asked by no recipe, and gets it back when any of them asks again.
        """
        with self._database.transaction("IMMEDIATE") as run:
            before = int(self._database.value("SELECT count(*) FROM questions"))
            for row, text in run.execute("SELECT id, recipe FROM recipes").fetchall():
                if style is None or self._recipe(text).style == style:
                    losing = "SELECT image FROM questions WHERE recipe = ?"
                    run.execute(f"DELETE FROM asked WHERE image IN ({losing})", (row,))
                    run.execute("DELETE FROM recipes WHERE id = ?", (row,))
            return before - int(self._database.value("SELECT count(*) FROM questions"))

    # --- reading ----------------------------------------------------------------------------------------

    def of(self, images: ArrayLike) -> list[StoredQuestion]:
        """The questions of images, by image in the order of their keys, likeliest first."""
        with self._database.transaction():
            found = [
                self._stored(row)
                for row in self._database.select(_COLUMNS, "questions", "image", key_list(images))
            ]
        return sorted(found, key=lambda one: (one.image, -one.log_likelihood, one.key))

    def batches(self, size: int = _BATCH) -> Iterator[list[StoredQuestion]]:
        """Every question, by rising key. Those added or removed meanwhile may or may not appear."""
        last = 0
        while True:
            with self._database.transaction() as run:
                rows = run.execute(
                    f"SELECT {_COLUMNS} FROM questions WHERE key > ? ORDER BY key LIMIT ?", (last, size)
                ).fetchall()
            if not rows:
                return
            yield list(map(self._stored, rows))
            last = rows[-1][0]

    def owners(self, vector_keys: ArrayLike) -> dict[int, int]:
        """The keys of images by the keys of vectors, as far as these are present."""
        table = "question_vectors JOIN questions ON questions.key = question"
        with self._database.transaction():
            found = self._database.select(
                "question_vectors.key, image", table, "question_vectors.key", key_list(vector_keys)
            )
            return dict(found)

    def kept(self, images: ArrayLike) -> KeptVectors:
        """The kept questions of images, in the order of the questions' keys.

        Raises:
            IntegrityError: a vector is damaged.
        """
        table = "question_vectors JOIN questions ON questions.key = question"
        columns = "question, vector, crc32, image, text"
        with self._database.transaction():
            rows = sorted(self._database.select(columns, table, "image", key_list(images)))
        return KeptVectors(
            np.array([row[3] for row in rows], np.int64),
            tuple(row[4] for row in rows),
            self.log.unpack([row[:3] for row in rows]),
        )

    def sample(self, style: str, size: int) -> NDArray[np.float32]:
        """Vectors float32 [n, dim] of a style's kept questions: all, or ``size``, always the same ones.

        Raises:
            IntegrityError: a vector is damaged.
        """
        with self._database.transaction() as run:
            recipes = run.execute("SELECT id, recipe FROM recipes").fetchall()
            made = [row for row, text in recipes if self._recipe(text).style == style]
            table = "question_vectors JOIN questions ON questions.key = question"
            found = self._database.select("question_vectors.key", table, "recipe", made)
            keys = np.array(sorted(key for (key,) in found), np.int64)
            drawn = np.random.default_rng(0).permutation(len(keys))[:size]
            return self.log.get(keys[np.sort(drawn)])

    def styles(self) -> list[StyleFacts]:
        """How much was asked in which style, by the styles' names; none that no image was asked in."""
        with self._database.transaction() as run:
            asked = run.execute(
                "SELECT recipe, image FROM asked UNION SELECT recipe, image FROM questions"
            ).fetchall()
            counts = run.execute(
                "SELECT recipe, count(*), sum(kept), count(answer) FROM questions GROUP BY recipe"
            ).fetchall()
            names = {row: self._recipe(text).style for row, text in run.execute("SELECT * FROM recipes")}
        images: dict[str, set[int]] = {}
        for recipe, image in asked:
            images.setdefault(names[recipe], set()).add(image)
        facts = {name: np.zeros(3, int) for name in images}
        for recipe, *count in counts:
            facts[names[recipe]] += count
        return [StyleFacts(name, len(images[name]), *map(int, facts[name])) for name in sorted(images)]

    def verify(self) -> None:
        """Read everything.

        Raises:
            IntegrityError: something is damaged; says what.
        """
        self.log.verify()
        self.styles()
        for _ in self.batches():
            pass

    def _recipe(self, text: str) -> Recipe:
        facts = self._database.from_json(text, "recipe of a question")
        try:
            recipe = Recipe(**{**facts, "prompts": tuple(facts["prompts"])})
            if not all(isinstance(part, str) for part in (recipe.style, *recipe.prompts)):
                raise TypeError("style and prompts must be texts")
        except (KeyError, TypeError) as error:
            raise IntegrityError(
                f"{self._database.where}: the recipe of a question is damaged: {text!r}; restore a backup"
            ) from error
        return recipe

    def _stored(self, row: tuple[Any, ...]) -> StoredQuestion:
        key, image, id, text, answer, prompt, log_likelihood, tokens = row[:8]
        rank, top_k, gallery, kept, recipe = row[8:]
        return StoredQuestion(
            key=key,
            image=image,
            id=id,
            text=text,
            answer=answer,
            prompt=prompt,
            log_likelihood=log_likelihood,
            tokens=tokens,
            judgement=Judgement(rank, top_k, gallery, bool(kept)),
            recipe=self._recipe(recipe),
        )


def _written(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)

"""Requests and answers of the API, as its OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zsqretrieval.web.settings import AT_ONCE, MOST_RESULTS, MOST_TEXT

Text = Annotated[str, Field(min_length=1, max_length=MOST_TEXT)]
Unicode = Annotated[str, Field(min_length=0)]  # the bound refuses halves of surrogate pairs
Id = Annotated[str, Field(min_length=1, max_length=4096, description="Id of an image of the album.")]
Weight = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
Where = Annotated[str, Field(max_length=10_000, description="A filter: docs/filters.md.")]
Candidates = Annotated[int, Field(ge=1, le=AT_ONCE, description="Images that are re-ranked.")]


class Asked(BaseModel):
    """A request; unknown members are refused."""

    model_config = ConfigDict(extra="forbid")


# --- errors -------------------------------------------------------------------------------------------------


class Problem(BaseModel):
    """What was wrong, and what to do."""

    code: str
    message: str


class Failure(BaseModel):
    """Every answer that is not a success."""

    error: Problem


# --- images -------------------------------------------------------------------------------------------------


class Image(BaseModel):
    """An image of the album."""

    id: str
    name: str
    width: int
    height: int
    taken: str | None
    caption: str | None
    alt: str
    credit: str | None


class Images(BaseModel):
    """Some images, and how many there are."""

    total: int
    images: list[Image]


class Question(BaseModel):
    """A question about an image; stored, or generated for this request."""

    text: str
    log_likelihood: float
    stored: bool


class Details(Image):
    """All that the album knows of an image."""

    metadata: dict[str, Any]
    questions: list[Question]


class FieldOfImages(BaseModel):
    """A field for filters, with its most frequent values and its range."""

    name: str
    type: Literal["number", "text", "date"]
    values: list[Any]
    min: float | str | None
    max: float | str | None


class Can(BaseModel):
    """What this album and its models can do."""

    rerank: bool
    questions: bool
    dialog: bool
    expand: bool
    bank: bool
    probability: bool


class AlbumFacts(BaseModel):
    """The album."""

    title: str
    images: int
    encoder: str
    generator: str | None
    can: Can
    fields: list[FieldOfImages]
    cutoff: float


# --- search -------------------------------------------------------------------------------------------------


class Term(Asked):
    """One part of a query: a text, an image of the album, or an upload."""

    text: Text | None = None
    id: Id | None = None
    upload: Annotated[str, Field(max_length=64)] | None = None
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _one(self) -> Term:
        if sum(one is not None for one in (self.text, self.id, self.upload)) != 1:
            raise ValueError("a term has one of text, id and upload")
        return self


class Search(Asked):
    """A search; one text of weight 1 is a question."""

    terms: Annotated[list[Term], Field(min_length=1, max_length=16)]
    k: Annotated[int, Field(ge=1, le=AT_ONCE)] = 60
    offset: Annotated[int, Field(ge=0, le=MOST_RESULTS - AT_ONCE)] = 0
    rerank: bool = True
    candidates: Candidates = 60
    min_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    where: Where | None = None
    collapse: Annotated[float, Field(gt=0, le=1)] | None = None
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    expand: bool = False
    bank: bool = False
    explain: bool = False


class Word(BaseModel):
    """A word of a question, and by how much the image makes it likelier."""

    text: str
    start: int
    end: int
    bits: float
    share: float


class Explained(BaseModel):
    """The words of a question, and the generator's answer to it."""

    words: list[Word]
    answer: str


class Hit(Image):
    """An image of a ranking."""

    rank: int
    first_stage_rank: int | None
    moved: int | None
    probability: float | None
    similarity: float
    likelihood: float | None
    question_fit: float | None
    duplicates: int
    matched_question: str | None = None
    explanation: Explained | None = None


class Ranked(BaseModel):
    """The end of a search."""

    event: Literal["done"] = "done"
    hits: list[Hit]
    seconds: dict[str, float]
    nothing_found: bool | None
    truncated: bool


class FirstStage(BaseModel):
    """The first event of a search: the order of the first stage."""

    event: Literal["first_stage"] = "first_stage"
    hits: list[Hit]
    total: int
    seconds: float
    nothing_found: bool | None


# --- uploads, explanations, questions -----------------------------------------------------------------------


class Uploaded(BaseModel):
    """An uploaded image: a term of searches for a while."""

    upload: str
    thumb: str


class AskQuestions(Asked):
    """Ask for questions that an image answers."""

    id: Id
    n: Annotated[int, Field(ge=1, le=20)] = 5


class Questions(BaseModel):
    """Questions, likeliest first."""

    questions: list[Question]


class Explain(Asked):
    """Ask which words of a question an image explains."""

    id: Id
    question: Text


class Download(Asked):
    """Ask for images as a zip file."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=10_000)]


# --- dialogs ------------------------------------------------------------------------------------------------


class StartDialog(Asked):
    """Begin a dialog with a description of one image."""

    text: Text
    candidates: Candidates = 60
    where: Where | None = None


class Answer(Asked):
    """An answer to the question of a dialog; with the question, it cannot become an answer to another one."""

    answer: Text
    question: Unicode | None = None


class Statement(Asked):
    """Something that nobody asked for."""

    text: Text


class Said(BaseModel):
    """A turn of a dialog, with the entropy before and after it; without a question, a statement."""

    question: str | None
    answer: str
    bits_before: float
    bits_after: float


class Candidate(Image):
    """An image that may be the one."""

    probability: float


class DialogState(BaseModel):
    """A dialog: its next question, and the candidates, most probable first."""

    dialog: str
    question: str | None
    answers: list[str]
    stopped: Literal["sure", "budget", "nothing to ask", "no candidates"] | None
    entropy_bits: float
    history: list[Said]
    hits: list[Candidate]
    asked: int
    budget: int


# --- as Cohere and OpenAI -----------------------------------------------------------------------------------


class Url(BaseModel):
    """An image as OpenAI's chat has it."""

    url: Unicode


class Part(BaseModel):
    """A part of a document."""

    image_url: Url | None = None


class ImageDocument(BaseModel):
    """A document that is an image: a data URL, or the id of an image of the album."""

    image: Unicode | None = None
    content: Annotated[list[Part], Field(max_length=1)] = []

    @property
    def url(self) -> str | None:
        """The data URL or id, of whichever form."""
        parts = [one.image_url.url for one in self.content if one.image_url is not None]
        return self.image or next(iter(parts), None)


class Rerank(BaseModel):
    """Ask for the relevance of documents."""

    model: str | None = None
    query: Text
    documents: Annotated[list[Unicode | ImageDocument], Field(min_length=1, max_length=AT_ONCE)]
    top_n: Annotated[int, Field(ge=1, le=2**31)] | None = None
    return_documents: bool = False


class Result(BaseModel):
    """The relevance of a document, from 0 to 1."""

    index: int
    relevance_score: float
    document: Any = None


class Reranked(BaseModel):
    """Documents, most relevant first."""

    id: str
    results: list[Result]
    meta: dict[str, Any]


class ImageInput(BaseModel):
    """An image to embed: a data URL, or the id of an image of the album."""

    image: Unicode


Input = Unicode | ImageInput


class Embed(BaseModel):
    """Ask for vectors."""

    model: str | None = None
    input: Input | Annotated[list[Input], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] = "float"


class Embedding(BaseModel):
    """A unit vector; as text, base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Words of the texts, in the place of tokens."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """Vectors in the order of their inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Health(BaseModel):
    """A server that answers."""

    status: Literal["ok"] = "ok"

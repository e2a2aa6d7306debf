"""Rules over English words, without a model: texts, questions and answers, and the things of a caption."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def _set(*lists: str) -> frozenset[str]:
    return frozenset(word for some in lists for word in some.split())


_POLAR = _set(
    "is are was were am do does did has have had can could will would should may might isn't aren't"
)
_ASKING = _set("what which who whom whose where when why how")
_YES = _set("yes yeah yep yup")
_NO = _set("no nope nah")
_UNKNOWN = frozenset(
    (
        "don't know", "do not know", "i don't know", "i do not know", "dont know", "i dont know", "idk",
        "dunno", "no idea", "i have no idea", "not sure", "i'm not sure", "i am not sure", "unsure",
        "i'm unsure", "can't tell", "cannot tell", "can't say", "cannot say", "i can't tell",
        "i cannot tell", "i can't say", "i cannot say", "unknown", "hard to say", "hard to tell", "maybe",
        "perhaps",
    )
)  # fmt: skip
_EMPTY = _POLAR | _ASKING | _set(
    "a an the this that these those some any no other and or but of in on at to for with from by as into",
    "onto near through there here it its he she they them his her their i you we me my your our be been",
    "being not yes something someone anything anyone picture pictures photo photos photograph image scene",
    "taken shown seen see show shows visible many much",
)  # fmt: skip
_ATTRIBUTES = _set("color kind type sort number count doing wearing made look")
_PERSONS = _set(
    "man woman boy girl child person baby kid toddler lady guy player rider skier surfer skateboarder",
    "snowboarder biker cyclist climber runner swimmer crowd",
)
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot",
    "colour": "color", "colours": "color", "gray": "grey", "blond": "blonde",
}  # fmt: skip

# Captions: words before a thing, words that end its phrase, and nouns that are no things.
_OPENERS = _set(
    "a an the one two three four five six several some many another his her their its of in on at with by",
    "near into onto over under through along across behind beside from to",
)
_BREAKERS = _OPENERS | _set(
    "and or but while as who which that is are was were be being it him them up down out off around next",
    "stands sits walks runs plays jumps rides holds looks poses stand sit walk run jump ride look pose",
)
_SINGULAR = _set("a an one another")
_NO_THINGS = _set(
    "front back side sides top bottom middle background foreground group pair air edge end piece other",
    "others each way picture photo image camera distance lot couple set day white black brown red blue",
    "green yellow orange pink purple grey gray",
)
_NOUNS_IN_ING = _set("building ceiling clothing painting railing wedding")
_MASS = _set("water snow grass sand ice food mud smoke fire hair clothing sunlight rain furniture traffic")
_PLURALS = _set("men women children people")


def words(text: str) -> list[str]:
    """The words of a text in lower case, with a plain apostrophe inside ("don't")."""
    return [word.replace("\u2019", "'") for word in _WORD.findall(text.lower())]


def normalized(text: str) -> str:
    """The words of a text without case and punctuation, for comparing texts."""
    return " ".join(words(text.casefold()))


def tidy(text: str) -> str:
    """A text in lower case with single spaces and no punctuation at the ends."""
    return re.sub(r"\s+", " ", text.lower().replace("\u2019", "'")).strip(" .,;:!?\"'")


def first_line(text: str) -> str:
    """The first non-empty line of a text with single spaces; empty if there is none."""
    return next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")


def question_in(text: str) -> str:
    """The question at the beginning of a text, up to its first question mark; empty without one."""
    question, mark, _ = first_line(text).partition("?")
    return question + mark if mark and words(question) else ""


def tidy_question(text: str) -> str:
    """The question of :func:`question_in`, tidied ("is there a dog?"); empty without one."""
    question = tidy(question_in(text))
    return f"{question}?" if question else ""


def stem(word: str) -> str:
    """The singular of a noun in one spelling."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def content_words(text: str) -> frozenset[str]:
    """The stems of the content words, without function words."""
    return frozenset(stem(word) for word in words(text) if word not in _EMPTY)


# --- questions --------------------------------------------------------------------------------------------


def is_polar(question: str) -> bool:
    """Whether it is a yes/no question: its first word is a form of be, do, have or a modal verb."""
    return next(iter(words(question)), "") in _POLAR


def topic(question: str) -> tuple[str, frozenset[str]]:
    """The question word ("polar" for yes/no; "how many" counts as one), and the content words.

    Two questions of one topic ask the same: "Where is this?" and "Where was this photo taken?", or "Is there
    a dog?" and "Are there any dogs?".
    """
    spoken = words(question)
    kind = "polar" if is_polar(question) else next((word for word in spoken if word in _ASKING), "")
    if kind == "how" and "many" in spoken:
        kind = "how many"
    return kind, content_words(question)


def form(question: str) -> tuple[str, frozenset[str]]:
    """The question word as in :func:`topic`, and the attributes.

    "What is the man doing?" and "What are the dogs doing?" have the same form.
    """
    kind, content = topic(question)
    return kind, content & _ATTRIBUTES


def presupposed(question: str) -> frozenset[str]:
    """The things without which a question has no answer: "dog" in "What color is the dog?".

    None in "Is there a dog?".
    """
    return frozenset() if is_polar(question) else content_words(question) - _ATTRIBUTES


def names(known: AbstractSet[str], thing: str) -> bool:
    """Whether stems contain a thing; any word for a person counts as "person"."""
    return thing in known or (thing == "person" and not _PERSONS.isdisjoint(known))


def is_settled(question: str, text: str, answers: Iterable[str] = ()) -> bool:
    """Whether the words of a text already answer a question.

    A yes/no question is settled when the text has all its content words; an open question when the text has
    its content words, apart from attributes ("color", "doing"), and those of one of its possible answers: "a
    brown dog" settles "What color is the dog?" if "brown" is a possible answer.
    """
    known, asked = content_words(text), content_words(question)
    if is_polar(question):
        return bool(asked) and asked <= known
    named = [content_words(answer) for answer in answers]
    return asked - _ATTRIBUTES <= known and any(answer and answer <= known for answer in named)


# --- answers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer that begins with yes or no.

    ``rest`` begins with the punctuation or space after that word; it may be empty.
    """

    word: Literal["yes", "no"]
    rest: str


def is_unknown(answer: str) -> bool:
    """Whether the answer is "don't know" or the like."""
    return tidy(answer) in _UNKNOWN


def verdict(answer: str) -> Verdict | None:
    """The yes or no at the beginning of an answer; None without."""
    first = _WORD.search(answer)
    if first is None or answer[: first.start()].strip():
        return None
    word = first[0].lower()
    if word not in _YES | _NO:
        return None
    rest = answer[first.end() :].rstrip()
    return Verdict("yes" if word in _YES else "no", rest if words(rest) else "")


# --- things in captions -----------------------------------------------------------------------------------


def things(caption: str) -> dict[str, str]:
    """The things of a caption, the last word of a phrase after an article, number or preposition.

    Word ("dogs") by stem ("dog"), in order. The rule has no dictionary and makes mistakes.
    """
    found: dict[str, str] = {}
    chunk: list[str] | None = []  # the words since the last opener; the beginning counts as one
    opener = ""
    for word in [*words(caption), "and"]:
        verb = (
            (word.endswith("ing") and word not in _NOUNS_IN_ING and len(word) > 5)
            or (word.endswith("ed") and len(word) > 4)
            or (opener in _SINGULAR and word.endswith("s") and stem(word) != word and bool(chunk))
        )
        if word in _BREAKERS or (verb and chunk):
            if chunk and chunk[-1] not in _NO_THINGS and len(chunk[-1]) > 2 and not chunk[-1].isdigit():
                found.setdefault(stem(chunk[-1]), chunk[-1])
            chunk, opener = ([], word) if word in _OPENERS else (None, "")
        elif chunk is not None and not verb:
            chunk.append(word)
    return found


def existence_questions(captions: Sequence[str]) -> dict[str, frozenset[int]]:
    """Yes/no questions about things that some of the captions name and others do not mention.

    By question ("is there a dog?"), the positions of the captions that mention the thing, in the order in
    which the captions name the things.
    """
    mentioned = [frozenset(map(stem, words(caption))) for caption in captions]
    written: dict[str, str] = {}
    for caption in captions:
        for root, word in things(caption).items():
            written.setdefault(root, word)
    found = {}
    for root, word in written.items():
        by = frozenset(n for n, some in enumerate(mentioned) if root in some)
        if len(by) < len(captions):
            found[_is_there(word)] = by
    return found


def _is_there(word: str) -> str:
    if word in _MASS:
        return f"is there {word}?"
    if word in _PLURALS or stem(word) != word:
        return f"are there {word}?"
    return f"is there {'an' if word[0] in 'aeiou' else 'a'} {word}?"

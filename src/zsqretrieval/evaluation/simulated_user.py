"""Simulated users of dialogs: they answer questions about a target image, by a generator or from captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import final

import numpy as np

from zsqretrieval.dialog.oracle import Interview
from zsqretrieval.tasks.english import is_polar, names, stem, things, topic, words
from zsqretrieval.types import Hit

DONT_KNOW = "don't know"


@final
class GeneratorUser:
    """Answers by a generator: yes-or-no questions by the likelier answer, others by greedy decoding.

    If the same generator asks, the two share their mistakes, and only the choice of questions is measured.
    """

    def __init__(self, interview: Interview, target: Hit) -> None:
        self._interview = interview
        self._target = target

    def answer(self, question: str) -> str:
        """The generator's answer; :data:`DONT_KNOW` if it is empty, or the image cannot be shown."""
        if is_polar(question):
            ((yes, no),) = self._interview.log_verdicts(question, [self._target])
            return DONT_KNOW if np.isnan(yes) else "yes" if yes > no else "no"
        return self._interview.answers([question], [self._target])[0][0] or DONT_KNOW


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COLORS = _set(
    "white black brown red blue green yellow orange pink purple tan grey golden blonde silver beige maroon"
)
_NUMBERS = _set("one two three four five six seven eight nine ten")
_ARTICLES = _set("a an")
_CLOTHES = _set(
    "shirt jacket hat dress helmet coat uniform costume suit outfit swimsuit jersey cap sweater short pant "
    "jean vest hoodie tshirt clothes clothing glass sunglass"
)
_PLACED = re.compile(
    r"\b(?:in|on|at|near|through|along|into|by|over|across|down|under|beside) (?:the|a|an) (?:\w+ ){0,2}\w+"
)
_CLAUSE = re.compile(r"\b(?:while|and|as|is|are|wearing|with)\b|[,.;]")
_WORN = re.compile(r"\b(?:wearing|dressed in) ((?:\w+ ){0,4}\w+)")
_NOT_DOING = _set("wearing something nothing building morning evening string king ring wing spring during")
_LEADING = _set("a an the his her their its some to in on at with of by near into for from two three")
_MOST = 7  # words of an action


@final
class CaptionUser:
    """Answers from captions other than the one that began the dialog, by rules, without seeing the image.

    - Is there ...? "yes" if all content words of the question are in the captions, in any form ("person" for
      any word for a person), else "no": people mention what matters.
    - How many ...? The number before the noun; one if there are only articles.
    - What color ...? The colour before the noun.
    - Where ...? A place: the noun phrase after "in the", "on a" and the like, unless it is clothing.
    - What is ... doing? From the first word in -ing after the noun to the end of the clause.
    - What is ... wearing? The words after "wearing".

    Of several answers, the one in most captions, then the first. :data:`DONT_KNOW` to other questions, and if
    no caption has an answer.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        self._captions = [" ".join(caption.lower().split()) for caption in captions]
        self._known = frozenset(stem(word) for caption in captions for word in words(caption))

    def answer(self, question: str) -> str:
        """Answer from the captions."""
        kind, asked = topic(question)
        if kind == "polar" and asked:
            return "yes" if all(names(self._known, thing) for thing in asked) else "no"
        if kind == "how many":
            said = self._before(asked, _NUMBERS)
            return _commonest(said or ["one" for _ in self._before(asked, _ARTICLES)])
        if "color" in asked:
            return _commonest(self._before(asked - {"color"}, _COLORS))
        if "wearing" in asked:
            return _commonest(_cut(found) for one in self._captions for found in _WORN.findall(one))
        if "doing" in asked:
            return _commonest(self._doing(asked - {"doing"}))
        if kind == "where":
            return self._where()
        return DONT_KNOW

    def _before(self, asked: frozenset[str], wanted: frozenset[str]) -> list[str]:
        """The wanted words, one or two words before a noun of the question."""
        found = []
        for caption in self._captions:
            said = words(caption)
            for place, word in enumerate(said):
                if _is_one_of(word, asked):
                    near = [stem(one) for one in said[max(place - 2, 0) : place]]
                    found += [one for one in near if one in wanted][-1:]
        return found

    def _where(self) -> str:
        """The phrase of the place that most captions mention."""
        places: list[tuple[str, str]] = []
        for caption in self._captions:
            for phrase in _PLACED.findall(caption):
                head = next(iter(things(phrase)), "")
                if head and head not in _CLOTHES and not names({head}, "person"):
                    places.append((head, phrase))
        if not places:
            return DONT_KNOW
        ((common, _),) = Counter(head for head, _ in places).most_common(1)
        return next(_until(phrase, common) for head, phrase in places if head == common)

    def _doing(self, asked: frozenset[str]) -> list[str]:
        """The action after the first noun of the question, of every caption with one."""
        found = []
        for caption in self._captions:
            said = re.findall(r"[\w'-]+|[,.;]", caption)
            nouns = [n for n, word in enumerate(said) if _is_one_of(word, asked)]
            verbs = (n for n, word in enumerate(said) if re.fullmatch(r".{2,}ing", word))
            doing = (n for n in verbs if said[n] not in _NOT_DOING and said[n - 1] not in _LEADING)
            found += [_cut(" ".join(said[n:])) for n in doing if nouns and n > nouns[0]][:1]
        return found


def _is_one_of(word: str, asked: frozenset[str]) -> bool:
    return any(names({stem(word)}, one) for one in asked)


def _cut(text: str) -> str:
    """The words up to the end of the clause, at most seven, not ending within a phrase."""
    said = _CLAUSE.split(text, maxsplit=1)[0].split()[:_MOST]
    while said and said[-1] in _LEADING:
        said.pop()
    return " ".join(said)


def _until(phrase: str, head: str) -> str:
    """The phrase up to its head."""
    said = phrase.split()
    return " ".join(said[: next(n for n, word in enumerate(said) if stem(word) == head) + 1])


def _commonest(found: Iterable[str]) -> str:
    said = Counter(filter(None, found))
    return said.most_common(1)[0][0] if said else DONT_KNOW

"""Rules that turn captions into questions, so that one set of captions gives several forms of queries.

They find the verb of a caption by a list of verbs and build a question around its parts. A rule may not
apply, and it may give bad English; docs/evaluation.md counts how often.

``which`` and ``is there`` keep the content of the caption; ``what`` drops the subject and ``how many`` the
number, so both describe the image less precisely.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.evaluation.datasets import CAPTION, Dataset, Query


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ARTICLES = _set("a an one another")
_DEFINITE = _set("the this that these those his her their its he she it they")
_PRONOUNS = _set("he she it they")
_COUNTS = _set("two three four five six seven eight nine ten eleven twelve")
_PLURAL_WORDS = _COUNTS | _set("several many some few numerous various multiple both")
_PLURALS = _set("people men women children kids policemen firemen feet geese sheep mice")
_SINGULARS = _set("grass dress glass bus tennis harness lens cross boss lacrosse")
_GROUPS = _set("group crowd couple team bunch pair family line row band class")
_PLACES = _set(
    "above across against along among around at atop behind below beneath beside between by in inside "
    "near on outside over through under underneath"
)
_LINKS = _PLACES | _set("of with from for to into onto up down off towards toward and or")
_PERSONS = _set(
    "acrobat adult adults artist athlete babies baby bicyclist bmxer boy boys bride brides cheerleader "
    "child children clown couple cowboy crowd cyclist family female firemen friend friends gentleman girl "
    "girls groom group guitarist guy guys kid kids ladies lady male man men monk nun people person "
    "policemen referee soldier somebody someone student students team teen teenager teenagers teens "
    "toddler toddlers tourist woman women youth"
)
_NO_PERSONS = _set("boxer cover flower helicopter pointer retriever river setter spider tiger tower water")
_ACTORS = _set("dog dogs puppy cat horse bird animal terrier collie poodle")
_SUBORDINATE = _set("who that which while as when where because after before whose")

_VERBS = _set(
    "approach ascend attempt balance beg begin bend bite blow bounce bow carry cast catch celebrate chase "
    "cheer chew clap clean climb come converse cook crawl cross crouch cry cuddle cut dance dash descend "
    "dig discuss dive drag dribble drink drive eat embrace emerge enjoy enter examine exit fall feed "
    "fetch fight fish flip float fly follow frolic gather gaze get give glide go grab grin grind guard "
    "hang have help hike hit hold hop hug hurdle inspect jog jump kayak kick kiss kneel laugh launch lay "
    "lead lean leap leave lick lie lift listen look lounge lunge make march meet move observe open pass "
    "pause pedal peer perch perform pet pick play pose pour prance prepare pull punch push put raise "
    "reach read recline relax rest retrieve ride roll row run rush sail scale scramble serve shake shoot "
    "shop shout shovel show sing sip sit skate skateboard ski skid skip sled sleep slide smell smile "
    "smoke snarl sniff snowboard soar speed spin splash spray sprint squat squirt stand stare step stick "
    "stretch stroll surf swim swing tackle take talk tend throw toss touch travel trek trot trudge try "
    "tug tumble turn twirl use wade wag wait wakeboard walk wander wash watch wave wear whip windsurf "
    "work wrestle write yawn yell"
)
# Their third persons are plurals of nouns as well: verbs only where what follows or precedes them says so.
_NOUNS_TOO = _set(
    "balance bite blow bow cast catch clap climb cross cut dance dive drink drive enter fall feed fight "
    "fish flip float fly gather grind hit hold hop hug jump kayak kick kiss lead leave lick lift look "
    "march move open pass pet pick play pose pull punch push raise reach rest ride roll row run sail "
    "scale shake shoot shop shovel show skate skateboard ski sled slide smell smile smoke snowboard speed "
    "spin splash stand step stick stretch stroll surf swim swing tackle talk touch trek try turn use wag "
    "walk wash watch wave work"
)
# More often nouns than verbs: who comes before, or an article after it, has to say so.
_MOSTLY_NOUNS = _set("flip jump kayak leave point shop show skateboard ski sled slide step stick swing wave")
_NO_GERUNDS = _set(
    "anything bathing bowling boxing building ceiling clothing during evening everything fishing frying "
    "including king living matching morning nothing opposing painting parking railing ring rocking "
    "setting sewing shopping sling something spring string swing thing wedding wing"
)
_COLOURS = _set("black white brown red blue green yellow orange pink purple grey gray tan golden")
_MODIFIERS = _set(
    "very small large big little tiny young old older tall long short wet muddy dirty snowy high deep"
)
_ADJECTIVES = _ARTICLES | _DEFINITE | _PLURAL_WORDS | _LINKS | _COLOURS | _MODIFIERS
_DETERMINERS = _ARTICLES | _DEFINITE | _set("some two three")


@dataclass(frozen=True, slots=True)
class _Parse:
    """A caption in three parts; without a verb, ``rest`` begins at the first preposition of place."""

    subject: tuple[str, ...]
    doing: str | None  # "running"; "" for "is in the water"; None where no verb was found
    rest: tuple[str, ...]
    sure: bool  # that it has no other verb

    @property
    def predicate(self) -> str:
        return " ".join(filter(None, [self.doing, *self.rest]))

    @property
    def head(self) -> str:
        """Head noun of the subject."""
        end = next((n for n, word in enumerate(self.subject) if n and word in _LINKS | {"wearing"}), None)
        words = [word for word in self.subject[:end] if word.isalpha()]
        return words[-1] if words else ""

    @property
    def plural(self) -> bool:
        return self.subject[0] in _PLURAL_WORDS or self.subject[0].isdigit() or _is_plural(self.head)


def _is_plural(noun: str) -> bool:
    return noun in _PLURALS or (noun.endswith("s") and not noun.endswith("ss") and noun not in _SINGULARS)


def _gerund(verb: str) -> str:
    if verb.endswith("ie"):
        return f"{verb[:-2]}ying"
    if verb.endswith("e") and not verb.endswith("ee"):
        return f"{verb[:-1]}ing"
    one_syllable = len(re.findall(r"[aeiouy]+", verb)) == 1
    if verb == "begin" or (one_syllable and re.search(r"[^aeiou][aeiou][^aeiouwxy]$", verb)):
        return f"{verb}{verb[-1]}ing"
    return f"{verb}ing"


def _third_person(verb: str) -> str:
    if verb == "have":
        return "has"
    if re.search(r"[^aeiou]y$", verb):
        return f"{verb[:-1]}ies"
    return f"{verb}es" if re.search(r"(s|x|z|ch|sh|o)$", verb) else f"{verb}s"


_THIRD = {_third_person(verb): verb for verb in _VERBS | {"do"}}


def _words(caption: str) -> list[str]:
    text = re.sub(r"\s+([,.;:!?'])", r"\1", " ".join(caption.split())).rstrip(" .!?;:,")
    words = text.split()
    if words and not (len(words[0]) > 1 and words[0].isupper()):
        words[0] = words[0].lower()
    return words


def _parse(caption: str) -> _Parse | None:
    """The parts of a caption; None if the rules do not cover its structure."""
    words = _words(caption)
    if words[:1] == ["there"] and words[1:2] in (["is"], ["are"]):
        words = words[2:]
    if len(words) < 2 or any(word.endswith(".") for word in words[:-1]):
        return None
    breaks = (n for n, word in enumerate(words) if word in _SUBORDINATE or (n > 2 and word.endswith(",")))
    end = next(breaks, len(words))  # behind it are clauses of their own
    finite = next((n for n in range(1, min(end + 1, len(words))) if _is_finite(words, n)), None)
    if finite is not None and finite < end:
        return _of_finite(words, finite)
    doing = next((n for n in range(1, end) if _is_gerund(words, n)), None)
    if doing is not None and words[doing] == "wearing" and end == len(words):
        later = (n for n in range(doing + 1, end - 1) if _is_gerund(words, n) and _opens(words[n + 1]))
        doing = next(later, doing)
    if doing is not None:
        return _Parse(tuple(words[:doing]), words[doing], tuple(words[doing + 1 :]), end == len(words))
    if end < len(words):
        return None  # whatever happens, happens behind it
    place = next((n for n in range(1, len(words)) if words[n] in _PLACES), len(words))
    return _Parse(tuple(words[:place]), None, tuple(words[place:]), True)


def _of_finite(words: Sequence[str], n: int) -> _Parse | None:
    """The parts around a finite verb; further verbs after ``and`` become gerunds as well."""
    subject, verb, rest = tuple(words[:n]), words[n], [*words[n + 1 :]]
    sure = True
    for place in range(len(rest) - 1):
        if rest[place] != "and":
            continue
        following = rest[place + 1]
        if following in ("is", "are"):
            rest[place + 1] = ""
        elif following == "has":
            sure = False
        elif following in _THIRD or (following in _VERBS and verb in _VERBS):
            rest[place + 1] = _gerund(_THIRD.get(following, following))
    rest = [word for word in rest if word]
    if verb in ("is", "are"):
        if rest and _is_gerund(["", *rest], 1):
            return _Parse(subject, rest[0], tuple(rest[1:]), sure)
        return _Parse(subject, "", tuple(rest), sure)
    if verb in ("has", "have"):
        if not rest or not (_opens(rest[0]) or rest[0] in _ADJECTIVES):
            return None  # "has reached the summit"
        return _Parse((*subject, "with", *rest), None, (), sure)
    return _Parse(subject, _gerund(_THIRD.get(verb, verb)), tuple(rest), sure)


def _opens(word: str) -> bool:
    """Whether a word begins an object or a place."""
    return word in _DETERMINERS or word in _LINKS


def _is_gerund(words: Sequence[str], n: int) -> bool:
    word = words[n]
    return word.endswith("ing") and word not in _NO_GERUNDS and words[n - 1] not in _ADJECTIVES - _COLOURS


def _is_finite(words: Sequence[str], n: int) -> bool:
    word, before = words[n], words[n - 1]
    if word in ("is", "are"):
        return True
    dressed = before in _COLOURS and n > 1 and words[n - 2] in ("in", "wearing")  # "a man in black runs"
    if before in _ADJECTIVES and not dressed:
        return False
    if word in _THIRD:
        verb = _THIRD[word]
        if verb not in _NOUNS_TOO | _MOSTLY_NOUNS or before in _PERSONS or _is_animal_or_doer(before):
            return True
        after = words[n + 1] if n + 1 < len(words) else None
        return after in _DETERMINERS or (verb not in _MOSTLY_NOUNS and (after is None or _opens(after)))
    several = _is_plural(before) or "and" in words[max(n - 3, 1) : n]
    return word in _VERBS and several


def _is_animal_or_doer(word: str) -> bool:
    """Whether a noun can be the subject of an action: an animal, or a noun in -er, -or, -ist."""
    does = word.endswith(("er", "or", "ist", "hound")) and word not in _NO_PERSONS
    return word in _ACTORS or does


def _with_article(parse: _Parse) -> str:
    first = parse.subject[0]
    phrase = " ".join(filter(None, [*parse.subject, parse.predicate]))
    complete = first in _ARTICLES | _DEFINITE | {"someone", "somebody"} or parse.plural
    return phrase if complete else f"{'an' if first[0] in 'aeiou' else 'a'} {phrase}"


def _which(parse: _Parse) -> str:
    """Which picture shows two dogs running through the grass?"""
    return f"Which picture shows {_with_article(parse)}?"


def _is_there(parse: _Parse) -> str | None:
    """Are there two dogs running through the grass?"""
    if parse.subject[0] in _DEFINITE:
        return None
    several = parse.plural and parse.subject[0] not in _ARTICLES
    return f"{'Are' if several else 'Is'} there {_with_article(parse)}?"


def _what(parse: _Parse) -> str | None:
    """What is running through the grass?"""
    if len(parse.rest) < 2 or parse.subject[0] in _PRONOUNS:
        return None
    # A list of people and things is neither who nor what.
    if parse.doing is None and (parse.rest[0] not in _PLACES or "and" in parse.subject):
        return None
    head = parse.head.lower()
    singular = head[:-1] if _is_plural(head) and head not in _PLURALS else head
    person = {head, singular} & _PERSONS or (singular.endswith(("er", "ist")) and singular not in _NO_PERSONS)
    if head in _GROUPS and "of" in parse.subject:
        of = parse.subject[parse.subject.index("of") + 1 :]
        person = bool({*of} & _PERSONS)
    return f"{'Who' if person else 'What'} is {parse.predicate}?"


def _how_many(parse: _Parse) -> str | None:
    """How many dogs are running through the grass?"""
    if not parse.rest or len(parse.subject) < 2 or "and" in parse.subject:
        return None
    counted = parse.subject[0] in _COUNTS or (parse.subject[0].isdigit() and int(parse.subject[0]) > 1)
    if not counted or parse.subject[1] == "of" or not _is_plural(parse.head):
        return None
    if parse.doing is None and parse.rest[0] not in _PLACES:
        return None
    return f"How many {' '.join(parse.subject[1:])} are {parse.predicate}?"


QUESTION_RULES: Mapping[str, Callable[[_Parse], str | None]] = MappingProxyType(
    {"which": _which, "is there": _is_there, "what": _what, "how many": _how_many}
)
"""The rules by name; each turns a caption into a question, or None if it does not apply."""


def question_form(rule: str) -> str:
    """Form of the queries of a rule, such as ``question/which``."""
    return f"question/{rule}"


def as_question(caption: str, rule: str) -> str | None:
    """Turn an English caption into a question; None if the rule does not apply.

    Raises:
        InvalidInputError: there is no such rule.
    """
    if rule not in QUESTION_RULES:
        raise InvalidInputError(f"there is no rule {rule!r}; choose from {', '.join(QUESTION_RULES)}")
    parse = _parse(caption)
    if parse is not None and (parse.sure or rule == "which"):
        return QUESTION_RULES[rule](parse)
    words = " ".join(_words(caption))
    return f"Which picture shows {words}?" if words and rule == "which" else None


def with_questions(dataset: Dataset, rules: Sequence[str] = tuple(QUESTION_RULES)) -> Dataset:
    """Add the questions that rules make from the captions.

    The queries ``{caption}?{rule}`` have the form ``question/{rule}`` and the relevant images of the caption.
    The notes count the captions that each rule applies to.

    Raises:
        InvalidInputError: there is no such rule, or the data set has no captions.
    """
    captions = dataset.of_form(CAPTION).queries
    asked: list[Query] = []
    notes = []
    for rule in rules:
        made = [
            replace(query, id=f"{query.id}?{rule.replace(' ', '-')}", text=question, form=question_form(rule))
            for query in captions
            if (question := as_question(query.text, rule)) is not None
        ]
        asked += made
        notes.append(f"the rule {rule!r} applies to {len(made)} of {len(captions)} captions")
    answers = {query.id: dataset.qrels[query.id.rpartition("?")[0]] for query in asked}
    return replace(
        dataset,
        queries=(*dataset.queries, *asked),
        qrels={**dataset.qrels, **answers},
        notes=(*dataset.notes, *notes),
    )

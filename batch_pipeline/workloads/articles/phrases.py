"""Words of a text: its language, the names in it, what it is about.

What belongs here: counting and choosing words, pure and by rules. What does not: what they mean for
a publisher, a target or an article (profiles.py, preflight.py).
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LANGUAGES = (
    *("sv", "en", "no", "da", "fi", "de", "nl", "fr", "es", "it", "pt", "pl", "cs", "et", "lt"),
    *("lv", "hu", "ro", "tr", "el", "ru", "uk", "ja", "zh", "ko", "ar"),
)
"""Languages that are told apart; among fewer of them, a short text is seldom taken wrong."""

_STEMMERS = {
    **{"sv": "swedish", "en": "english", "de": "german", "fr": "french", "es": "spanish"},
    **{"no": "norwegian", "da": "danish", "fi": "finnish", "nl": "dutch", "it": "italian"},
    **{"pt": "portuguese", "hu": "hungarian", "ro": "romanian", "tr": "turkish", "ru": "russian"},
    **{"pl": "polish", "cs": "czech", "el": "greek", "et": "estonian", "lt": "lithuanian"},
}
_FOLDER = Path(__file__).with_name("words")
_MIN_DETECTED_CHARS = 40
_MAX_READ_CHARS = 60_000

_WORD = re.compile(r"(?:[^\W\d_]\.){2,}|[^\W_]+(?:[’'.&+-][^\W_]+)*\+*#?")
_POSSESSIVE = re.compile(r"[’']s$", re.IGNORECASE)
_ELISION = re.compile(r"^(?:[cdjlmnst]|qu)[’'](?=\w{2})", re.IGNORECASE)
_CONTRACTION = re.compile(r"n[’']t$|[’'](?:re|ve|ll|d|m)$|^[’']|^let[’']s$", re.IGNORECASE)
# What stands between the words of a phrase: a blank, nothing else.
_GAP = re.compile(r"[ \u00a0]*")
_SENTENCE_END = re.compile(r"[.!?:;…]['\"”’»)\]]*\s*['\"“‘«(\[–—-]*\s*$|^\W*$")
_ARTICLES = frozenset(("the", "a", "an", "en", "ett"))
_JOINERS = frozenset(
    ("of", "de", "la", "le", "du", "des", "del", "von", "van", "av", "för", "and", "&", "y")
)
_HEAD_END = re.compile(r"\s+[-–—|•·✩]\s+|:\s+")
_PARAGRAPH_CHARS = 80
# How often a single word has to be in a text of fewer words than that, to be a subject of it.
_LEAST = ((2, 200), (3, 500), (4, 1_500))
_LENGTH_WEIGHT = {1: 1.0, 2: 2.4, 3: 3.0}


class WordLists(BaseModel):
    """words/topics.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    common: dict[str, frozenset[str]]
    telling: dict[str, frozenset[str]]
    verbs: dict[str, frozenset[str]]
    parts_of_names: frozenset[str]
    kinds_of_pages: frozenset[str]
    furniture: frozenset[str]
    question_starts: dict[str, tuple[str, ...]]


@cache
def read_words(name: str) -> Any:
    """A file of words/, as it is."""
    import yaml

    return yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))


@cache
def word_lists() -> WordLists:
    """The words that tell nothing of a text, and those that do though they are common."""
    return WordLists.model_validate(read_words("topics.yaml"))


def language_of(text: str, declared: str = "") -> str:
    """The language of a text, ISO 639-1: the declared one, else what it reads like.

    Empty where nothing is declared and the text is too short to tell.
    """
    code = re.split(r"[-_]", declared.strip().casefold())[0]
    if re.fullmatch("[a-z]{2}", code):
        return "no" if code in ("nb", "nn") else code
    text = text[:5_000].strip()
    if len(text) < _MIN_DETECTED_CHARS:
        return ""
    return str(language_identifier(LANGUAGES).classify(text)[0])


_LOADING = threading.Lock()


def language_identifier(languages: tuple[str, ...]) -> LanguageIdentifier:
    """What tells these languages apart; ISO 639-1. Reading its model takes most of a second."""
    with _LOADING:
        return _identifier(languages)


@lru_cache(maxsize=8)
def _identifier(languages: tuple[str, ...]) -> LanguageIdentifier:
    # A copy has the same tables: only which languages count is its own.
    found = copy(_all_languages())
    found.set_languages(languages)
    return found


@cache
def _all_languages() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


@cache
def stop_words(language: str) -> frozenset[str]:
    """Words that no topic begins or ends with."""
    import stopwordsiso

    lists = word_lists()
    known = language if stopwordsiso.has_lang(language) else "en"
    words = set(stopwordsiso.stopwords(known)) | lists.common.get(known, frozenset())
    if known not in ("sv", "en"):
        # English titles stand in texts of every language
        words |= {word for word in stopwordsiso.stopwords("en") if len(word) <= 3}
    return frozenset(words - lists.telling.get(known, frozenset()))


class Stems:
    """Stems of words in a language; a language without rules has its words as they are."""

    def __init__(self, language: str) -> None:
        self._rules = _STEMMERS.get(language, "")

    def of(self, word: str) -> str:
        """The stem of a word."""
        word = word.casefold()
        return _stem(self._rules, word) if self._rules else word

    def all_of(self, text: str) -> tuple[str, ...]:
        """The stems of a text's words, in order."""
        return tuple(self.of(word) for word in words_of(text))


_OF_THREAD = threading.local()


@lru_cache(maxsize=100_000)
def _stem(rules: str, word: str) -> str:
    """The stem of a word in small letters: finding it takes far longer than remembering it."""
    # A stemmer holds the word that it works on: each thread has its own.
    stemmers: dict[str, Any] = _OF_THREAD.__dict__
    if rules not in stemmers:
        import snowballstemmer

        stemmers[rules] = snowballstemmer.stemmer(rules)
    return str(stemmers[rules].stemWord(word))


def words_of(text: str) -> list[str]:
    """The words of a text, without possessive endings."""
    return [_bare(found.group()) for found in _WORD.finditer(text)]


def head_of(title: str) -> str:
    """What stands before the first colon or dash of a title."""
    return _HEAD_END.split(title, maxsplit=1)[0].strip()


@dataclass(frozen=True, slots=True)
class _Token:
    word: str
    starts: bool  # it begins a sentence
    follows: bool  # nothing but a blank is between it and the one before


@dataclass
class _Gram:
    count: int = 0
    first: int = 0
    sure: bool = False
    forms: Counter[str] = field(default_factory=Counter)


class Phrases:
    """The names and topics of one text.

    Args:
        title: of the text.
        text: paragraphs on lines of their own.
        headings: between them.
        language: ISO 639-1.
    """

    def __init__(
        self, title: str, text: str, headings: Sequence[str] = (), language: str = "en"
    ) -> None:
        self.title, self.language = title, language
        self.stems = Stems(language)
        self._stop = stop_words(language)
        self._lists = word_lists()
        self._verbs = self._lists.verbs.get(language, frozenset())
        lines = [line for line in text[:_MAX_READ_CHARS].splitlines() if line.strip()]
        self._lines = [list(_tokens(line)) for line in lines]
        # titles are often set in capitals: they do not say which of their words are names
        self._prose = [
            tokens
            for line, tokens in zip(lines, self._lines, strict=True)
            if len(line) >= _PARAGRAPH_CHARS or line.rstrip().endswith((".", "!", "?"))
        ]
        self._headings = [list(_tokens(heading)) for heading in headings]
        self._title = list(_tokens(title))
        self._words = sum(len(tokens) for tokens in self._lines)
        self._title_stems = {self.stems.of(token.word) for token in self._title}
        self._lower = Counter(
            token.word.casefold() for tokens in self._prose for token in tokens if not _big(token)
        )

    def names(self, limit: int = 10) -> list[str]:
        """Names: sequences of words with capitals, the most frequent first."""
        found: dict[str, _Gram] = {}
        place = 0
        for tokens in self._prose:
            for words, sure in self._capitals(tokens):
                place += 1
                form = " ".join(words)
                gram = found.get(form.casefold())
                if gram is None:
                    gram = found[form.casefold()] = _Gram(first=place)
                gram.forms[form] += 1
                # one at the beginning of a sentence may be any word
                gram.count += 2 if sure else 1
                gram.sure = gram.sure or sure
        kept = {key: gram for key, gram in found.items() if self._is_name(gram)}
        for key in sorted(kept, key=lambda key: key.count(" ")):
            # "Mugabe" is "Robert Mugabe", where that is said too
            longer = [
                other
                for other, gram in kept.items()
                if other != key
                and f" {key} " in f" {other} "
                and (gram.forms.total() > 1 or (other.count(" ") == 1 and other.endswith(key)))
            ]
            if longer:
                best = max(longer, key=lambda other: (kept[other].count, -kept[other].first))
                if " " not in key or kept[key].count < 2 * kept[best].count:
                    kept[best].count += kept[key].count
                    del kept[key]
        ranked = sorted(kept.values(), key=lambda gram: (-self._weight(gram), gram.first))
        return [gram.forms.most_common(1)[0][0] for gram in ranked[:limit]]

    def topics(self, limit: int = 10, *, without: Iterable[str] = ()) -> list[str]:
        """Subjects: frequent words and phrases, in their commonest form.

        Args:
            limit: how many.
            without: phrases that are known already, such as names.
        """
        grams = self._grams()
        known = [frozenset(self.stems.all_of(phrase)) for phrase in without]
        candidates = sorted(
            (key for key, gram in grams.items() if self._is_topic(key, gram)),
            key=lambda key: (-self._score(key, grams[key]), grams[key].first),
        )
        chosen: list[tuple[str, ...]] = []
        for key in candidates:
            stems = frozenset(key)
            if any(stems <= one for one in known) or any(
                stems <= set(one) or len(stems & set(one)) > 1 for one in chosen
            ):
                continue
            shorter = next((one for one in chosen if set(one) < stems), None)
            if shorter is not None:
                # the longer one says more, where it is nearly as frequent
                if len(shorter) == 1 and grams[key].count * 4 >= grams[shorter].count:
                    chosen[chosen.index(shorter)] = key
                continue
            if len(chosen) < limit:
                chosen.append(key)
        return [_shown(grams[key].forms) for key in chosen]

    def question(self, words: int = 6) -> str:
        """The title as a person would type it into a search field.

        Of a long title, what stands before its colon or dash, or the words that the text comes back
        to; a title that tells little is helped by the first topic.
        """
        title = [token.word for token in self._title]
        head = words_of(head_of(self.title))
        if len(title) > words and self._telling(head) >= 2:
            title = head
        while title and title[0].casefold() in _ARTICLES:
            title = title[1:]
        typed = " ".join(title).casefold()
        starts = self._lists.question_starts.get(self.language, ())
        opening = next((one for one in starts if typed.startswith(f"{one} ")), "").split()
        if len(title) <= words and (opening or self._telling(title) >= 2):
            return typed
        rest = list(enumerate(title))[len(opening) :]
        telling = [one for one in rest if self._tells(one[1], verbs=bool(opening))]
        if len(telling) < 2:
            telling = [one for one in rest if self._tells(one[1], verbs=True)]
        chosen = self._weightiest(telling, words - len(opening))
        if len(chosen) < 2:
            known = " ".join(chosen)
            chosen += words_of(next(iter(self.topics(1, without=[known])), ""))
        return " ".join([*opening, *chosen]).casefold()

    def _weightiest(self, places: Sequence[tuple[int, str]], limit: int) -> list[str]:
        """Those of a title's words that the text uses most, in their order."""
        counts = Counter(
            self.stems.of(token.word)
            for tokens in (*self._lines, *self._headings)
            for token in tokens
        )
        unique = {self.stems.of(word): (place, word) for place, word in reversed(places)}

        def weight(one: tuple[int, str]) -> float:
            name = 1.5 if one[1][:1].isupper() else 1.0
            return math.log1p(counts[self.stems.of(one[1])]) * name - 0.15 * one[0]

        best = sorted(unique.values(), key=lambda one: (-weight(one), one[0]))[:limit]
        return [word for _, word in sorted(best)]

    def _telling(self, title: Sequence[str]) -> int:
        return len({self.stems.of(word) for word in title if self._tells(word)})

    def _tells(self, word: str, *, verbs: bool = False) -> bool:
        low = word.casefold()
        # a bare number says something where it is a year
        if self.language == "en" and re.search(r"-\w+(ed|ing)$", low):
            return False
        return (
            not self._stops(low)
            and len(low) > 1
            and (not low.isdigit() or len(low) == 4)
            and (verbs or low not in self._verbs)
        )

    def _stops(self, low: str) -> bool:
        return low in self._stop or _CONTRACTION.search(low) is not None

    def _capitals(self, tokens: Sequence[_Token]) -> Iterator[tuple[list[str], bool]]:
        """Sequences of words with capitals, and whether they surely are a name."""
        run: list[_Token] = []
        for token in (*tokens, _Token("", starts=True, follows=False)):
            joins = run and token.follows and not token.starts
            if joins and (_big(token) or token.word in _JOINERS):
                run.append(token)
                continue
            yield from self._trimmed(run)
            run = [token] if token.word and _big(token) else []

    def _trimmed(self, run: list[_Token]) -> Iterator[tuple[list[str], bool]]:
        while run and not self._names(run[-1]):
            run = run[:-1]
        while run and not self._names(run[0]):
            run = run[1:]
        parts: list[list[_Token]] = [[]]
        for token in run:
            # "Mozilla and Google" are two, "Bank of America" is one; a name comes once in a name
            again = token.word in [one.word for one in parts[-1]] and token.word not in _JOINERS
            if again or token.word in ("and", "&", "y"):
                parts.append([token] if again else [])
            else:
                parts[-1].append(token)
        for part in parts:
            while part and part[-1].word in _JOINERS:
                part.pop()
            if 0 < len(part) <= 5:
                yield (
                    [token.word for token in part],
                    not part[0].starts or len(part) > 1,
                )

    def _names(self, token: _Token) -> bool:
        low = token.word.casefold()
        return _big(token) and (low in self._lists.parts_of_names or not self._stops(low))

    def _is_name(self, gram: _Gram) -> bool:
        form = gram.forms.most_common(1)[0][0]
        low = form.casefold()
        total = sum(gram.forms.values())
        titled = set(self.stems.all_of(form)) <= self._title_stems
        if not gram.sure or any(word in self._verbs for word in low.split()):
            return False
        if " " not in form:
            if len(form) < 2 or self._stops(low) or form.isdigit():
                return False
            if self._lower[low] * 2 > total:
                return False
            odd = any(mark.isupper() or mark.isdigit() for mark in form[1:])
            # German writes every noun with a capital
            if self.language == "de" and not odd:
                return titled and self._lower[low] == 0 and gram.count >= 4
        return gram.count >= (2 if titled or " " in form else 4)

    def _weight(self, gram: _Gram) -> float:
        form = gram.forms.most_common(1)[0][0]
        stems = self.stems.all_of(form)
        shared = sum(stem in self._title_stems for stem in stems) / len(stems)
        return gram.count * (1 + shared)

    def _grams(self) -> dict[tuple[str, ...], _Gram]:
        found: dict[tuple[str, ...], _Gram] = {}
        for place, tokens in enumerate((self._title, *self._headings, *self._lines)):
            for run in self._runs(tokens):
                stems = [self.stems.of(word) for word in run]
                for length in (1, 2, 3):
                    for start in range(len(run) - length + 1):
                        key = tuple(stems[start : start + length])
                        if len(set(key)) < length:
                            continue
                        gram = found.get(key)
                        if gram is None:
                            gram = found[key] = _Gram(first=place)
                        gram.count += 1
                        gram.forms[" ".join(run[start : start + length])] += 1
        return found

    def _runs(self, tokens: Sequence[_Token]) -> Iterator[list[str]]:
        run: list[str] = []
        for token in tokens:
            low = token.word.casefold()
            tells = (
                not self._stops(low)
                and low not in self._verbs
                and len(low) >= 2
                and not low[0].isdigit()
            )
            if run and not (tells and token.follows and not token.starts):
                yield run
                run = []
            if tells:
                run.append(token.word)
        if run:
            yield run

    def _is_topic(self, key: tuple[str, ...], gram: _Gram) -> bool:
        forms = gram.forms.most_common(1)[0][0].split()
        # adverbs before, participles after: "consciously aware", "data stored"
        if self.language == "en" and (forms[0].endswith("ly") or forms[-1].endswith(("ed", "ly"))):
            return False
        if len(key) == 1:
            least = next((one for one, most in _LEAST if self._words < most), 5)
            titled = key[0] in self._title_stems
            return gram.count >= min(least, 3 if titled else 5) and len(forms[-1]) >= 4
        return gram.count >= 2

    def _score(self, key: tuple[str, ...], gram: _Gram) -> float:
        shared = sum(stem in self._title_stems for stem in key) / len(key)
        return gram.count * _LENGTH_WEIGHT[len(key)] * (1 + shared)


def furniture(heading: str) -> bool:
    """Whether a heading belongs to the site and not to the text: "Related stories", "Sign in"."""
    plain = " ".join(words_of(heading)).casefold()
    return any(
        plain == phrase or plain.startswith(f"{phrase} ") for phrase in word_lists().furniture
    )


def cut(text: str, limit: int) -> str:
    """The beginning of a text on one line, cut between words."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    return f"{head.rpartition(' ')[0] or head}…"


def unique(phrases: Iterable[str], limit: int, language: str = "en") -> list[str]:
    """Phrases without those that only differ in endings from an earlier one."""
    stems = Stems(language)
    seen: set[frozenset[str]] = set()
    kept: list[str] = []
    for phrase in (" ".join(one.split()) for one in phrases):
        key = frozenset(stems.all_of(phrase))
        if key and key not in seen:
            seen.add(key)
            kept.append(phrase)
    return kept[:limit]


def _tokens(line: str) -> Iterator[_Token]:
    end, owner = 0, False
    for found in _WORD.finditer(line):
        between = line[end : found.start()]
        starts = end == 0 or bool(_SENTENCE_END.search(between) and between.strip())
        # "Apple's Vision Pro" are two names
        follows = end > 0 and not owner and _GAP.fullmatch(between) is not None
        yield _Token(_bare(found.group()), starts, follows)
        owner = _POSSESSIVE.search(found.group()) is not None
        end = found.end()


def _bare(word: str) -> str:
    """A word without what its language hangs on it: "Apple's", "l'assemblée"."""
    return _ELISION.sub("", _POSSESSIVE.sub("", word))


def _big(token: _Token) -> bool:
    return token.word[:1].isupper()


def _shown(forms: Counter[str]) -> str:
    """The commonest form; small letters unless capitals are the rule."""
    small = Counter[str]()
    for form, count in forms.items():
        small[form.casefold()] += count
    best = small.most_common(1)[0][0]
    return max(
        (form for form in forms if form.casefold() == best),
        key=lambda form: (forms[form], form == best),
    )

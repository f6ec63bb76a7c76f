"""Writes articles and outlines that meet a brief, and articles that fail it in one chosen way.

What does not live here: the sentences (prose.yaml), and where in an answer they go (`schema`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import cycle, zip_longest
from pathlib import Path
from random import Random
from typing import Any

import yaml

_LEAST_SECTIONS, _MOST_SECTIONS = 5, 8
_LEAST_TERMS, _MOST_TERMS, _MOST_OCCURRENCES = 6, 8, 10
# Letters that two forms of a word share.
_STEM = 5
_FEW_TERMS = 2
# The paragraphs alone; headings and sources come on top and make it about 15 % more.
_BODY = 1.12
_SHORT = 2 / 3
_LONGEST_TOPIC, _LONGEST_HEADING = 60, 90
_POINTS = 3
_OTHER_URL = "https://example.com/another-page"
_OTHER = {"sv": "en", "en": "sv"}

_MARKUP = re.compile(r"[\\`*_\[\]<]|&(?=#?\w+;)")
_SENTENCE_END = re.compile(r"[.!?…:;][\"'”’»)\]]*(?:\s|$)")
_BOUNDARY = re.compile(r"(?<=[.!?…])\s+(?=[^\W\d_a-zà-öø-ÿ]|[\"“”(\[\d])")
# `[text](url)` or `[text](<url>)`, the URL with round brackets in pairs at most.
_LINK = re.compile(r"\[((?:[^\[\]\\]|\\.)*)\]\((?:<([^<>\n]*)>|((?:[^\s()<]|\([^\s()]*\))*))\)")
_BLANK = re.compile(r"\n\s*\n")
_EDGES = " .,;:!?…-–—\"'“”‘’()[]{}<>*#|`"


@dataclass(frozen=True)
class Written:
    """An article: `title` is what its `# ` line says."""

    title: str
    markdown: str


@dataclass(frozen=True)
class Plan:
    """A section of an outline, in the words of the brief."""

    heading: str
    points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Brief:
    """What an article must do, as far as the request says it.

    Attributes:
        main: what it is about, in a few words; empty where nothing tells.
        title: of the outline or of the article to polish.
        plan: sections of the outline; else the required subtopics.
        trusted: domains of sources, tier 1 and tier 2.
        sources: how many of tier 1 and how many together.
        markdown: the article to polish.
    """

    language: str
    main: str
    title: str
    plan: tuple[Plan, ...]
    subtopics: tuple[str, ...]
    topics: tuple[str, ...]
    terms: tuple[str, ...]
    forbidden: tuple[str, ...]
    angle: str
    bridge: str
    anchor: str
    url: str
    min_words: int
    max_words: int
    trusted: tuple[tuple[str, ...], tuple[str, ...]]
    sources: tuple[int, int]
    required_texts: tuple[str, ...]
    markdown: str

    @classmethod
    def read(cls, content: Any, words: Sequence[str] = ()) -> Brief:
        """Read an item's content; what is absent or of another type gets a sensible default.

        Args:
            content: an object with the keys that docs/simulator.md lists.
            words: of the text that it is about where the keys do not tell.
        """
        content = _object(content)
        target, link, outline, article, wanted, trusted = (
            _object(content.get(name))
            for name in (
                "target",
                "link",
                "outline",
                "article",
                "sources_wanted",
                "trusted_sources",
            )
        )
        forbidden = tuple(text.casefold() for text in _texts(content.get("forbidden_angles")))
        subtopics = _topics(_texts(content.get("required_subtopics")), forbidden)
        topics = _topics(
            [
                *_texts(target.get("topics")),
                *_texts(content.get("required_subtopics")),
                *_texts(target.get("entities")),
            ],
            forbidden,
        )
        terms = tuple({term.casefold(): term for term in _texts(content.get("lsi_terms"))}.values())
        said = _topics(
            [*topics, *terms, _text(target.get("title")), " ".join(words[:6])], forbidden
        )
        least = _number(content.get("min_words"), 900)
        texts = content.get("required_texts")
        return cls(
            language=_language(content, words),
            main=said[0] if said else "",
            title=_text(outline.get("title")) or _text(article.get("title")),
            plan=tuple(
                Plan(_text(one.get("heading")), tuple(_texts(one.get("points"))))
                for one in map(_object, _list(outline.get("sections")))
            ),
            subtopics=subtopics,
            topics=topics,
            terms=terms,
            forbidden=forbidden,
            angle=_text(content.get("angle")),
            bridge=_text(content.get("bridge")),
            anchor=_text(link.get("anchor")),
            url=_text(link.get("url")),
            min_words=least,
            max_words=_number(content.get("max_words"), max(2_500, 2 * least)),
            trusted=(
                tuple(_texts(trusted.get("tier_1"))),
                tuple(_texts(trusted.get("tier_2"))),
            ),
            sources=(_number(wanted.get("tier_1"), 1), _number(wanted.get("total"), 2)),
            required_texts=tuple(
                text for text in _list(texts) if isinstance(text, str) and text.strip()
            ),
            markdown=article["markdown"] if isinstance(article.get("markdown"), str) else "",
        )


def write_article(brief: Brief, seed: str, flaws: Collection[str] = ()) -> Written:
    """Write the article of a brief, or polish the one in it.

    Args:
        brief: what it must do.
        seed: the same one gives the same article.
        flaws: kinds of `config.ARTICLE_FAULTS`; each changes what it names and nothing else.
    """
    if brief.markdown.strip():
        polished = brief.markdown if "article_few_terms" in flaws else _polished(brief, seed)
        text = _Text.parse(polished)
        if not flaws:
            return Written(_unmarked(text.title) or brief.title, polished)
    else:
        text = _Writer(brief, seed).article()
    for name, spoil in _FLAWS.items():
        if name in flaws:
            text = spoil(text, brief, seed)
    return Written(_unmarked(text.title) or brief.title, text.render())


def write_outline(brief: Brief, seed: str) -> tuple[str, tuple[Plan, ...]]:
    """Plan the article of a brief: its title, and at least five sections with points each."""
    writer = _Writer(brief, seed)
    sections = [Plan(one.heading, tuple(writer.points(one.topic))) for one in writer.sections()]
    return writer.title(), tuple(sections)


# What a request says, whatever type it has.


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _texts(value: Any) -> list[str]:
    return [text for text in map(_text, _list(value)) if text]


def _number(value: Any, default: int) -> int:
    # The bound keeps out what JSON allows and no article can be, such as 1e999.
    return int(value) if isinstance(value, int | float) and 0 <= value <= 100_000 else default


def _topics(texts: Iterable[str], forbidden: Sequence[str]) -> tuple[str, ...]:
    """Texts that can stand inside a sentence: short, of one piece, none twice."""
    found: dict[str, str] = {}
    for text in texts:
        topic = text.strip(_EDGES)
        known = topic.casefold()
        if not topic or len(topic) > _LONGEST_TOPIC or _SENTENCE_END.search(topic):
            continue
        if not any(angle in known for angle in forbidden):
            found.setdefault(known, topic)
    return tuple(found.values())


def _language(content: dict[str, Any], words: Sequence[str]) -> str:
    said = _text(content.get("language")).lower()[:2]
    if said in _OTHER:
        return said
    target = _object(content.get("target"))
    return _guessed(f"{target.get('title')} {target.get('excerpt')} {' '.join(words[:200])}")


def _guessed(text: str) -> str:
    words = text.lower().split()
    swedish = sum(word in ("och", "att", "det", "är", "som", "för", "på", "inte") for word in words)
    english = sum(word in ("and", "the", "of", "to", "is", "that", "for", "not") for word in words)
    return "sv" if swedish > english else "en"


# Markdown.


def _marked(text: str) -> str:
    """Write a text so that Markdown shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", text)


def _unmarked(text: str) -> str:
    return re.sub(r"\\([\\`*_\[\]<&])", r"\1", text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(text: str) -> int:
    return len(_LINK.sub(r"\1", text).split())


def _sentences(paragraph: str) -> list[str]:
    """Split a paragraph; no sentence ends within a link."""
    spans = [found.span() for found in _LINK.finditer(paragraph)]
    sentences, start = [], 0
    for gap in _BOUNDARY.finditer(paragraph):
        if not any(first <= gap.start() < last for first, last in spans):
            sentences.append(paragraph[start : gap.start()])
            start = gap.end()
    return [*sentences, paragraph[start:]]


def _link(brief: Brief) -> str:
    url = f"<{brief.url}>" if re.search(r"[\s()]", brief.url) else brief.url
    return f"[{_marked(brief.anchor)}]({url})"


def _url(link: re.Match[str]) -> str:
    return link[2] or link[3] or ""


def _links(text: str, brief: Brief) -> list[re.Match[str]]:
    """The links of a text that are the job's: by URL."""
    return [found for found in _LINK.finditer(text) if _url(found) == brief.url]


@dataclass
class _Section:
    """A heading (empty above the first one) and what stands below it."""

    heading: str
    paragraphs: list[str] = field(default_factory=list)


@dataclass
class _Text:
    """An article in parts, as Markdown."""

    title: str
    sections: list[_Section]

    def render(self) -> str:
        parts = [f"# {self.title}"] if self.title else []
        for section in self.sections:
            parts += [f"## {section.heading}"] if section.heading else []
            parts += section.paragraphs
        return "\n\n".join(parts)

    @classmethod
    def parse(cls, markdown: str) -> _Text:
        text = cls("", [_Section("")])
        for block in _BLANK.split(markdown.strip()):
            while block:
                line, _, rest = block.partition("\n")
                if line.startswith("# ") and not text.title:
                    text.title = line[2:].strip()
                elif line.startswith("## "):
                    text.sections.append(_Section(line[3:].strip()))
                else:
                    text.sections[-1].paragraphs.append(block)
                    break
                block = rest
        return text

    def places(self, brief: Brief) -> Iterator[tuple[_Section, int]]:
        """Where the job's link stands in a paragraph."""
        for section in self.sections:
            for n, paragraph in enumerate(section.paragraphs):
                if _links(paragraph, brief):
                    yield section, n

    def count(self, brief: Brief) -> int:
        """How often the job's link occurs."""
        return len(_links(self.render(), brief))

    def map(self, change: Callable[[str], str]) -> _Text:
        """Change title, headings and paragraphs; a paragraph of which nothing is left goes."""
        sections = [
            _Section(change(one.heading), [new for old in one.paragraphs if (new := change(old))])
            for one in self.sections
        ]
        return _Text(change(self.title), sections)


# Writing.


@cache
def _phrases() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("prose.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, yaml.CSafeLoader))


@dataclass(frozen=True)
class _Planned:
    """A section before it is written.

    Attributes:
        topic: what its sentences are about; empty where nothing tells.
    """

    heading: str
    topic: str
    points: tuple[str, ...]


class _Writer:
    """Writes in one language; every choice is drawn from the seed."""

    def __init__(self, brief: Brief, seed: str, language: str = "") -> None:
        self._brief = brief
        self._language = language or brief.language
        self._phrases = _phrases()[self._language]
        self._random = Random(f"{seed}/{self._language}")
        self._decks: dict[str, list[str]] = {}
        self._orders: dict[str, list[str]] = {}

    def article(self) -> _Text:
        """The whole article."""
        brief = self._brief
        planned = self.sections()
        goal = brief.min_words * _BODY
        goal = min(goal, max(brief.min_words, (brief.min_words + brief.max_words) / 2))
        lead = self._lead()
        text = _Text(_marked(self.title()), [_Section("", [lead])])
        middle = len(planned) // 2
        around = self.around_link() if brief.url and brief.anchor else ""
        written = _words(lead)
        for n, plan in enumerate(planned):
            section = _Section(_marked(plan.heading), [self._opening(plan)])
            if n == middle and around:
                section.paragraphs += [around, self._paragraph(plan.topic, 2)]
            text.sections.append(section)
            written += sum(map(_words, section.paragraphs))
            # So far after this section, if all of them are to be equally long.
            due = goal * (n + 1) / len(planned)
            while (missing := due - written) > 0:
                # A last paragraph of one sentence would look odd: it gets two at least.
                size = min(4, max(2, round(missing / 14)))
                section.paragraphs.append(self._paragraph(plan.topic, size))
                written += _words(section.paragraphs[-1])
        text.sections[-1].paragraphs += [*self._sources(), *brief.required_texts]
        return text

    def title(self) -> str:
        """The headline: the brief's, else one about its main topic. The link is not in it."""
        given = self._brief.title.lstrip("# ")
        if given and not self._is_kept_out(given):
            return given
        if self._brief.main and not self._is_kept_out(self._brief.main):
            return _capital(_put(self._draw("titles"), main=self._brief.main))
        return str(self._phrases["plain_title"])

    def sections(self) -> list[_Planned]:
        """Five to eight sections, of the outline or the required subtopics, filled up."""
        brief = self._brief
        by_name = {topic.casefold(): topic for topic in brief.subtopics}
        # Those that may be headings come first; the rest only where there is nothing else.
        fillers = iter(sorted(self._phrases["headings"], key=self._is_kept_out))
        topics = [topic for topic in brief.topics if self._is_noun(topic)]
        spare = cycle(topics or [brief.main])
        given = brief.plan or tuple(Plan(topic) for topic in brief.subtopics)
        planned: list[_Planned] = []
        for one in given[:_MOST_SECTIONS]:
            heading = _heading(one.heading)
            topic = by_name.get(heading.casefold(), "")
            if not topic or not self._is_noun(topic):
                topic = next(spare)
            if not heading or self._is_kept_out(heading):
                heading = next(fillers, self._phrases["plain_title"])
            planned.append(_Planned(_capital(heading), topic, one.points))
        used = {one.heading.casefold() for one in planned}
        for filler in fillers:
            if len(planned) >= _LEAST_SECTIONS:
                break
            if filler.casefold() not in used:
                planned.append(_Planned(filler, next(spare), ()))
        return planned

    def points(self, topic: str) -> list[str]:
        """What a section says, in the form of an outline."""
        about = topic or self._brief.main or self._phrases["plain_title"].lower()
        return [_put(self._draw("points"), t=about) for _ in range(_POINTS)]

    def around_link(self) -> str:
        """The paragraph of the link: two sentences with terms on both sides of it."""
        before, after = self.neighbours(self.near_terms())
        return " ".join([*before, self.link_sentence(), *after])

    def link_sentence(self, kind: str = "link") -> str:
        """A sentence with the link."""
        return _put(self._pure(kind), link=_link(self._brief))

    def neighbours(self, terms: Sequence[str]) -> tuple[list[str], list[str]]:
        """Two sentences before the link's and two after it, with these terms and no others."""
        # A term like "Vad är det? Svar här" ends a sentence. Where it comes first before the link
        # and last after it, it pushes only itself away from there.
        rough = [term for term in terms if _SENTENCE_END.search(term)]
        before, after = list(terms[::2]), list(terms[1::2])
        before.sort(key=lambda term: term not in rough)
        after.sort(key=lambda term: term in rough)
        return (
            [self._pure("plain"), self._near(before) if before else self._pure("plain")],
            [self._near(after) if after else self._pure("plain"), self._pure("plain")],
        )

    def few_terms(self) -> tuple[list[str], list[str]]:
        """As `neighbours`, but far too few terms: those that hold the fewest others."""
        terms = self._brief.terms

        def inside(term: str) -> int:
            return sum(other.casefold() in term.casefold() for other in terms)

        return self.neighbours(sorted(terms, key=inside)[: _few_terms(self._brief)])

    def near_terms(self) -> list[str]:
        """Six to eight terms for the sentences around the link, as far as the brief has them."""
        seen: set[tuple[str, ...]] = set()

        def worth(term: str) -> int:
            # Two forms of a word may count as one term; half a sentence pushes others away.
            stem = tuple(word[:_STEM] for word in term.casefold().split())
            known = stem in seen
            seen.add(stem)
            return 2 * (_SENTENCE_END.search(term) is not None) + known

        anchor = self._brief.anchor.casefold()
        in_anchor = sum(term.casefold() in anchor for term in self._brief.terms)
        most = max(_LEAST_TERMS, min(_MOST_TERMS, _MOST_OCCURRENCES - in_anchor))
        return sorted(self._brief.terms, key=worth)[:most]

    def _near(self, terms: Sequence[str]) -> str:
        *most, last = map(_marked, terms)
        listed = f"{', '.join(most)} {self._phrases['and']} {last}" if most else last
        return _put(self._pure("near"), terms=listed)

    def _pure(self, kind: str) -> str:
        """One sentence of a kind in which no LSI term occurs by chance, where there is one."""
        terms = [term.casefold() for term in self._brief.terms]
        for _ in range(len(self._phrases[kind])):
            sentence = self._filled(kind)
            known = sentence.casefold()
            if len(_sentences(sentence)) == 1 and not any(term in known for term in terms):
                break
        return sentence

    def _lead(self) -> str:
        brief = self._brief
        sentences = [self._filled("leads", main=brief.main)] if brief.main else []
        if 0 < len(brief.angle) <= 100 and not _SENTENCE_END.search(brief.angle):
            sentences.append(self._filled("angles", angle=brief.angle))
        bridges = self._phrases["bridges"].get(brief.bridge)
        if bridges:
            sentences.append(bridges[self._random.randrange(len(bridges))])
        return " ".join([*sentences, self._filled("plain"), self._filled("plain")])

    def _opening(self, plan: _Planned) -> str:
        sentences = [self._about(plan.topic), self._filled("plain")]
        for point in plan.points[:_POINTS]:
            said = point.strip(_EDGES)
            if 0 < len(said) <= 100 and not _SENTENCE_END.search(said):
                sentences.append(self._filled("point_sentences", p=said))
        return " ".join(sentences)

    def _paragraph(self, topic: str, size: int) -> str:
        sentences = [self._filled("plain") for _ in range(size)]
        if size > 2:
            sentences[self._random.randrange(size)] = self._about(topic)
        return " ".join(sentences)

    def _about(self, topic: str) -> str:
        return self._filled("topic", t=topic) if topic else self._filled("plain")

    def _filled(self, kind: str, **slots: str) -> str:
        """The next sentence of a kind, with what the brief says in its slots."""
        template = self._draw(kind)
        for name in ("who", "when"):
            if f"{{{name}}}" in template:
                template = _put(template, **{name: self._draw(name)})
        return _put(template, **{name: _marked(text) for name, text in slots.items()})

    def _draw(self, kind: str) -> str:
        """The next one of a shuffled deck: none comes twice before all have come once."""
        deck = self._decks.setdefault(kind, [])
        if not deck:
            before = self._orders.get(kind, [])
            deck += self._phrases[kind]
            self._random.shuffle(deck)
            # What came last comes late, or the same sentence could stand twice in a paragraph.
            late = before[: len(before) // 2]
            deck.sort(key=lambda one: one not in late)
            self._orders[kind] = list(deck)
        return deck.pop()

    def _is_noun(self, topic: str) -> bool:
        """Whether a topic can stand after "about": "how to save" cannot."""
        return topic.split()[0].lower() not in self._phrases["clauses"]

    def _is_kept_out(self, text: str) -> bool:
        """Whether a text must not be a heading: it says the link's text or a forbidden angle."""
        known, anchor = text.casefold(), self._brief.anchor.casefold()
        if any(angle in known for angle in self._brief.forbidden):
            return True
        return bool(anchor) and re.search(rf"(?<!\w){re.escape(anchor)}(?!\w)", known) is not None

    def _sources(self) -> list[str]:
        least, total = self._brief.sources
        # A page is no source about itself.
        site = re.match(r"\w+://([^/?#:]+)", self._brief.url)
        own = f".{site[1].lower()}" if site else ""
        first, second = (
            [host for host in map(_host, tier) if not own.endswith(host.removeprefix("www"))]
            for tier in self._brief.trusted
        )
        self._random.shuffle(first)
        hosts = [*first[:least], *second, *first[least:]]
        if not hosts:
            return []
        slug = _slug(self._brief.main)
        urls = [
            f"https://{hosts[n % len(hosts)]}/{slug}{f'-{n}' if n >= len(hosts) else ''}"
            for n in range(max(least, total))
        ]
        listed = ", ".join(f"[{url.split('/')[2].removeprefix('www.')}]({url})" for url in urls)
        return [f"{self._phrases['sources']}: {listed}"] if listed else []


def _put(template: str, **slots: str) -> str:
    for name, text in slots.items():
        template = template.replace(f"{{{name}}}", text)
    return template


def _heading(text: str) -> str:
    text = text.lstrip("# ")
    if len(text) > _LONGEST_HEADING:
        text = text[:_LONGEST_HEADING].rpartition(" ")[0] or text[:_LONGEST_HEADING]
    # Trailing `#` would close the heading.
    return re.sub(r"\s#+$", "", text).strip()


def _host(domain: str) -> str:
    domain = domain.lower().removeprefix("*").removeprefix("www.")
    if domain.startswith(".") or "." not in domain:
        # A list may trust a whole ending, like `.gov`.
        domain = f"example.{domain.removeprefix('.')}"
    return f"www.{domain}"


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60] or "article"


def _polished(brief: Brief, seed: str) -> str:
    """The article to polish, with enough terms near its link; where it has them, as it is."""
    text = _Text.parse(brief.markdown)
    place = next(text.places(brief), None)
    if place is None or not brief.terms:
        return brief.markdown
    section, n = place
    before, sentence, after = _around(section.paragraphs[n], brief.url)
    found = _count_terms([*before[-2:], sentence, *after[:2]], brief)
    if found >= min(_LEAST_TERMS, len(brief.terms)):
        return brief.markdown
    writer = _Writer(brief, seed)
    first, second = writer.neighbours(writer.near_terms())
    section.paragraphs[n] = " ".join([*before, *first, sentence, *second, *after])
    return text.render()


def _count_terms(sentences: Sequence[str], brief: Brief) -> int:
    near = " ".join(sentences).casefold()
    return sum(_marked(term).casefold() in near for term in brief.terms)


def _few_terms(brief: Brief) -> int:
    """How many terms are too few."""
    return max(0, min(_FEW_TERMS, len(brief.terms) - 1))


def _around(paragraph: str, *urls: str) -> tuple[list[str], str, list[str]]:
    """The sentences before the one that links to a URL, that one, and those after it."""
    sentences = _sentences(paragraph)
    at = next(
        n
        for n, one in enumerate(sentences)
        if any(_url(link) in urls for link in _LINK.finditer(one))
    )
    return sentences[:at], sentences[at], sentences[at + 1 :]


# Flaws. Each takes an article in parts and gives it back with one thing wrong.


def _other_language(text: _Text, brief: Brief, seed: str) -> _Text:
    other = _OTHER[brief.language]
    if _guessed(text.render()) == other:
        return text
    plan = tuple(Plan(_unmarked(one.heading)) for one in text.sections if one.heading)
    return _Writer(replace(brief, plan=plan), seed, other).article()


def _few(text: _Text, brief: Brief, seed: str) -> _Text:
    place = next(text.places(brief), None)
    if place is None:
        return text
    section, n = place
    before, sentence, after = _around(section.paragraphs[n], brief.url)
    if _count_terms([*before[-2:], *after[:2]], brief) > _few_terms(brief):
        before, after = _Writer(brief, seed, _guessed(text.render())).few_terms()
        section.paragraphs[n] = " ".join([*before, sentence, *after])
    return text


def _thrice(text: _Text, brief: Brief, seed: str) -> _Text:
    missing = 3 - text.count(brief)
    place = next(text.places(brief), None)
    if place and missing > 0:
        section, n = place
        writer = _Writer(brief, seed, _guessed(text.render()))
        more = [writer.link_sentence("again") for _ in range(missing)]
        section.paragraphs.insert(n + 1, " ".join(more))
    return text


def _wrong_target(text: _Text, brief: Brief, seed: str) -> _Text:
    def change(part: str) -> str:
        for found in reversed(_links(part, brief)):
            part = f"{part[: found.start()]}[{found[1]}]({_OTHER_URL}){part[found.end() :]}"
        return part

    return text.map(change)


def _in_heading(text: _Text, brief: Brief, seed: str) -> _Text:
    for found in text.sections:
        if _LINK.search(found.heading):
            return text
    for section in text.sections:
        for n, paragraph in enumerate(section.paragraphs):
            links = [one for one in _LINK.finditer(paragraph) if _is_job(one, brief)]
            if not links or not section.heading:
                continue
            link = links[0]
            before, sentence, after = _around(paragraph, brief.url, _OTHER_URL)
            others = [*before, *after]
            # The sentences with most terms come first: the heading has terms near it too. What was
            # linked comes third, where a person or a repair may link it again.
            others.sort(key=lambda one: -sum(_marked(term) in one for term in brief.terms))
            others.insert(2, sentence.replace(link[0], link[1]))
            del section.paragraphs[n]
            section.paragraphs.insert(0, " ".join(others))
            section.heading = f"{section.heading}: {link[0]}"
            return text
    return text


def _is_job(link: re.Match[str], brief: Brief) -> bool:
    return _url(link) in (brief.url, _OTHER_URL)


def _without_link(text: _Text, brief: Brief, seed: str) -> _Text:
    return text.map(lambda part: _unlinked(part, lambda link: _is_job(link, brief)))


def _without_sources(text: _Text, brief: Brief, seed: str) -> _Text:
    labels = tuple(f"{phrases['sources']}:" for phrases in _phrases().values())

    def change(part: str) -> str:
        if part.startswith(labels):
            return ""
        return _unlinked(part, lambda link: not _is_job(link, brief))

    return text.map(change)


def _unlinked(part: str, is_meant: Callable[[re.Match[str]], bool]) -> str:
    return _LINK.sub(lambda link: link[1] if is_meant(link) else link[0], part)


def _without_disclaimer(text: _Text, brief: Brief, seed: str) -> _Text:
    markdown = text.render()
    for required in brief.required_texts:
        markdown = markdown.replace(required, "")
    return _Text.parse(markdown)


def _short(text: _Text, brief: Brief, seed: str) -> _Text:
    goal = int(brief.min_words * _SHORT)
    kept = "\n".join(brief.required_texts)
    parts = [
        (section, n, _sentences(paragraph))
        for section in text.sections
        for n, paragraph in enumerate(section.paragraphs)
        if not _LINK.search(paragraph) and paragraph not in kept
    ]
    surplus = _words(text.render().replace("#", " ")) - goal
    # One sentence from each paragraph in turn, so that all of them grow shorter alike.
    turns = zip_longest(*(list(reversed(sentences[1:])) for _, _, sentences in parts))
    for turn in turns:
        for (section, n, sentences), sentence in zip(parts, turn, strict=True):
            if surplus > 0 and sentence is not None:
                sentences.pop()
                section.paragraphs[n] = " ".join(sentences)
                surplus -= _words(sentence)
    for section, n, sentences in reversed(parts):
        if surplus > 0 and n > 0:
            del section.paragraphs[n]
            surplus -= _words(" ".join(sentences))
    return text


# In this order, whatever the order of the rules: a text in another language is a new one.
_FLAWS: dict[str, Callable[[_Text, Brief, str], _Text]] = {
    "article_other_language": _other_language,
    "article_few_terms": _few,
    "article_link_thrice": _thrice,
    "article_wrong_target": _wrong_target,
    "article_link_in_heading": _in_heading,
    "article_no_link": _without_link,
    "article_no_sources": _without_sources,
    "article_no_disclaimer": _without_disclaimer,
    "article_short": _short,
}

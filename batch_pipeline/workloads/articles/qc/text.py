"""An article taken apart: its blocks, links, sentences and words, with their places in the text.

What belongs here: reading Markdown (markdown-it-py does that) and language rules of sentences and
stems. What does not: what an article must be (checks.py), changing it (autofix.py).

All places are offsets in `ParsedArticle.markdown`, so that a repair can cut and insert there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import snowballstemmer
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, autolink, html_inline, image, link
from markdown_it.token import Token

from batch_pipeline.workloads.articles.package import Language

HIDDEN = "\0"
"""Stands in `ParsedArticle.shown` for each character that a reader of the article does not see."""

BlockKind = Literal["heading", "paragraph", "nested"]

_CLOSING = rf"\"'”’»)\]*_{HIDDEN}"
_END = re.compile(rf"(?P<mark>[.!?…]+)[{_CLOSING}]*(?=\s|$)")
_LAST_WORD = re.compile(r"[^\s\"'“”‘’«»()\[\]*_]+$")
_DOTTED = re.compile(r"(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,3}")
_OPENING = "\"'“‘«([*_" + HIDDEN
# A full stop behind these ends no sentence, in Swedish and English.
_ABBREVIATIONS_TEXT = """
    bl ca cirka d dr dvs el ex exkl f fig fr g hr inkl jfr jr kap kl kr max min mr mrs ms ndr nr
    prof s sid sk st t tel tex tfn to ung u vs vol no nos dept approx est ed al gen col capt sen rep
    gov inc corp co ltd jan feb febr apr aug sept sep okt oct nov dec
"""
_ABBREVIATIONS = frozenset(_ABBREVIATIONS_TEXT.split())
# A full stop behind these may end one: it does where a capital follows.
_ENDING_ABBREVIATIONS_TEXT = "etc osv mm mfl m.m m.fl o.s.v a.m p.m e.d o.d u.s f.kr e.kr"
_ENDING_ABBREVIATIONS = frozenset(_ENDING_ABBREVIATIONS_TEXT.split())
_URL = re.compile(rf"https?://[^\s<>()\[\]\"'{HIDDEN}]+", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_SHORTEST_STEM = 4
_STEMMERS: dict[Language, str] = {"sv": "swedish", "en": "english"}
_SWEDISH_ARTICLE = re.compile(r"(?<=[aeiouyåäölr])[nt]$")


@dataclass(frozen=True)
class Block:
    """A heading, a paragraph, or a paragraph inside of a list or a quotation (`nested`).

    Attributes:
        level: of a heading, 1 to 6; 0 for others.
        section: 0 before the first H1 or H2, then one more with each of them.
        start: where its text begins.
        end: behind its last character.
        text: what a reader sees of it, as one line.
    """

    kind: BlockKind
    level: int
    section: int
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Link:
    """A Markdown link.

    Attributes:
        text: what a reader sees of it, as one line.
        url: where it leads, as markdown-it writes it (`normal_url`).
        start: where the link begins (its bracket).
        end: behind the link.
        label: its text as it is written.
        block: the place of its block in `ParsedArticle.blocks`.
        in_heading: the level of the heading that it stands in; 0 where it is in none.
    """

    text: str
    url: str
    start: int
    end: int
    label: str
    block: int
    in_heading: int


@dataclass(frozen=True)
class Sentence:
    """A sentence of the running text; headings are none."""

    start: int
    end: int
    block: int
    text: str


@dataclass(frozen=True)
class ParsedArticle:
    """An article taken apart.

    Attributes:
        markdown: its text, with plain line ends.
        shown: as long as `markdown`; `HIDDEN` stands for what a reader does not see.
        bare_urls: addresses in the text or in HTML that are no Markdown links.
        words: how many a reader sees; addresses are none.
    """

    markdown: str
    shown: str
    blocks: tuple[Block, ...]
    links: tuple[Link, ...]
    sentences: tuple[Sentence, ...]
    bare_urls: tuple[str, ...]
    words: int

    @property
    def body(self) -> list[Block]:
        """All blocks but the headings."""
        return [block for block in self.blocks if block.kind != "heading"]

    @property
    def body_text(self) -> str:
        """The running text, a line for each block."""
        return "\n".join(block.text for block in self.body)


@lru_cache(maxsize=16)
def parse(markdown: str) -> ParsedArticle:
    """Take an article apart; the last few are kept, checks and repair ask for the same ones."""
    text = (
        markdown.replace("\r\n", "\n")
        .replace("\r", "\n")
        .replace(HIDDEN, "\N{REPLACEMENT CHARACTER}")
    )
    reader = _Reader(text)
    return reader.read()


def normal_url(url: str) -> str:
    """An address as `Link.url` has it; `https://example.com` and `.../` are the same."""
    normal = _MARKDOWN.normalizeLink(url.strip())
    return re.sub(r"^(https?)://([^/?#]+)/?$", _bare_host, normal, flags=re.IGNORECASE)


def one_line(text: str) -> str:
    """What a reader sees of a piece of `shown`, as one line."""
    return " ".join(text.replace(HIDDEN, "").split())


def stems(text: str, language: Language) -> list[str]:
    """The words of a text, each as its stem: `räntorna` and `räntor` are the same.

    Snowball takes one Swedish ending, and leaves the article of `kontot` and `cykeln`. Both go,
    until nothing does: so `kontantinsatsen` meets `kontantinsats` on its way.
    """
    # A stemmer holds the word that it works on: one for each call, threads share none.
    stemmer = snowballstemmer.stemmer(_STEMMERS[language])
    found: list[str] = stemmer.stemWords(_WORD.findall(text.casefold()))
    before: list[str] = []
    while language == "sv" and found != before:
        before = found
        found = [_SWEDISH_ARTICLE.sub("", s) if len(s) > _SHORTEST_STEM else s for s in found]
        found = stemmer.stemWords(found)
    return found


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a paragraph stand in it."""
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        if _ends_sentence(text, match):
            spans.append((start, match.end()))
            start = match.end()
    spans.append((start, len(text)))
    stripped = [
        (begin + len(text[begin:end]) - len(text[begin:end].lstrip()), end) for begin, end in spans
    ]
    return [(begin, end) for begin, end in stripped if one_line(text[begin:end])]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    following = text[match.end() : match.end() + 40].lstrip().lstrip(_OPENING)[:1]
    if following.islower():
        return False
    if match["mark"] != ".":
        return True
    found = _LAST_WORD.search(text[max(0, match.start() - 60) : match.start()].replace(HIDDEN, ""))
    word = found[0].casefold() if found else ""
    if word in _ENDING_ABBREVIATIONS:
        return following.isupper() or not following
    # "Kl. 12", "3. kvartalet", "J. Andersson", "t.ex. Skatteverket"
    return not following or not (
        word in _ABBREVIATIONS
        or (len(word) == 1 and word.isalpha())
        or (len(word) <= 2 and word.isdigit() and not following.isupper())
        or _DOTTED.fullmatch(word)
    )


def _bare_host(match: re.Match[str]) -> str:
    return f"{match[1].lower()}://{match[2].lower()}/"


_Rule = Callable[[StateInline, bool], bool]


def _tracked(rule: _Rule, opens: str) -> _Rule:
    """The rule, which also writes into its token where in the source it stands."""

    def run(state: StateInline, silent: bool) -> bool:
        start, before = state.pos, len(state.tokens)
        if not rule(state, silent):
            return False
        if not silent:
            token = next(one for one in state.tokens[before:] if one.type == opens)
            token.meta["span"] = (start, state.pos)
        return True

    return run


def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark")
    for name, rule, opens in (
        ("link", link, "link_open"),
        ("autolink", autolink, "link_open"),
        ("image", image, "image"),
        ("html_inline", html_inline, "html_inline"),
    ):
        parser.inline.ruler.at(name, _tracked(rule, opens))
    return parser


_MARKDOWN = _markdown()


@dataclass
class _Reader:
    """Reads one article; markdown-it says what is what, and this where it stands."""

    text: str
    shown: list[str] = field(init=False)
    blocks: list[Block] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    bare_urls: list[str] = field(default_factory=list)
    section: int = 0

    def __post_init__(self) -> None:
        self.shown = [HIDDEN] * len(self.text)

    def read(self) -> ParsedArticle:
        lines = self.text.split("\n")
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line) + 1)
        heading = 0
        for token in _MARKDOWN.parse(self.text):
            if token.type == "heading_open":
                heading = int(token.tag[1:])
            elif token.type == "heading_close":
                heading = 0
            elif token.type == "html_block":
                self.bare_urls += _urls(token.content)
            elif token.type == "inline" and token.map is not None:
                self._inline(token, heading, lines, starts)
        shown = "".join(self.shown)
        sentences = self._sentences(shown)
        visible = (_URL.sub(" ", one_line(shown[one.start : one.end])) for one in self.blocks)
        return ParsedArticle(
            markdown=self.text,
            shown=shown,
            blocks=tuple(self.blocks),
            links=tuple(self.links),
            sentences=tuple(sentences),
            bare_urls=tuple(self.bare_urls),
            words=sum(1 for text in visible for word in text.split() if _WORD.search(word)),
        )

    def _inline(self, token: Token, heading: int, lines: list[str], starts: list[int]) -> None:
        places = _places(token, lines, starts)
        if not places:
            return
        if heading in (1, 2):
            self.section += 1
        for character, place in zip(token.content, places, strict=True):
            self.shown[place] = " " if character == "\n" else character
        for child in token.children or []:
            if child.type == "html_inline":
                self.bare_urls += _urls(child.content)
            if child.type in ("image", "html_inline") and "span" in child.meta:
                self._hide(places, *child.meta["span"])
        links = self._block_links(token, places, heading)
        start, end = places[0], places[-1] + 1
        plain = self.shown[start:end]
        for one in links:
            plain[one.start - start : one.end - start] = " " * (one.end - one.start)
        self.bare_urls += _urls("".join(plain))
        self.links += links
        self.blocks.append(
            Block(
                kind="heading" if heading else "paragraph" if token.level == 1 else "nested",
                level=heading,
                section=self.section,
                start=start,
                end=end,
                text=one_line("".join(self.shown[start:end])),
            )
        )

    def _block_links(self, token: Token, places: list[int], heading: int) -> list[Link]:
        """The links of a block; what is no text of theirs is hidden."""
        found: list[Link] = []
        children = token.children or []
        for index, child in enumerate(children):
            if child.type != "link_open" or "span" not in child.meta:
                continue
            begin, end = child.meta["span"]
            if token.content[begin] == "<":
                inner = (begin + 1, end - 1)
            else:
                inner = (begin + 1, _label_end(token.content, begin, end))
            self._hide(places, begin, inner[0])
            self._hide(places, inner[1], end)
            text = ""
            for part in children[index + 1 :]:
                if part.type == "link_close":
                    break
                text += " " if part.type in ("softbreak", "hardbreak") else part.content
            found.append(
                Link(
                    text=" ".join(text.split()),
                    url=normal_url(str(child.attrs.get("href", ""))),
                    start=places[begin],
                    end=places[end - 1] + 1,
                    label=token.content[slice(*inner)],
                    block=len(self.blocks),
                    in_heading=heading,
                )
            )
        return found

    def _hide(self, places: list[int], begin: int, end: int) -> None:
        for place in places[begin:end]:
            self.shown[place] = HIDDEN

    def _sentences(self, shown: str) -> list[Sentence]:
        return [
            Sentence(
                start=block.start + begin,
                end=block.start + end,
                block=index,
                text=one_line(shown[block.start + begin : block.start + end]),
            )
            for index, block in enumerate(self.blocks)
            if block.kind != "heading"
            for begin, end in sentence_spans(shown[block.start : block.end])
        ]


def _urls(text: str) -> list[str]:
    return [url.rstrip(".,;:!?*_") for url in _URL.findall(text)]


def _label_end(content: str, begin: int, end: int) -> int:
    """Where the text of a link ends: markdown-it's own reading of brackets."""
    state = StateInline(content[:end], _MARKDOWN, {}, [])
    return int(_MARKDOWN.helpers.parseLinkLabel(state, begin, True))


def _places(token: Token, lines: list[str], starts: list[int]) -> list[int]:
    """For each character of a block's text, where it stands in the article.

    Empty where that cannot be told: a tab in front of a line that markdown-it took for spaces.
    """
    assert token.map is not None
    places: list[int] = []
    for number, line in enumerate(token.content.split("\n"), token.map[0]):
        column = lines[number].rfind(line) if number < len(lines) else -1
        if column < 0:
            return []
        if places:
            places.append(places[-1] + 1)
        places += range(starts[number] + column, starts[number] + column + len(line))
    return places

"""Profiles of publisher, target and link text, from their pages and by rules.

What belongs here: reading pages, and laying a model's answer over what the rules found. What does
not: fetching pages (fetch/), whether the parts fit together (alignment.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from html import unescape
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from batch_pipeline.ledger.pages import Page
from batch_pipeline.search.intents import Intent, intent_of
from batch_pipeline.workloads.articles.models import AnchorClass, PublisherTone, TargetTopics
from batch_pipeline.workloads.articles.package import (
    AnchorProfile,
    AnchorType,
    Language,
    PublisherProfile,
    TargetProfile,
    Tone,
)
from batch_pipeline.workloads.articles.phrases import (
    Phrases,
    Stems,
    cut,
    furniture,
    language_of,
    read_words,
    unique,
    words_of,
)

MIN_TARGET_CHARS = 200
"""A page with less text has nothing to write about: a login, an error, a cookie wall."""

_EXCERPT_CHARS, _ABOUT_CHARS, _OFFER_CHARS = 500, 300, 200
_HEADING_CHARS = 100
_NAMES, _TOPICS, _HEADINGS, _QUERIES = 10, 10, 10, 5
_UNTITLED = frozenset(("", "untitled", "untitled document", "namnlös", "namnlöst dokument"))
_SEPARATOR = re.compile(r"\s+[-–—|•·✩»:]+\s+|\s*[|»]\s*")
_SITE = re.compile(r"^(?:https?://)?(?:www\.)?", re.IGNORECASE)
_NUMBERED = re.compile(r"^(?:\d+[.):]|#\d+)\s+")
_OFTEN_SELLING = 2

_TERM_WORDS = 5
_SENTENCE = re.compile(r"[.!?:;,]\s")

_Answer = TypeVar("_Answer", bound=BaseModel)


class ToneWords(BaseModel):
    """What tells one tone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    domains: tuple[str, ...]
    words: tuple[str, ...]


class Roles(BaseModel):
    """words/roles.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tones: dict[Tone, ToneWords]
    default_tone: Tone
    commerciality: dict[Tone, Literal["low", "medium", "high"]]
    selling: tuple[str, ...]
    reader_intents: dict[Tone, tuple[Intent, ...]]
    shop_intents: tuple[Intent, ...]
    sensitive: dict[str, tuple[str, ...]]
    generic_anchors: frozenset[str]
    countryless: frozenset[str]
    swedish: frozenset[str]


@cache
def roles() -> Roles:
    """What kinds of sites, pages and link texts are told by."""
    return Roles.model_validate(read_words("roles.yaml"))


def article_language(domain: str, country: str) -> Language:
    """The language of readers, where no page tells it: by the domain's country, else the job's."""
    known = roles()
    ending = domain.rpartition(".")[2]
    if len(ending) == 2 and ending not in known.countryless:
        country = ending
    return "sv" if country in known.swedish else "en"


@dataclass(frozen=True, slots=True)
class _Content:
    """A page; equal to any other one that says the same, whenever it was fetched."""

    said: tuple[str | int | None, ...]
    page: Page = field(compare=False)

    @classmethod
    def of(cls, page: Page) -> _Content:
        said = (page.url, page.final_url, page.status, page.title, page.text, page.error)
        return cls((*said, page.facts.model_dump_json()), page)


def profile_publisher(domain: str, pages: Sequence[Page], country: str) -> PublisherProfile:
    """What a publisher is like; many jobs have the same one, so the last few are kept.

    Args:
        domain: such as example.com.
        pages: its pages, the home page first; those with an error count for nothing.
        country: of the job, for a publisher of which no page could be read.
    """
    return _profile_publisher(domain, tuple(map(_Content.of, pages)), country)


@lru_cache(maxsize=64)
def _profile_publisher(
    domain: str, contents: tuple[_Content, ...], country: str
) -> PublisherProfile:
    pages = [content.page for content in contents]
    usable = [page for page in pages if not page.error and (page.text or page.title)]
    if not usable:
        why = next((f" ({page.error})" for page in pages if page.error), "")
        tone = _tone(domain, "")
        return PublisherProfile(
            domain=domain,
            sample_urls=[],
            about_excerpt="",
            detected_language=article_language(domain, country),
            topic_focus=[],
            tone_class=tone,
            allowed_commerciality=roles().commerciality[tone],
            brand_safety_notes=cut(
                f"No page of {domain} could be read{why}: language and tone are guessed from its "
                "domain and the country of the job.",
                600,
            ),
        )
    home = usable[0]
    said = " ".join(
        " ".join((page.title, page.facts.site_name, page.facts.description, *page.facts.headings))
        for page in usable
    )
    text = "\n".join(page.text for page in usable)
    read = language_of(text or said, home.facts.language)
    language: Language = "sv" if read == "sv" else "en"
    phrases = Phrases(home.title, text, _subheadings(home, all_of_them=True), read or language)
    names = phrases.names(_NAMES)
    focus = unique((*phrases.topics(_TOPICS), *names), _TOPICS, read)
    tone = _tone(domain, said)
    sells = len(_found(roles().selling, f"{said} {text[:5_000]}")) >= _OFTEN_SELLING
    commerciality = roles().commerciality[tone]
    if sells and tone in ("hobby_blog", "consumer_magazine"):
        commerciality = "high"
    return PublisherProfile(
        domain=domain,
        sample_urls=[page.final_url for page in usable][:3],
        about_excerpt=cut(home.facts.description or text or home.title, _ABOUT_CHARS),
        detected_language=language,
        topic_focus=focus,
        tone_class=tone,
        allowed_commerciality=commerciality,
        brand_safety_notes=_safety(said, read),
    )


def target_problem(page: Page) -> str:
    """Why no article can be written about a page, with the next step; empty for a usable one."""
    fetch = "Check the address in a browser, then retry the job, or give another target."
    if page.error:
        return f"The target {page.url} cannot be read: {page.error}"
    if page.status >= 400:
        return f"The target {page.url} answers with HTTP status {page.status}. {fetch}"
    if len(page.text.strip()) < MIN_TARGET_CHARS:
        return (
            f"The target {page.url} has {len(page.text.strip())} characters of text, and at least "
            f"{MIN_TARGET_CHARS} are needed to know what it is about. {fetch}"
        )
    if not _named(page.title) and not _named(page.facts.h1):
        return (
            f"The target {page.url} has no title. Give the page a title or a heading, or give "
            "another target."
        )
    return ""


def profile_target(url: str, page: Page) -> TargetProfile:
    """What a page is about; one that `target_problem` refuses has an empty profile.

    Many jobs have the same target, so the profiles of the last few are kept.
    """
    return _profile_target(url, _Content.of(page))


@lru_cache(maxsize=64)
def _profile_target(url: str, content: _Content) -> TargetProfile:
    page = content.page
    if target_problem(page):
        return TargetProfile(
            url=url,
            http_status=page.status,
            title="",
            meta_description="",
            h1="",
            h2_h3_sample=[],
            main_content_excerpt="",
            detected_language="",
            core_entities=[],
            core_topics=[],
            core_offer="",
            candidate_main_queries=[],
        )
    language = language_of(page.text, page.facts.language)
    # some sites escape what they say of themselves twice
    description = unescape(page.facts.description)
    title = subject_of(page)
    headings = _subheadings(page)
    phrases = Phrases(title, page.text, headings, language)
    entities = phrases.names(_NAMES)
    topics = phrases.topics(_TOPICS, without=entities)
    question = phrases.question()
    pairs = [topic.casefold() for topic in topics if " " in topic]
    asked = set(words_of(question))
    named = [
        f"{name} {topic}".casefold()
        for name in [one for one in entities if set(words_of(one.casefold())) <= asked][:1]
        for topic in topics[:2]
        if not set(phrases.stems.all_of(topic)) & set(phrases.stems.all_of(name))
    ]
    return TargetProfile(
        url=url,
        http_status=page.status,
        title=page.title if _named(page.title) else page.facts.h1,
        meta_description=cut(description, _EXCERPT_CHARS),
        h1=page.facts.h1,
        h2_h3_sample=headings[:_HEADINGS],
        main_content_excerpt=cut(_body(page, title), _EXCERPT_CHARS),
        detected_language=language,
        core_entities=entities,
        core_topics=topics,
        core_offer=_offer((description, *page.text.splitlines()), title),
        candidate_main_queries=unique([question, *pairs[:2], *named, *pairs], _QUERIES, language),
    )


def profile_anchor(anchor: str, target: TargetProfile) -> AnchorProfile:
    """What kind of link text it is, and what a reader expects behind it."""
    kind = _anchor_type(anchor, target)
    entity = target.core_entities[0] if target.core_entities else ""
    said = intent_of(anchor, anchor if kind == "brand" else entity)
    # a text without any sign counts as information: the page behind it knows better
    hint: Intent = "mixed" if said == "info_primary" else said
    return AnchorProfile(
        proposed_text=anchor, type_hint=kind, llm_classified_type=kind, llm_intent_hint=hint
    )


def publisher_with_llm(
    profile: PublisherProfile, answer: Mapping[str, Any] | None
) -> PublisherProfile:
    """A profile with a model's PublisherTone; as it is where there is none, or an unusable one."""
    found = _usable(PublisherTone, answer)
    if found is None:
        return profile
    given = (*_terms(found.topic_focus), *profile.topic_focus)
    focus = unique(given, _TOPICS, profile.detected_language)
    commerciality = roles().commerciality[found.tone_class]
    if profile.allowed_commerciality == "high" and commerciality != "low":
        commerciality = "high"
    return profile.model_copy(
        update={
            "tone_class": found.tone_class,
            "topic_focus": focus,
            "allowed_commerciality": commerciality,
        }
    )


def target_with_llm(profile: TargetProfile, answer: Mapping[str, Any] | None) -> TargetProfile:
    """A profile with a model's TargetTopics; as it is where there is none, or an unusable one."""
    found = _usable(TargetTopics, answer)
    if found is None:
        return profile
    language = profile.detected_language
    return profile.model_copy(
        update={
            "core_entities": unique(
                (*_terms(found.core_entities), *profile.core_entities), _NAMES, language
            ),
            "core_topics": unique(
                (*_terms(found.core_topics), *profile.core_topics), _TOPICS, language
            ),
        }
    )


def anchor_with_llm(profile: AnchorProfile, answer: Mapping[str, Any] | None) -> AnchorProfile:
    """A profile with a model's AnchorClass; as it is where there is none, or an unusable one."""
    found = _usable(AnchorClass, answer)
    if found is None:
        return profile
    return profile.model_copy(
        update={"llm_classified_type": found.anchor_type, "llm_intent_hint": found.intent}
    )


def _terms(given: Iterable[str]) -> list[str]:
    """What a model named, without sentences and pieces of them: terms must fit into a sentence."""
    return [
        term for term in given if len(term.split()) <= _TERM_WORDS and not _SENTENCE.search(term)
    ]


def subject_of(page: Page) -> str:
    """A page's title without the name of its site."""
    title = page.title if _named(page.title) else page.facts.h1
    h1 = page.facts.h1
    site = _site_names(page)
    # the heading is the title without the site, unless it is the site's own name
    if _named(h1) and _squeezed(h1) in _squeezed(title) and _squeezed(h1) not in site:
        return h1
    parts = [part for part in _SEPARATOR.split(title) if part and part.strip()]
    kept = [part for part in parts if _squeezed(part) not in site]
    first = title.partition(": ")
    if first[2] and _squeezed(first[0]) in site | {_squeezed(h1)}:
        return first[2].strip()
    if not kept or len(kept) == len(parts):
        return title
    end = title.rfind(kept[-1]) + len(kept[-1])
    return title[title.find(kept[0]) : end].strip()


def _site_names(page: Page) -> set[str]:
    host = (urlsplit(page.final_url).hostname or "").removeprefix("www.")
    labels = [host, *host.split(".")]
    return {_squeezed(name) for name in (page.facts.site_name, *labels) if len(name) > 2}


def _squeezed(text: str) -> str:
    return "".join(words_of(text)).casefold()


def _named(title: str) -> bool:
    return " ".join(words_of(title)).casefold() not in _UNTITLED


def _subheadings(page: Page, *, all_of_them: bool = False) -> list[str]:
    """A page's own headings: those of its text, or all that are no mere furniture of a site."""
    lines = {_squeezed(line) for line in page.text.splitlines()}
    return [
        cut(_NUMBERED.sub("", heading), _HEADING_CHARS)
        for heading in page.facts.headings
        if words_of(heading)
        and not furniture(heading)
        and (all_of_them or _squeezed(heading) in lines)
    ]


def _body(page: Page, title: str) -> str:
    """A page's text without its title at the beginning."""
    first, _, rest = page.text.partition("\n")
    return rest if _squeezed(first) in (_squeezed(title), _squeezed(page.title)) else page.text


def _offer(texts: Iterable[str], title: str) -> str:
    """What a page offers, in a sentence: the first that says more than its title."""
    for text in texts:
        sentence = re.match(r".{40,}?[.!?](?=\s|$)", text, re.DOTALL)
        offer = sentence.group() if sentence else text
        if len(offer) >= 40 and _squeezed(offer) != _squeezed(title):
            return cut(offer, _OFFER_CHARS)
    return cut(title, _OFFER_CHARS)


def _anchor_type(anchor: str, target: TargetProfile) -> AnchorType:
    language = target.detected_language
    plain = " ".join(words_of(anchor)).casefold()
    if plain in roles().generic_anchors:
        return "generic"
    host = (urlsplit(target.url).hostname or "").removeprefix("www.")
    squeezed = _squeezed(_SITE.sub("", anchor))
    brands = {_squeezed(host), _squeezed(host.rpartition(".")[0])}
    brands |= {_squeezed(_SITE.sub("", url)) for url in (target.url, unquote(target.url))}
    brands |= {_squeezed(part) for part in host.split(".")[:-1] if len(part) > 2}
    brands |= {_squeezed(entity) for entity in target.core_entities}
    if not squeezed or squeezed in brands:
        return "brand"
    stems = Stems(language)
    subjects = (*target.candidate_main_queries, *target.core_topics, target.h1, target.title)
    if sorted(stems.all_of(anchor)) in [sorted(stems.all_of(subject)) for subject in subjects]:
        return "exact"
    return "partial"


def _tone(domain: str, said: str) -> Tone:
    known = roles()
    for tone, telling in known.tones.items():
        if any(domain == one or domain.endswith(f".{one}") for one in telling.domains):
            return tone
    text = f"{domain.replace('.', ' ').replace('-', ' ')} {said}"
    counts = {tone: len(_found(telling.words, text)) for tone, telling in known.tones.items()}
    best = max(counts, key=lambda tone: counts[tone])
    # one word may stand there by chance
    return best if counts[best] >= 2 and best != known.default_tone else known.default_tone


def _found(words: Iterable[str], text: str) -> set[str]:
    """Those of `words` that a text has."""
    plain = f" {' '.join(words_of(text)).casefold()} "
    return {
        word
        for word in words
        if (f" {word.removesuffix('*')}" if word.endswith("*") else f" {word} ") in plain
    }


def _safety(said: str, language: str) -> str:
    notes = [
        f"The site writes about {subject} ({', '.join(sorted(found))})."
        for subject, words in roles().sensitive.items()
        if (found := _found(words, said))
    ]
    if language not in ("sv", "en", ""):
        notes.append(
            f"The site's language is '{language}'; articles are written in Swedish or English."
        )
    return " ".join(notes)


def _usable(model: type[_Answer], answer: Mapping[str, Any] | None) -> _Answer | None:
    if not answer:
        return None
    try:
        return model.model_validate(answer)
    except ValidationError:
        return None

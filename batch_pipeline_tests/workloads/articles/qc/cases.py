"""The table of articles and what quality control must say of them: each rule around its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from batch_pipeline.workloads.articles.models import Article
from batch_pipeline.workloads.articles.package import JobPackage
from batch_pipeline.workloads.articles.qc.report import Category, Severity, Status
from batch_pipeline.workloads.articles.qc.rules import QcRules
from batch_pipeline_tests.workloads.articles.qc.samples import (
    ANCHOR,
    TARGET,
    TERMS,
    article,
    package,
    rules,
    short,
    with_policies,
)

T = TERMS["sv"]
TAX = "https://www.skatteverket.se/villa"
CASINO = "https://nordcasino.example/bonus"
GAMBLING_TEXT = "Spela ansvarsfullt. 18+. Stödlinjen.se"
FINANCE_TEXT = "Finansiella tjänster innebär risker. Sök alltid rådgivning."
HEALTH_TEXT = "Detta är inte medicinsk rådgivning. Kontakta läkare vid symtom."
LEGAL_TEXT = "Detta är generell information, inte juridisk rådgivning."


@dataclass(frozen=True)
class Case:
    """An article, its job, and what must be found: categories with severities, and the verdict."""

    name: str
    expected: tuple[tuple[Category, Severity], ...] = ()
    status: Status = "PASS"
    article: Article = field(default_factory=article)
    package: JobPackage = field(default_factory=package)
    rules: QcRules = field(default_factory=rules)


def _linked(anchor: str, target: str = TARGET) -> Article:
    return article(link=f"[{anchor}]({target})")


def _casino(text: str = "") -> Article:
    return article(link=f"[{ANCHOR}]({CASINO})", end=text)


def _english_of(words: int) -> Article:
    linked = f"The [{ANCHOR}]({TARGET}) with [one]({TAX}) and [two](https://dn.se/a)"
    rest = (_ENGLISH * 8).split()[: words - 6 - 2]
    return short(f"One.\n\n{linked} {' '.join(rest)}\n\nThree.")


_ENGLISH = "In the spring more people show their homes on Sundays. "

CASES = [
    Case("nothing is wrong"),
    # terms near the link
    Case("no term near the link", (("lsi", "MEDIUM"),), "WARNING", article(near=0)),
    Case("one term too few", (("lsi", "MEDIUM"),), "WARNING", article(near=5)),
    Case("just enough terms", article=article(near=6)),
    Case("one term more than needed", article=article(near=7)),
    Case(
        "of four terms one is missing",
        (("lsi", "MEDIUM"),),
        "WARNING",
        article(near=3),
        package(terms=T[:4]),
    ),
    Case("all of four terms are there", article=article(near=4), package=package(terms=T[:4])),
    Case("a job without terms needs none", article=article(near=0), package=package(terms=[])),
    Case("ten occurrences", article=article(near=[*T[:6], *T[:4]])),
    Case(
        "eleven occurrences",
        (("lsi", "MEDIUM"),),
        "WARNING",
        article(near=[*T[:6], *T[:5]]),
    ),
    Case(
        "the sixth term stands three sentences away",
        (("lsi", "MEDIUM"),),
        "WARNING",
        article(near=5, far=[T[5]]),
    ),
    Case(
        "inflected and capital forms are the same term",
        article=article(
            near=["Räntorna", "AMORTERINGAR", "kontantinsatsen", "lånelöftet", *T[4:6]]
        ),
    ),
    Case(
        "a word that only begins like a term is none",
        (("lsi", "MEDIUM"),),
        "WARNING",
        article(near=["ränteläget", *T[1:6]]),
    ),
    Case(
        "an English term is found in its plural",
        article=article(
            language="en", near=["interest rates", "repayments", "Deposits", *TERMS["en"][3:6]]
        ),
        package=package(language="en"),
    ),
    # sources
    Case("no source", (("trust_sources", "CRITICAL"),), "BLOCKED", article(sources=[])),
    Case(
        "one source of tier 1 and none besides",
        (("trust_sources", "HIGH"),),
        "BLOCKED",
        article(sources=[TAX]),
    ),
    Case(
        "one source of tier 2 and none besides",
        (("trust_sources", "HIGH"),),
        "BLOCKED",
        article(sources=["https://www.dn.se/a"]),
    ),
    Case(
        "two sources, none of tier 1",
        (("trust_sources", "HIGH"),),
        "BLOCKED",
        article(sources=["https://www.dn.se/a", "https://www.svd.se/b"]),
    ),
    Case("one source of each tier", article=article(sources=[TAX, "https://dn.se/a"])),
    Case(
        "two sources of tier 1",
        article=article(sources=[TAX, "https://www.riksbanken.se/ranta"]),
    ),
    Case(
        "the same site twice is one source",
        (("trust_sources", "HIGH"),),
        "BLOCKED",
        article(sources=[TAX, "http://skatteverket.se/annat"]),
    ),
    Case(
        "subdomains count, http counts",
        article=article(sources=["http://data.census.gov/a", "https://sv.wikipedia.org/wiki/Hus"]),
    ),
    Case(
        "a domain that only begins like a source is none",
        (("trust_sources", "CRITICAL"),),
        "BLOCKED",
        article(sources=["https://skatteverket.se.example.com/", "https://www.dn.se.example/"]),
    ),
    Case(
        "a domain that only ends like a source is none",
        (("trust_sources", "CRITICAL"),),
        "BLOCKED",
        article(sources=["https://inteskatteverket.se/", "https://xgov/"]),
    ),
    Case(
        "the name of a source in a path is none",
        (("trust_sources", "CRITICAL"),),
        "BLOCKED",
        article(sources=["https://example.com/skatteverket.se/www.irs.gov"]),
    ),
    Case(
        "bare addresses count",
        article=article(sources=[], end=f"Mer: {TAX}, https://www.dn.se/ekonomi."),
    ),
    Case(
        "the English list holds for English articles",
        article=article(language="en"),
        package=package(language="en"),
    ),
    Case(
        "the English list does not hold for Swedish articles",
        (("trust_sources", "CRITICAL"),),
        "BLOCKED",
        article(sources=["https://www.who.int/a", "https://www.reuters.com/b"]),
    ),
    Case(
        "the target's own site is no source",
        (("trust_sources", "HIGH"),),
        "BLOCKED",
        article(
            link=f"[{ANCHOR}](https://www.dn.se/bostad)",
            sources=[TAX, "https://www.dn.se/ekonomi"],
        ),
        package(target="https://www.dn.se/bostad"),
    ),
    # anchor
    Case(
        "the single word bästa",
        (("anchor", "CRITICAL"),),
        "BLOCKED",
        _linked("Bästa"),
        package(anchor="Bästa"),
    ),
    Case(
        "the single word best",
        (("anchor", "CRITICAL"),),
        "BLOCKED",
        _linked("best"),
        package(anchor="best"),
    ),
    Case(
        "bästa among other words",
        article=_linked("bästa området"),
        package=package(anchor="bästa området"),
    ),
    Case("beställ is not best", article=_linked("Beställ"), package=package(anchor="Beställ")),
    Case(
        "an exact match with köp",
        (("anchor", "CRITICAL"),),
        "BLOCKED",
        _linked("köp hus"),
        package(anchor="köp hus", anchor_type="exact"),
    ),
    Case(
        "an exact match with billiga",
        (("anchor", "CRITICAL"),),
        "BLOCKED",
        _linked("billiga hus"),
        package(anchor="billiga hus", anchor_type="exact"),
    ),
    Case(
        "an exact match with free",
        (("anchor", "CRITICAL"),),
        "BLOCKED",
        _linked("free guide"),
        package(anchor="free guide", anchor_type="exact"),
    ),
    Case(
        "Köpenhamn buys nothing",
        article=_linked("hus i Köpenhamn"),
        package=package(anchor="hus i Köpenhamn", anchor_type="exact"),
    ),
    Case(
        "an exact match without such a word",
        article=_linked("hus till salu"),
        package=package(anchor="hus till salu", anchor_type="exact"),
    ),
    Case(
        "gratis in a brand",
        article=_linked("Gratis Hus"),
        package=package(anchor="Gratis Hus", anchor_type="brand"),
    ),
    Case(
        "a partial match with köp is noted",
        (("anchor", "LOW"),),
        "PASS",
        _linked("köp hus"),
        package(anchor="köp hus", anchor_type="partial"),
    ),
    # placement
    Case(
        "the link in H1 and in the middle",
        (("placement", "MEDIUM"),),
        "WARNING",
        article(places=["h1", "middle"]),
    ),
    Case(
        "the link in H2 and in the middle",
        (("placement", "MEDIUM"),),
        "WARNING",
        article(places=["h2", "middle"]),
    ),
    Case(
        "the link only in H2: what follows it is near",
        (("placement", "MEDIUM"),),
        "WARNING",
        article(places=["h2"], near=[*T[:6]]),
        package(terms=[]),
    ),
    Case("the link in H3 and in the middle", article=article(places=["h3", "middle"])),
    Case(
        "the link before the first section",
        (("placement", "MEDIUM"),),
        "WARNING",
        article(places=["intro"]),
        package(terms=[]),
    ),
    Case(
        "the link in the last section",
        (("placement", "MEDIUM"),),
        "WARNING",
        article(places=["last"]),
        package(terms=[]),
    ),
    Case("one of two links is in the middle", article=article(places=["intro", "middle"])),
    Case(
        "without sections: the link in the second of three paragraphs",
        (("word_count", "HIGH"),),
        "BLOCKED",
        short(f"Ett ({TAX}).\n\nTvå [{ANCHOR}]({TARGET}).\n\nTre (https://dn.se/a)."),
        package(terms=[]),
    ),
    Case(
        "without sections: the link in the first of three paragraphs",
        (("word_count", "HIGH"), ("placement", "MEDIUM")),
        "BLOCKED",
        short(f"Ett [{ANCHOR}]({TARGET}).\n\nTvå ({TAX}).\n\nTre (https://dn.se/a)."),
        package(terms=[]),
    ),
    Case(
        "two paragraphs have no middle",
        (("word_count", "HIGH"), ("placement", "MEDIUM")),
        "BLOCKED",
        short(f"Ett [{ANCHOR}]({TARGET}).\n\nTvå ({TAX}, https://dn.se/a)."),
        package(terms=[]),
    ),
    # compliance
    Case(
        "gambling without its disclaimer",
        (("compliance", "CRITICAL"),),
        "BLOCKED",
        _casino(),
        package(target=CASINO),
    ),
    Case(
        "gambling with its disclaimer",
        article=_casino(GAMBLING_TEXT),
        package=package(target=CASINO),
    ),
    Case(
        "gambling with a disclaimer in other words",
        (("compliance", "CRITICAL"),),
        "BLOCKED",
        _casino("Spela ansvarsfullt! 18+. Stödlinjen.se"),
        package(target=CASINO),
    ),
    Case(
        "the disclaimer may stand in a longer paragraph, over two lines",
        article=_casino("Till sist: Spela ansvarsfullt.\n18+. Stödlinjen.se. Tack."),
        package=package(target=CASINO),
    ),
    Case(
        "the publisher's domain counts too",
        (("compliance", "CRITICAL"),),
        "BLOCKED",
        package=package(publisher="www.finansbladet.example"),
    ),
    Case(
        "finance with its disclaimer",
        article=article(end=FINANCE_TEXT),
        package=package(publisher="finansbladet.example"),
    ),
    Case(
        "health with its disclaimer",
        article=article(end=HEALTH_TEXT),
        package=package(publisher="halsa.example"),
    ),
    Case(
        "legal with its disclaimer",
        article=article(end=LEGAL_TEXT),
        package=package(publisher="juridik.example"),
    ),
    Case(
        "crypto without its disclaimer",
        (("compliance", "CRITICAL"),),
        "BLOCKED",
        package=package(publisher="kryptonytt.example"),
    ),
    Case(
        "two lines of business, one disclaimer",
        (("compliance", "CRITICAL"),),
        "BLOCKED",
        article(end=FINANCE_TEXT),
        package(publisher="halsa-finans.example"),
    ),
    Case(
        "a word that holds the name, as the origin had it",
        (("compliance", "CRITICAL"),),
        "BLOCKED",
        package=package(publisher="illegalitet.example"),
    ),
    Case("a word that is not meant", package=package(publisher="powerbank.example")),
    Case(
        "an English article needs the English text",
        (("compliance", "CRITICAL"),),
        "BLOCKED",
        article(language="en", end=LEGAL_TEXT),
        package(language="en", publisher="lawyers.example"),
    ),
    # intent
    Case("intent aligned", package=package(overall="aligned")),
    Case("intent partial", package=package(overall="partial")),
    Case("intent off", (("intent", "CRITICAL"),), "BLOCKED", package=package(overall="off")),
    # words
    Case("299 words", (("word_count", "HIGH"),), "BLOCKED", article(words=299)),
    Case("300 words", (("word_count", "MEDIUM"),), "WARNING", article(words=300)),
    Case("899 words", (("word_count", "MEDIUM"),), "WARNING", article(words=899)),
    Case("900 words", (("word_count", "LOW"),), "PASS", article(words=900)),
    Case("1199 words", (("word_count", "LOW"),), "PASS", article(words=1199)),
    Case("1200 words", article=article(words=1200)),
    Case("2500 words", article=article(words=2500)),
    Case("2501 words", (("word_count", "MEDIUM"),), "WARNING", article(words=2501)),
    Case(
        "599 words where the package asks for 600",
        (("word_count", "MEDIUM"),),
        "WARNING",
        article(words=599),
        package(min_words=600),
    ),
    Case(
        "600 words where the package asks for 600",
        (("word_count", "LOW"),),
        "PASS",
        article(words=600),
        package(min_words=600),
    ),
    # language
    Case(
        "an English article for a Swedish job",
        (("language", "HIGH"),),
        "BLOCKED",
        article(language="en", near=TERMS["sv"][:6], sources=[TAX, "https://dn.se/a"]),
    ),
    Case(
        "a Swedish article for an English job",
        (("language", "HIGH"),),
        "BLOCKED",
        article(near=TERMS["en"][:6], sources=["https://who.int/", "https://apnews.com/"]),
        package(language="en"),
    ),
    Case(
        "an English quotation in a Swedish article",
        article=article(end=f"> {_ENGLISH * 5}"),
    ),
    Case(
        "49 English words for a Swedish job are not judged",
        (("word_count", "HIGH"),),
        "BLOCKED",
        _english_of(49),
        package(terms=[]),
    ),
    Case(
        "50 English words for a Swedish job are",
        (("language", "HIGH"), ("word_count", "HIGH")),
        "BLOCKED",
        _english_of(50),
        package(terms=[]),
    ),
    # link
    Case(
        "no link",
        (("link", "CRITICAL"),),
        "BLOCKED",
        article(places=[]),
    ),
    Case("two links", article=article(places=["middle", "middle"])),
    Case(
        "three links",
        (("link", "MEDIUM"),),
        "WARNING",
        article(places=["middle", "middle", "last"]),
    ),
    Case(
        "two links where the package allows one",
        (("link", "MEDIUM"),),
        "WARNING",
        article(places=["middle", "last"]),
        package(max_usages=1),
    ),
    Case(
        "the anchor text leads elsewhere",
        (("link", "HIGH"),),
        "BLOCKED",
        article(end=f"[{ANCHOR}](https://annat.example/)"),
    ),
    Case(
        "another text leads to the target",
        (("link", "HIGH"),),
        "BLOCKED",
        article(end=f"[här]({TARGET})"),
    ),
    Case(
        "a bare address of the target",
        (("link", "HIGH"),),
        "BLOCKED",
        article(end=f"Se {TARGET}."),
    ),
    Case(
        "only another text leads to the target",
        (("link", "CRITICAL"), ("link", "HIGH")),
        "BLOCKED",
        article(places=[], end=f"[här]({TARGET})"),
    ),
    Case(
        "another page of the target's site may be linked",
        article=article(end="[om oss](https://hemguiden.example/om)"),
    ),
    Case("capital letters do not matter in the text", article=_linked("HEMGUIDEN")),
    Case(
        "nor does a slash behind the bare host",
        article=_linked(ANCHOR, "https://Hemguiden.example/"),
        package=package(target="https://hemguiden.example"),
    ),
    Case(
        "a link to a competitor",
        (("link", "HIGH"),),
        "BLOCKED",
        article(end="[pris](https://www.rival.example/pris)"),
        rules=with_policies(competitors=["rival.example"]),
    ),
    Case(
        "a domain that only ends like a competitor's",
        article=article(end="[pris](https://arrival.example/)"),
        rules=with_policies(competitors=["rival.example"]),
    ),
    # accepted by a reviewer
    Case(
        "accepted sources count as LOW",
        (("trust_sources", "LOW"),),
        "PASS",
        article(sources=[]),
        package(accepted=["trust_sources"]),
    ),
    Case(
        "accepting one category accepts no other",
        (("intent", "CRITICAL"), ("trust_sources", "LOW")),
        "BLOCKED",
        article(sources=[]),
        package(accepted=["trust_sources"], overall="off"),
    ),
    # together
    Case(
        "HIGH behind MEDIUM blocks",
        (("trust_sources", "HIGH"), ("lsi", "MEDIUM")),
        "BLOCKED",
        article(near=5, sources=[TAX]),
    ),
    Case(
        "many MEDIUM ones do not block",
        (("link", "MEDIUM"), ("lsi", "MEDIUM"), ("placement", "MEDIUM"), ("word_count", "MEDIUM")),
        "WARNING",
        article(words=800, near=5, places=["h2", "middle", "last"]),
    ),
]

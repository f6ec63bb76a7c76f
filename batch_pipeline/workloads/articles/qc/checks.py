"""The rules of quality control: what is wrong with an article, and how bad it is.

What belongs here: one pure function for each category, and the report made of them. What does not:
numbers and policies (rules.py), taking an article apart (text.py), repairing it (autofix.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from re import split
from typing import Any
from urllib.parse import unquote, urlsplit

from tld import get_fld

from batch_pipeline.workloads.articles.models import Article
from batch_pipeline.workloads.articles.package import JobPackage, lsi_terms
from batch_pipeline.workloads.articles.phrases import language_identifier
from batch_pipeline.workloads.articles.qc.report import (
    SEVERITIES,
    Category,
    Issue,
    QcReport,
    verdict,
)
from batch_pipeline.workloads.articles.qc.rules import QcRules
from batch_pipeline.workloads.articles.qc.text import (
    Link,
    ParsedArticle,
    normal_url,
    parse,
    stems,
)
from batch_pipeline.workloads.articles.record import iso

Measured = tuple[dict[str, Any], list[Issue]]
Check = Callable[[ParsedArticle, JobPackage, QcRules], Measured]


def check_article(
    article: Article, package: JobPackage, rules: QcRules, *, job_id: str, at: float
) -> QcReport:
    """What quality control says of an article."""
    measured = examine(parse(article.markdown), package, rules)
    return make_report(measured, package, rules, job_id=job_id, at=at)


def check_package(package: JobPackage, rules: QcRules, *, job_id: str, at: float) -> QcReport:
    """What can be said before an article is written: its intent and its anchor."""
    measured: dict[Category, Measured] = {
        "anchor": check_anchor(package, rules),
        "intent": check_intent(package, rules),
    }
    return make_report(measured, package, rules, job_id=job_id, at=at)


def examine(
    article: ParsedArticle, package: JobPackage, rules: QcRules
) -> dict[Category, Measured]:
    """What each category measures and finds."""
    return {
        "lsi": check_lsi(article, package, rules),
        "trust_sources": check_trust_sources(article, package, rules),
        "anchor": check_anchor(package, rules),
        "placement": check_placement(article, package, rules),
        "compliance": check_compliance(article, package, rules),
        "intent": check_intent(package, rules),
        "word_count": check_word_count(article, package, rules),
        "language": check_language(article, package, rules),
        "link": check_link(article, package, rules),
    }


def issues_of(measured: dict[Category, Measured], package: JobPackage) -> list[Issue]:
    """All that was found, the worst first; what a reviewer has accepted counts as LOW."""
    accepted = set(package.generation_constraints.accepted_issues)
    found = [
        _accepted(issue) if issue.category in accepted else issue
        for _, issues in measured.values()
        for issue in issues
    ]
    return sorted(
        found,
        key=lambda issue: (
            -SEVERITIES.index(issue.severity),
            issue.category,
            issue.details["rule"],
            issue.message,
        ),
    )


def make_report(
    measured: dict[Category, Measured],
    package: JobPackage,
    rules: QcRules,
    *,
    job_id: str,
    at: float,
) -> QcReport:
    """The report of what was measured."""
    issues = issues_of(measured, package)
    reason = _signoff_reason(issues, package, rules)
    return QcReport(
        job_id=job_id,
        status=verdict(issues),
        issues=issues,
        human_signoff_required=bool(reason),
        signoff_reason=reason,
        timestamp=iso(at),
        checks={category: values for category, (values, _) in measured.items()},
    )


# --- lsi


@dataclass(frozen=True)
class LsiCount:
    """Terms near the link.

    Attributes:
        found: those that stand there.
        missing: the others.
        occurrences: how often any of them does.
        sentences: places (in `ParsedArticle.sentences`) of what is near.
    """

    found: list[str]
    missing: list[str]
    occurrences: int
    sentences: range

    def wanted(self, rules: QcRules) -> int:
        """How many must stand there."""
        return min(rules.thresholds.lsi.min_terms, len(self.found) + len(self.missing))


def count_lsi(article: ParsedArticle, package: JobPackage, rules: QcRules) -> LsiCount | None:
    """Which terms stand near the link; None where there is no link."""
    link = main_link(article, package, rules)
    if link is None:
        return None
    language = package.generation_constraints.language
    near = _near(article, link, rules.thresholds.lsi.window_sentences)
    texts = [article.sentences[index].text for index in near]
    if link.in_heading:
        texts.append(article.blocks[link.block].text)
    terms: dict[tuple[str, ...], str] = {}
    for term in lsi_terms(package):
        if key := tuple(stems(term, language)):
            terms.setdefault(key, term)
    words = [stems(text, language) for text in texts]
    found = [term for key, term in terms.items() if any(_holds(text, key) for text in words)]
    return LsiCount(
        found=found,
        missing=[term for term in terms.values() if term not in found],
        occurrences=sum(_occurrences(text, terms) for text in words),
        sentences=near,
    )


def check_lsi(article: ParsedArticle, package: JobPackage, rules: QcRules) -> Measured:
    """Enough terms of the topic near the link, and not too often."""
    bounds = rules.thresholds.lsi
    count = count_lsi(article, package, rules)
    if count is None:
        return {"link": False, "minimum": bounds.min_terms, "maximum": bounds.max_terms}, []
    wanted = count.wanted(rules)
    values = {
        "link": True,
        "found": count.found,
        "missing": count.missing,
        "occurrences": count.occurrences,
        "minimum": wanted,
        "maximum": bounds.max_terms,
        "window_sentences": bounds.window_sentences,
    }
    issues = []
    lacking = wanted - len(count.found)
    if lacking > 0:
        issues.append(
            _issue(
                rules,
                "lsi",
                "lsi_missing",
                f"{len(count.found)} of at least {wanted} terms stand within "
                f"{bounds.window_sentences} sentences of the link.",
                fix=f"Bring in near the link: {', '.join(count.missing)}.",
                fixable=lacking <= bounds.autofix_max_terms and _in_body(article, package, rules),
                found=count.found,
                missing=count.missing,
            )
        )
    if count.occurrences > bounds.max_terms:
        issues.append(
            _issue(
                rules,
                "lsi",
                "lsi_surplus",
                f"Terms stand {count.occurrences} times within {bounds.window_sentences} sentences "
                f"of the link; at most {bounds.max_terms} are natural.",
                fix="Move sentences that repeat them away from the link.",
                fixable=bounds.autofix_max_terms > 0,
                occurrences=count.occurrences,
            )
        )
    return values, issues


def _near(article: ParsedArticle, link: Link, radius: int) -> range:
    """The sentences around a link; of a link in a heading, those around the heading."""
    before = sum(1 for one in article.sentences if one.end <= link.start)
    behind = before if link.in_heading else before + 1
    return range(max(0, before - radius), min(len(article.sentences), behind + radius))


def _holds(words: Sequence[str], term: tuple[str, ...]) -> bool:
    size = len(term)
    return any(tuple(words[at : at + size]) == term for at in range(len(words) - size + 1))


def _occurrences(words: Sequence[str], terms: Iterable[tuple[str, ...]]) -> int:
    """How often terms stand in a sentence; of two that overlap, the longer counts."""
    by_length = sorted(terms, key=len, reverse=True)
    count = at = 0
    while at < len(words):
        match = next((t for t in by_length if tuple(words[at : at + len(t)]) == t), None)
        count += match is not None
        at += len(match) if match else 1
    return count


def _in_body(article: ParsedArticle, package: JobPackage, rules: QcRules) -> bool:
    link = main_link(article, package, rules)
    return link is not None and (not link.in_heading or link.in_heading <= 2)


# --- trust sources


def check_trust_sources(article: ParsedArticle, package: JobPackage, rules: QcRules) -> Measured:
    """Enough sources, by tier: each site counts once, the target's own is none."""
    bounds = rules.thresholds.trust
    tiers = rules.policies.tiers(package.generation_constraints.language)
    own = site(package.input_minimal.target_url)
    found: dict[str, int] = {}
    for url in [link.url for link in article.links] + list(article.bare_urls):
        name = site(url)
        if not name or name == own:
            continue
        if any(belongs(url, domain) for domain in tiers.tier_1):
            found[name] = 1
        elif any(belongs(url, domain) for domain in tiers.tier_2):
            found.setdefault(name, 2)
    first = sorted(name for name, tier in found.items() if tier == 1)
    second = sorted(name for name, tier in found.items() if tier == 2)
    values = {
        "tier_1": first,
        "tier_2": second,
        "minimum_tier_1": bounds.min_tier_1,
        "minimum_total": bounds.min_total,
    }
    if len(first) >= bounds.min_tier_1 and len(found) >= bounds.min_total:
        return values, []
    rule, said = ("trust_few", f"{len(found)} in all, {len(first)} of tier 1")
    if not found:
        rule, said = "trust_none", "none"
    return values, [
        _issue(
            rules,
            "trust_sources",
            rule,
            f"Sources: {said}; at least {bounds.min_total} in all and {bounds.min_tier_1} of "
            "tier 1 are needed.",
            fix=f"Link to what the article rests on, e.g. {', '.join(tiers.tier_1)}. "
            "Sources are never made up.",
            tier_1=first,
            tier_2=second,
        )
    ]


def belongs(url: str, domain: str) -> bool:
    """Whether an address is of a domain: `example.com` with its subdomains, `.gov` all below."""
    host = _host(url)
    wanted = _ascii(domain)
    return host.endswith(wanted) if wanted.startswith(".") else _within(host, wanted)


def site(url: str) -> str:
    """The site of an address, as it is registered: `sv.wikipedia.org` is `wikipedia.org`."""
    host = _host(url)
    name = get_fld(host, fail_silently=True, fix_protocol=True) if host else None
    return str(name or host)


def _within(host: str, domain: str) -> bool:
    return host == domain or host.endswith(f".{domain}")


def _host(url: str) -> str:
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        return _ascii((parts.hostname or "").rstrip("."))
    except ValueError:
        return ""


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode() if not host.isascii() else host.lower()
    except UnicodeError:
        return host.lower()


# --- anchor


def check_anchor(package: JobPackage, rules: QcRules) -> Measured:
    """A link text that looks bought is never published without a person's decision."""
    text = package.input_minimal.anchor_text.strip()
    kind = package.anchor_profile.llm_classified_type
    words = [word.strip(".,:;!?\"'”»()").casefold() for word in text.split()]
    policy = rules.policies.anchor
    risky = [w for w in words if _any_matches(w, policy.high_risk_single_word)]
    bought = [w for w in words if _any_matches(w, policy.high_risk_exact)]
    risk, issue = "low", None
    if len(words) == 1 and risky:
        risk, why = "high", f"it is the single word {risky[0]!r}"
    elif kind == "exact" and bought:
        risk, why = "high", f"it is an exact match with {bought[0]!r}"
    if risk == "high":
        issue = _issue(
            rules,
            "anchor",
            "anchor_high_risk",
            f"The link text {text!r} is a high risk: {why}.",
            fix="Choose another link text and let the job be written anew.",
            anchor=text,
            type=kind,
        )
    elif kind == "partial":
        risk = "medium"
        issue = _issue(
            rules,
            "anchor",
            "anchor_partial",
            f"The link text {text!r} is a partial match: use it sparingly.",
            anchor=text,
            type=kind,
        )
    return {"risk": risk, "anchor": text, "type": kind}, [issue] if issue else []


def _any_matches(word: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(word, pattern) for pattern in patterns)


# --- placement


def check_placement(article: ParsedArticle, package: JobPackage, rules: QcRules) -> Measured:
    """The link stands in the middle of the article, and in no H1 or H2."""
    links = anchor_links(article, package)
    span = middle(article, rules)
    in_headings = [link.in_heading for link in links if link.in_heading in (1, 2)]
    elsewhere = [link for link in links if link.in_heading not in (1, 2)]
    values = {
        "links": len(links),
        "in_h1_or_h2": len(in_headings),
        "in_the_middle": sum(1 for link in elsewhere if is_inside(link, span)),
        "sections": len({block.section for block in article.body}),
    }
    issues = []
    if in_headings:
        issues.append(
            _issue(
                rules,
                "placement",
                "placement_heading",
                f"The link stands in a heading (H{min(in_headings)}).",
                fix="Move it into a paragraph of the middle section.",
                fixable=span is not None or bool(elsewhere),
            )
        )
    if elsewhere and not values["in_the_middle"]:
        issues.append(
            _issue(
                rules,
                "placement",
                "placement_outside",
                "The link stands in the first or last part of the article, not in its middle.",
                fix="Move it into a section between the first and the last.",
            )
        )
    return values, issues


def middle(article: ParsedArticle, rules: QcRules) -> tuple[int, int] | None:
    """Where the middle of an article begins and ends; None where it has none.

    All sections but the first and the last; of fewer than three, all paragraphs but those. The
    disclaimers at the end count for neither.
    """
    disclaimers = {
        text
        for vertical in rules.policies.verticals.values()
        for text in (vertical.disclaimer.sv, vertical.disclaimer.en)
    }
    body = [block for block in article.body if block.text not in disclaimers]
    sections = sorted({block.section for block in body})
    if len(sections) >= 3:
        begin = max(block.end for block in body if block.section == sections[0])
        end = min(block.start for block in article.blocks if block.section == sections[-1])
        return begin, end
    return (body[0].end, body[-1].start) if len(body) >= 3 else None


def is_inside(link: Link, span: tuple[int, int] | None) -> bool:
    """Whether a link stands in a part of the article."""
    return span is not None and span[0] <= link.start < span[1]


# --- compliance


def verticals_of(package: JobPackage, rules: QcRules) -> list[str]:
    """The regulated lines of business that a job's addresses speak of."""
    asked = package.input_minimal
    words = _address_words(asked.target_url) | _address_words(asked.publisher_domain)
    return [
        name
        for name, vertical in rules.policies.verticals.items()
        if any(
            _any_matches(word, vertical.words) and not _any_matches(word, vertical.not_words)
            for word in words
        )
    ]


def disclaimer_of(vertical: str, package: JobPackage, rules: QcRules) -> str:
    """The text that articles of a vertical must hold."""
    texts = rules.policies.verticals[vertical].disclaimer
    return texts.sv if package.generation_constraints.language == "sv" else texts.en


def check_compliance(article: ParsedArticle, package: JobPackage, rules: QcRules) -> Measured:
    """An article of a regulated line of business holds its disclaimer, word for word."""
    needed = verticals_of(package, rules)
    missing = [
        name
        for name in needed
        if not any(disclaimer_of(name, package, rules) in block.text for block in article.blocks)
    ]
    return {"verticals": needed, "missing": missing}, [
        _issue(
            rules,
            "compliance",
            "compliance_missing",
            f"The disclaimer for {name} is missing.",
            fix=f"Append: {disclaimer_of(name, package, rules)}",
            fixable=True,
            vertical=name,
        )
        for name in missing
    ]


def _address_words(url: str) -> set[str]:
    host = _host(url)
    try:
        host = host.encode().decode("idna")
    except UnicodeError:
        pass
    behind = split("[/?#]", url.split("//", 1)[-1], maxsplit=1)[1:]
    text = "/".join([host, *map(unquote, behind)]).casefold()
    return {word for word in split(r"[\W_]+", text) if word}


# --- intent


def check_intent(package: JobPackage, rules: QcRules) -> Measured:
    """Publisher, anchor, target and what people search for have something in common."""
    alignment = package.intent_extension.intent_alignment
    values = alignment.model_dump()
    if alignment.overall != "off":
        return values, []
    parts = {
        "the anchor": alignment.anchor_vs_serp,
        "the target": alignment.target_vs_serp,
        "the publisher": alignment.publisher_vs_serp,
    }
    off = [name for name, how in parts.items() if how == "off"]
    who = " and ".join(off) or "the whole"
    return values, [
        _issue(
            rules,
            "intent",
            "intent_off",
            f"{who[0].upper()}{who[1:]} does not fit what people who search for this want "
            f"({package.intent_extension.serp_intent_primary}).",
            fix="Choose another target, anchor or publisher; intent is never changed by a repair.",
        )
    ]


# --- word count


def check_word_count(article: ParsedArticle, package: JobPackage, rules: QcRules) -> Measured:
    """Long enough, and not too long."""
    bounds = rules.thresholds.words
    minimum = package.generation_constraints.min_word_count
    words = article.words
    values = {
        "words": words,
        "floor": bounds.floor,
        "minimum": minimum,
        "recommended": bounds.recommended,
        "maximum": bounds.maximum,
    }
    if words < bounds.floor:
        rule, said = "words_below_floor", f"fewer than {bounds.floor} are no article"
    elif words < minimum:
        rule, said = "words_too_few", f"at least {minimum} are asked for"
    elif words > bounds.maximum:
        rule, said = "words_too_many", f"at most {bounds.maximum} are allowed"
    elif words < bounds.recommended:
        rule, said = "words_below_recommended", f"{bounds.recommended} are recommended"
    else:
        return values, []
    return values, [_issue(rules, "word_count", rule, f"{words} words; {said}.", words=words)]


# --- language


def check_language(article: ParsedArticle, package: JobPackage, rules: QcRules) -> Measured:
    """The text is in the language that the job asks for."""
    bounds = rules.thresholds.language
    wanted = package.generation_constraints.language
    values: dict[str, Any] = {"wanted": wanted, "found": "", "minimum_words": bounds.min_words}
    text = article.body_text
    if len(text.split()) < bounds.min_words:
        return values, []
    candidates = tuple(sorted({*bounds.candidates, wanted}))
    found = str(language_identifier(candidates).classify(text)[0])
    values["found"] = found
    if found == wanted:
        return values, []
    return values, [
        _issue(
            rules,
            "language",
            "language_other",
            f"The article is in {found!r}, the job asks for {wanted!r}.",
            fix="Let the job be written anew.",
            found=found,
            wanted=wanted,
        )
    ]


# --- link


def anchor_links(article: ParsedArticle, package: JobPackage) -> list[Link]:
    """The links with the job's text and the job's target."""
    target = normal_url(package.input_minimal.target_url)
    return [one for one in article.links if one.url == target and _is_anchor(one, package)]


def main_link(article: ParsedArticle, package: JobPackage, rules: QcRules) -> Link | None:
    """The link that counts: in no H1 or H2, in the middle, in no heading; of those, the first."""
    span = middle(article, rules)
    return min(
        anchor_links(article, package),
        key=lambda one: (
            one.in_heading in (1, 2),
            not is_inside(one, span),
            one.in_heading > 0,
            one.start,
        ),
        default=None,
    )


def check_link(article: ParsedArticle, package: JobPackage, rules: QcRules) -> Measured:
    """The link is there, as often as it may be, and nothing leads to the wrong place."""
    target = normal_url(package.input_minimal.target_url)
    anchor = package.input_minimal.anchor_text.strip()
    right = anchor_links(article, package)
    wrong_url = [one.url for one in article.links if _is_anchor(one, package) and one.url != target]
    wrong_text = [
        one.text for one in article.links if one.url == target and not _is_anchor(one, package)
    ]
    bare = [url for url in article.bare_urls if normal_url(url) == target]
    own = site(target)
    competitors = sorted(
        {
            url
            for url in [one.url for one in article.links] + list(article.bare_urls)
            if site(url) != own
            and any(belongs(url, domain) for domain in rules.policies.competitors)
        }
    )
    least = rules.thresholds.link.min
    most = package.generation_constraints.max_anchor_usages
    values = {
        "links": len(right),
        "minimum": least,
        "maximum": most,
        "anchor_elsewhere": wrong_url,
        "other_texts": wrong_text + bare,
        "competitors": competitors,
    }
    wanted = f"[{anchor}]({package.input_minimal.target_url})"
    issues = []
    if not right:
        issues.append(
            _issue(
                rules,
                "link",
                "link_missing",
                f"The link {wanted} is not in the article.",
                fix="Let the job be written anew.",
            )
        )
    elif len(right) < least:
        issues.append(
            _issue(
                rules,
                "link",
                "link_too_few",
                f"The link stands {len(right)} times, at least {least} are asked for.",
            )
        )
    if len(right) > most:
        issues.append(
            _issue(
                rules,
                "link",
                "link_surplus",
                f"The link stands {len(right)} times, at most {most} are allowed.",
                fix="Leave the text of the later ones and take the link away.",
                fixable=True,
            )
        )
    if wrong_url:
        issues.append(
            _issue(
                rules,
                "link",
                "link_wrong_url",
                f"The link text {anchor!r} leads elsewhere: {', '.join(wrong_url)}.",
                fix=f"Write {wanted}.",
                urls=wrong_url,
            )
        )
    if wrong_text or bare:
        texts = ", ".join(repr(text) for text in wrong_text + bare)
        issues.append(
            _issue(
                rules,
                "link",
                "link_wrong_text",
                f"The target is linked with another text: {texts}.",
                fix=f"Write {wanted}.",
                texts=wrong_text + bare,
            )
        )
    if competitors:
        issues.append(
            _issue(
                rules,
                "link",
                "link_competitor",
                f"The article links to competitors: {', '.join(competitors)}.",
                fix="Take these links away.",
                urls=competitors,
            )
        )
    return values, issues


def _is_anchor(link: Link, package: JobPackage) -> bool:
    wanted = " ".join(package.input_minimal.anchor_text.split())
    return link.text.casefold() == wanted.casefold()


# --- issues


def _issue(
    rules: QcRules,
    category: Category,
    rule: str,
    message: str,
    *,
    fix: str = "",
    fixable: bool = False,
    **details: Any,
) -> Issue:
    return Issue(
        category=category,
        severity=getattr(rules.policies.severities, rule),
        message=message,
        details={"rule": rule, **details},
        auto_fixable=fixable,
        fix_suggestion=fix,
    )


def _accepted(issue: Issue) -> Issue:
    details = {**issue.details, "accepted_by_reviewer": True, "severity": issue.severity}
    return issue.model_copy(update={"severity": "LOW", "details": details, "auto_fixable": False})


def _signoff_reason(issues: list[Issue], package: JobPackage, rules: QcRules) -> str:
    policy = rules.policies.signoff
    reasons = [
        f"{issue.severity}: {issue.message}"
        for issue in issues
        if issue.severity in policy.severities and "accepted_by_reviewer" not in issue.details
    ]
    reasons += [
        f"Articles about {name} are always signed."
        for name in verticals_of(package, rules)
        if name in policy.verticals
    ]
    return " ".join(reasons)

"""The one automatic repair of an article, and quality control around it.

What belongs here: changing the Markdown where a rule says that a machine may. What does not: the
rules (checks.py). A repair makes up no sources, leaves intent and bridge alone, and links nowhere
but to the job's target.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from batch_pipeline.workloads.articles.models import Article
from batch_pipeline.workloads.articles.package import JobPackage, Language
from batch_pipeline.workloads.articles.qc.checks import (
    LsiCount,
    anchor_links,
    check_article,
    count_lsi,
    disclaimer_of,
    examine,
    issues_of,
    main_link,
    middle,
)
from batch_pipeline.workloads.articles.qc.report import SEVERITIES, Issue, QcReport
from batch_pipeline.workloads.articles.qc.rules import QcRules
from batch_pipeline.workloads.articles.qc.text import Link, ParsedArticle, parse

_Repair = Callable[[ParsedArticle, JobPackage, QcRules], "tuple[str, str] | None"]

_TERMS: dict[Language, str] = {
    "sv": "Här spelar också {terms} in.",
    "en": "This also ties in with {terms}.",
}
_AND: dict[Language, str] = {"sv": "och", "en": "and"}
_POINTER: dict[Language, str] = {"sv": "Läs mer: {link}.", "en": "Read more: {link}."}
_SPECIAL = re.compile(r"([\\`*_\[\]<>#&])")


@dataclass(frozen=True)
class Controlled:
    """An article after quality control.

    Attributes:
        article: as it is delivered.
        report: the last one.
        first_report: the one before the repair; None where nothing was repaired.
    """

    article: Article
    report: QcReport
    first_report: QcReport | None = None


def control(
    article: Article, package: JobPackage, rules: QcRules, *, job_id: str, at: float
) -> Controlled:
    """Check an article; where a machine may repair it, do so once and check it again."""
    first = check_article(article, package, rules, job_id=job_id, at=at)
    repaired, logs = autofix(article, package, rules, first)
    if not logs:
        return Controlled(article, first)
    second = check_article(repaired, package, rules, job_id=job_id, at=at)
    done = second.model_copy(update={"autofix_done": True, "autofix_logs": logs})
    return Controlled(repaired, done, first)


def autofix(
    article: Article, package: JobPackage, rules: QcRules, report: QcReport
) -> tuple[Article, list[str]]:
    """Repair what a machine may repair.

    A change stays only if what it is for is gone and nothing weighs more than before; so an
    article that was repaired once is left as it is.

    Returns:
        The article, and a line for each change.
    """
    if not any(issue.auto_fixable for issue in report.issues):
        return article, []
    markdown, logs = article.markdown, []
    issues = _issues(markdown, package, rules)
    for rule, repair in _REPAIRS:
        # The repair of one rule may break another that comes later in the list, not an earlier one.
        if not any(issue.auto_fixable and issue.details["rule"] == rule for issue in issues):
            continue
        change = repair(parse(markdown), package, rules)
        if change is None:
            continue
        changed = _issues(change[0], package, rules)
        if _weight(changed) <= _weight(issues) and not _has(changed, rule):
            markdown, issues = change[0], changed
            logs.append(change[1])
    if not logs:
        return article, []
    return article.model_copy(update={"markdown": markdown}), logs


def _issues(markdown: str, package: JobPackage, rules: QcRules) -> list[Issue]:
    return issues_of(examine(parse(markdown), package, rules), package)


def _weight(issues: list[Issue]) -> tuple[int, ...]:
    """How bad it is as a whole: the number of issues of each severity, the worst first."""
    counts = Counter(issue.severity for issue in issues)
    return tuple(counts[severity] for severity in reversed(SEVERITIES))


def _has(issues: list[Issue], rule: str) -> bool:
    return any(issue.details["rule"] == rule for issue in issues)


# --- links


def _leave_headings(
    article: ParsedArticle, package: JobPackage, rules: QcRules
) -> tuple[str, str] | None:
    """Take the link out of H1 and H2; where it stands nowhere else, into the middle section."""
    links = anchor_links(article, package)
    in_headings = [link for link in links if link.in_heading in (1, 2)]
    unlinked = _unlink(article.markdown, in_headings)
    if len(in_headings) < len(links):
        return unlinked, "Took the link out of a heading; it stands in the text already."
    parsed = parse(unlinked)
    at = _linked_in_middle(parsed, package, rules)
    return (at, "Moved the link from a heading into the middle section.") if at else None


def _linked_in_middle(article: ParsedArticle, package: JobPackage, rules: QcRules) -> str | None:
    """The article with the link in a paragraph of its middle.

    The anchor text itself becomes the link where it stands there already; else a sentence with it
    ends the paragraph that says most about the topic.
    """
    span = middle(article, rules)
    if span is None:
        return None
    paragraphs = [
        block
        for block in article.body
        if block.kind == "paragraph" and span[0] <= block.start < span[1]
    ]
    if not paragraphs:
        return None
    anchor = package.input_minimal.anchor_text.strip()
    words = r"\s+".join(re.escape(word) for word in anchor.split())
    pattern = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
    for block in paragraphs:
        match = pattern.search(article.shown, block.start, block.end)
        if match is None:
            continue
        begin, end = match.span()
        if not any(link.start < end and begin < link.end for link in article.links):
            return _replace(
                article.markdown, begin, end, _link(article.markdown[begin:end], package)
            )
    language = package.generation_constraints.language
    sentence = _POINTER[language].format(link=_link(_SPECIAL.sub(r"\\\1", anchor), package))
    candidates = [_insert(article, block.end, sentence) for block in paragraphs]
    return max(candidates, key=lambda text: _near_terms(text, package, rules))


def _near_terms(markdown: str, package: JobPackage, rules: QcRules) -> int:
    count = count_lsi(parse(markdown), package, rules)
    return len(count.found) if count else 0


def _link(label: str, package: JobPackage) -> str:
    url = package.input_minimal.target_url.strip()
    return f"[{label}](<{url}>)" if re.search(r"[\s()]", url) else f"[{label}]({url})"


def _unlink_surplus(
    article: ParsedArticle, package: JobPackage, rules: QcRules
) -> tuple[str, str] | None:
    """Keep the link that counts and the first others; the later ones become text."""
    most = package.generation_constraints.max_anchor_usages
    main = main_link(article, package, rules)
    others = [link for link in anchor_links(article, package) if link != main]
    surplus = others[max(0, most - 1) :]
    if not surplus:
        return None
    return (
        _unlink(article.markdown, surplus),
        f"Took {len(surplus)} of {len(others) + 1} links away; their text stays.",
    )


def _unlink(markdown: str, links: list[Link]) -> str:
    for link in sorted(links, key=lambda one: one.start, reverse=True):
        markdown = _replace(markdown, link.start, link.end, link.label)
    return markdown


# --- disclaimers


def _append_disclaimers(
    article: ParsedArticle, package: JobPackage, rules: QcRules
) -> tuple[str, str] | None:
    """Each missing disclaimer, word for word, as a paragraph at the end."""
    missing: list[str] = examine(article, package, rules)["compliance"][0]["missing"]
    texts = dict.fromkeys(disclaimer_of(name, package, rules) for name in missing)
    appended = "".join(f"\n\n{text}" for text in texts)
    return f"{article.markdown.rstrip()}{appended}\n", f"Appended: {' '.join(texts)}"


# --- terms near the link


def _add_terms(
    article: ParsedArticle, package: JobPackage, rules: QcRules
) -> tuple[str, str] | None:
    """One sentence with as few missing terms as it takes, behind the link's sentence or before."""
    count, link = count_lsi(article, package, rules), main_link(article, package, rules)
    if count is None or link is None:
        return None
    own = next((one for one in article.sentences if one.start <= link.start < one.end), None)
    if own is None:
        return None
    language = package.generation_constraints.language
    lacking = count.wanted(rules) - len(count.found)
    for number in range(max(1, lacking), rules.thresholds.lsi.autofix_max_terms + 1):
        terms = count.missing[:number]
        sentence = _TERMS[language].format(terms=_listed(terms, language))
        for text in (
            _insert(article, own.end, sentence),
            _replace(article.markdown, own.start, own.start, f"{sentence} "),
        ):
            after = count_lsi(parse(text), package, rules)
            if after and _is_right(after, rules):
                return text, f"Added near the link: {', '.join(terms)}."
    return None


def _is_right(count: LsiCount, rules: QcRules) -> bool:
    enough = len(count.found) >= count.wanted(rules)
    return enough and count.occurrences <= rules.thresholds.lsi.max_terms


def _listed(terms: list[str], language: Language) -> str:
    written = [_SPECIAL.sub(r"\\\1", term) for term in terms]
    if len(written) == 1:
        return written[0]
    return f"{', '.join(written[:-1])} {_AND[language]} {written[-1]}"


def _thin_terms(
    article: ParsedArticle, package: JobPackage, rules: QcRules
) -> tuple[str, str] | None:
    """Move sentences that repeat terms from near the link to the end of their section."""
    for moved in range(1, rules.thresholds.lsi.autofix_max_terms + 1):
        best: tuple[int, str] | None = None
        for text in _with_a_sentence_moved(article, package, rules):
            count = count_lsi(parse(text), package, rules)
            if count is None or len(count.found) < count.wanted(rules):
                continue
            if best is None or count.occurrences < best[0]:
                best = count.occurrences, text
        if best is None:
            return None
        if best[0] <= rules.thresholds.lsi.max_terms:
            return best[1], f"Moved {moved} sentences that repeat terms away from the link."
        article = parse(best[1])
    return None


def _with_a_sentence_moved(
    article: ParsedArticle, package: JobPackage, rules: QcRules
) -> list[str]:
    """The article with one sentence moved away from the link, for each that can be."""
    count, link = count_lsi(article, package, rules), main_link(article, package, rules)
    if count is None or link is None:
        return []
    texts = []
    for sentence in (article.sentences[index] for index in count.sentences):
        block = article.blocks[sentence.block]
        alone = sum(one.block == sentence.block for one in article.sentences) == 1
        if alone or block.kind != "paragraph" or sentence.start <= link.start < sentence.end:
            continue
        last = [b for b in article.body if b.section == block.section and b.kind == "paragraph"][-1]
        raw = " ".join(article.markdown[sentence.start : sentence.end].split())
        longer = _insert(article, last.end, raw)
        before = longer[: sentence.start].rstrip(" ")
        behind = longer[sentence.end :].lstrip(" ")
        glue = " " if before and not before.endswith("\n") else ""
        texts.append(f"{before}{glue}{behind}")
    return texts


# --- text


def _insert(article: ParsedArticle, at: int, sentence: str) -> str:
    """The article with a sentence behind a place; a sentence without an end before it gets one."""
    before = article.markdown[:at].rstrip()
    ended = before.rstrip("\"'”’»)*_").endswith((".", "!", "?", "…", ":"))
    return f"{before}{'' if ended else '.'} {sentence}{article.markdown[at:]}"


def _replace(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]


# Links first: where the link stands decides which terms are near it.
_REPAIRS: tuple[tuple[str, _Repair], ...] = (
    ("placement_heading", _leave_headings),
    ("link_surplus", _unlink_surplus),
    ("compliance_missing", _append_disclaimers),
    ("lsi_missing", _add_terms),
    ("lsi_surplus", _thin_terms),
)

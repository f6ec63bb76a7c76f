"""The twelve checks of a card: what is wrong with it, in words for a person and a model.

What belongs here: one pure function for each check, the score. What does not: numbers and phrases
(rules.py), asking again (rounds.py), whether a whole topic is completed (completion.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from batch_pipeline.workloads.flashcards.models import (
    DraftCard,
    missing_parts,
    same_option,
)
from batch_pipeline.workloads.flashcards.rules import CheckName, CheckRules
from batch_pipeline.workloads.flashcards.terms import (
    holds_phrase,
    read_words,
    stems_of,
    words_of,
)
from batch_pipeline.workloads.flashcards.topics import Topic
from batch_pipeline.workloads.text import one_line

_SHOWN_CHARS = 60
_REASON = re.compile(r"^\s*targets\s+(?:\[(?P<a>[^\]]+)\]|(?P<b>[^:\[\]]+))\s*:\s*(?P<reason>.*)$",
                     re.IGNORECASE | re.DOTALL)  # fmt: skip
_PARENTHESIS = re.compile(r"[(\[（【]([^()\[\]（）【】]*)[)\]）】]")
_ACRONYM = re.compile(r"\b[A-Z][A-Z0-9]{1,5}s?\b")
# Of abbreviations in options: letters of any script, so that capitals are counted, not matched.
_SHORT = re.compile(r"[^\W_]{1,9}(?:[/.&+-][^\W_]{1,9})*")
_VERSION = re.compile(r"\d[\d.]*")
_MAX_CAPITALS = 6
# Lets a score that is the bound but for rounding pass.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Finding:
    """A check that a card fails.

    Attributes:
        check: its name.
        weight: what it counts.
        message: what is wrong, naming the option or the word.
        fix: what to do.
    """

    check: CheckName
    weight: float
    message: str
    fix: str

    def as_json(self) -> dict[str, Any]:
        """For files and documents."""
        return {
            "check": self.check,
            "weight": self.weight,
            "message": self.message,
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True)
class CardReport:
    """What the checks say of a card.

    Attributes:
        score: weight of the checks passed over all weight, 0 to 1; 0 after an automatic fail.
        passed: whether the card may be delivered.
        automatic: checks whose failing alone fails the card, where it failed them.
        findings: what is wrong, the heaviest first.
    """

    score: float
    passed: bool
    automatic: tuple[CheckName, ...]
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> frozenset[CheckName]:
        """Names of the checks that the card fails."""
        return frozenset(finding.check for finding in self.findings)

    @property
    def problems(self) -> list[str]:
        """What is wrong and what to do, one text each: for asking again, and for a person."""
        return [f"{one.message} {one.fix}" for one in self.findings]

    def as_json(self) -> dict[str, Any]:
        """For files and documents."""
        return {
            "score": self.score,
            "passed": self.passed,
            "findings": [finding.as_json() for finding in self.findings],
        }


Problem = tuple[str, str]
"""What is wrong, and what to do."""

Check = Callable[[DraftCard, Topic, CheckRules], Problem | None]


def check_card(card: DraftCard, topic: Topic, rules: CheckRules) -> CardReport:
    """What the checks say of a card of a topic."""
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        weight = rules.weights[name]
        if weight and (problem := check(card, topic, rules)):
            findings.append(Finding(name, weight, *problem))
    automatic = tuple(one.check for one in findings if one.check in rules.automatic_fail)
    # fsum: the order of the checks must not move a score over the bound
    total = math.fsum(rules.weights.values())
    lost = math.fsum(one.weight for one in findings)
    score = 0.0 if automatic else round(1 - lost / total, 6)
    return CardReport(
        score=score,
        passed=not automatic and score >= rules.pass_score - _ROUNDING,
        automatic=automatic,
        findings=tuple(sorted(findings, key=lambda one: (-one.weight, one.check))),
    )


# --- the checks, in the order of their publication


def prohibited_phrases(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """No phrase that the category prohibits, anywhere in the card."""
    texts = [words_of(text) for text in card.texts]
    found = [
        phrase
        for phrase in rules.prohibited(topic.category_name)
        if any(holds_phrase(words, phrase) for words in texts)
    ]
    if not found:
        return None
    return (
        f"The card says {_listed(found)}.",
        "State the fact itself, without naming who says so.",
    )


def self_contained(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """A question of some length that points to nothing outside, its abbreviations written out."""
    bounds = rules.self_contained
    words = words_of(card.question_text)
    if len(words) < bounds.min_question_words:
        return (
            f"The question has {len(words)} words, at least {bounds.min_question_words} are "
            "needed to stand alone.",
            "Ask a whole question that says what it is about.",
        )
    if found := [phrase for phrase in bounds.phrases if holds_phrase(words, phrase)]:
        return (
            f"The question points outside the card: {_listed(found)}.",
            "Put what is needed into the question itself.",
        )
    if unknown := sorted(_unexplained(card, topic)):
        return (
            f"The question uses {_listed(unknown)} without writing it out.",
            "Write the full term once, with the abbreviation in parentheses behind it.",
        )
    return None


def distractor_diversity(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """Distractors that differ in their words and in what they target."""
    most = rules.distractor_diversity.max_similarity
    for one, other in combinations([each.text for each in card.distractors if each.text], 2):
        similarity = _similarity(one, other)
        if similarity > most:
            return (
                f"The distractors {_quoted(one)} and {_quoted(other)} are {similarity:.0%} alike, "
                f"at most {most:.0%} is allowed.",
                "Replace one of them by another mistake.",
            )
    reasons = [" ".join(words_of(each.misconception)) for each in card.distractors]
    repeated = {reason for reason in reasons if reason and reasons.count(reason) > 1}
    if repeated:
        return (
            f"Several distractors have the same misconception: {_quoted(min(repeated))}.",
            "Let each distractor target a misconception of its own.",
        )
    return None


def distractor_reasoning(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """Each distractor says which misconception it targets, and why."""
    least = rules.distractor_reasoning.min_reason_words
    for one in card.distractors:
        match = _REASON.match(one.misconception)
        if not match or not words_of(match["a"] or match["b"]):
            return (
                f"The misconception of {_quoted(one.text)} is not of the form 'Targets [kind]: "
                f"reason': {_quoted(one.misconception)}.",
                "Write 'Targets [kind of mistake]:' and then why somebody would choose it.",
            )
        count = len(words_of(match["reason"]))
        if count < least:
            return (
                f"The reason of the distractor {_quoted(one.text)} has {count} words, at least "
                f"{least} are needed.",
                "Say why somebody would choose it.",
            )
    return None


def length_consistency(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """No option stands out by its length."""
    options = [option for option in card.options if option]
    if len(options) < 2:
        return None
    longest, shortest = max(options, key=len), min(options, key=len)
    ratio, most = len(longest) / len(shortest), rules.length_consistency.max_ratio
    if ratio <= most:
        return None
    return (
        f"The option {_quoted(longest)} is {ratio:.1f} times as long as {_quoted(shortest)}, at "
        f"most {most:g} times is allowed.",
        "Give all four options about the same length.",
    )


def edit_distance(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """No two options that are nearly the same letters."""
    least = rules.edit_distance.min_edits
    for one, other in combinations([option for option in card.options if option], 2):
        edits = Levenshtein.distance(one.casefold(), other.casefold(), score_cutoff=least)
        if edits < least:
            return (
                f"The options {_quoted(one)} and {_quoted(other)} differ by {edits} letters, at "
                f"least {least} are needed.",
                "Rewrite one of them.",
            )
    return None


def domain_coherence(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """The card is about its topic."""
    least = rules.domain_coherence.min_shared_words
    about = stems_of(
        [topic.title, topic.entry_domain, topic.subdomain, topic.domain, topic.context]
    )
    said = stems_of([card.question_text, card.correct_answer, card.detailed_explanation.core_logic])
    # a topic whose name is too short to have stems cannot be missed
    wanted = min(least, len(about))
    if len(about & said) >= wanted:
        return None
    return (
        f"Question, answer and explanation share {len(about & said)} words with the topic "
        f"{_quoted(topic.title)}, at least {wanted} are needed.",
        "Ask about the topic itself, and name it.",
    )


def required_fields(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """Nothing that a card has is missing; four options, no two of them the same."""
    if not (missing := missing_parts(card)):
        return None
    return (
        f"The card is not whole: {'; '.join(missing)}.",
        "Fill in what is missing, and replace what stands there twice.",
    )


def answer_quality(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """The answer says something, and something else than question and distractors."""
    bounds, answer = rules.answer_quality, card.correct_answer
    if " ".join(words_of(answer)) in {" ".join(words_of(one)) for one in bounds.empty_answers}:
        return f"The correct answer is only {_quoted(answer)}.", "Let it state the fact."
    if not bounds.min_chars <= len(answer) <= bounds.max_chars:
        return (
            f"The correct answer has {len(answer)} characters, {bounds.min_chars} to "
            f"{bounds.max_chars} are allowed.",
            "Say the same in the allowed length.",
        )
    if any(same_option(answer, one.text) for one in card.distractors):
        return (
            f"The correct answer {_quoted(answer)} is one of the distractors too.",
            "Replace that distractor by a wrong answer.",
        )
    similarity = _similarity(card.question_text, answer)
    if similarity > bounds.max_question_similarity:
        return (
            f"The correct answer repeats the question ({similarity:.0%} alike).",
            "Answer the question with what it asks for.",
        )
    count = len(words_of(card.detailed_explanation.core_logic))
    if count < bounds.min_explanation_words:
        return (
            f"The explanation has {count} words, at least {bounds.min_explanation_words} are "
            "needed.",
            "Say in core_logic why the answer is right.",
        )
    return None


def parenthetical_giveaways(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """No parenthesis that tells which option is right."""
    bounds = rules.parenthetical_giveaways
    equals = {" ".join(words_of(text)) for text in bounds.equals}
    for option in card.options:
        for match in _PARENTHESIS.finditer(option):
            words = words_of(match[1])
            found = any(holds_phrase(words, phrase) for phrase in bounds.contains)
            if found or (" ".join(words) in equals and not _is_code(match)):
                return (
                    f"The option {_quoted(option)} gives itself away by '({_cut(match[1])})'.",
                    "Leave the parenthesis out.",
                )
    if bounds.lone_parenthetical:
        explaining = [list(_explaining_parentheses(option)) for option in card.options]
        if explaining and explaining[0] and not any(explaining[1:]):
            return (
                f"Only the correct answer {_quoted(card.correct_answer)} has an explanation in "
                "parentheses.",
                "Leave it out, or give every option one.",
            )
    return None


def pattern_detection(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """No option such as all of the above."""
    bounds = rules.pattern_detection
    equals = {" ".join(words_of(text)) for text in bounds.equals}
    for option in card.options:
        words = words_of(option)
        found = [phrase for phrase in bounds.contains if holds_phrase(words, phrase)]
        if found or " ".join(words) in equals:
            return (
                f"The option {_quoted(option)} is no answer of its own.",
                "Write an answer that could stand alone.",
            )
    return None


def bloom_level(card: DraftCard, topic: Topic, rules: CheckRules) -> Problem | None:
    """The Bloom level suits the kind of question."""
    suiting = {
        str(kind): [str(level) for level in levels] for kind, levels in rules.bloom_level.items()
    }
    levels = suiting.get(card.question_type)
    if levels is None:
        return (
            f"The kind of question is {_quoted(card.question_type)}, so no Bloom level suits it.",
            f"Choose one of: {', '.join(suiting)}.",
        )
    if card.bloom_level in levels:
        return None
    return (
        f"The Bloom level {_quoted(card.bloom_level)} does not suit a {card.question_type} "
        "question.",
        f"Choose one of: {', '.join(levels)}; or ask another kind of question.",
    )


CHECKS: Mapping[CheckName, Check] = {
    "prohibited_phrases": prohibited_phrases,
    "self_contained": self_contained,
    "distractor_diversity": distractor_diversity,
    "distractor_reasoning": distractor_reasoning,
    "length_consistency": length_consistency,
    "edit_distance": edit_distance,
    "domain_coherence": domain_coherence,
    "required_fields": required_fields,
    "answer_quality": answer_quality,
    "parenthetical_giveaways": parenthetical_giveaways,
    "pattern_detection": pattern_detection,
    "bloom_level": bloom_level,
}


# --- helpers


def _plain(text: str) -> str:
    return " ".join(words_of(text)) or text.casefold()


def _similarity(one: str, other: str) -> float:
    return fuzz.token_sort_ratio(_plain(one), _plain(other)) / 100


def _explaining_parentheses(option: str) -> Iterator[str]:
    """Parentheses of an option that are neither an abbreviation beside its full term nor code."""
    for match in _PARENTHESIS.finditer(option):
        inside, before = match[1].strip(), option[: match.start()].split()
        if not inside or _is_abbreviation(inside) or _is_code(match):
            continue
        # MFA (multi-factor authentication) only writes out what MFA is
        if not any(_is_written_out(" ".join(before[-count:])) for count in (1, 2)):
            yield inside


def _is_code(parenthesis: re.Match[str]) -> bool:
    """Whether it stands directly behind something, as in open(path) and names[0]."""
    before = parenthesis.string[: parenthesis.start()]
    return parenthesis[0][0] in "([" and bool(before[-1:].strip())


def _is_abbreviation(text: str) -> bool:
    """Whether a text is one: `MFA`, `IoT`, `CI/CD`, `AES-256`, `TLS 1.3`, `PCI DSS`."""
    first, *rest = text.split() or [""]
    if not _is_short(first):
        return False
    return not rest or (
        len(rest) == 1 and (_is_short(rest[0]) or bool(_VERSION.fullmatch(rest[0])))
    )


def _is_written_out(text: str) -> bool:
    """Whether a text asks for its full term behind it; `PowerShell` is a name, and does not."""
    return _is_abbreviation(text) and 2 * _signs(text) >= sum(map(str.isalnum, text))


def _is_short(word: str) -> bool:
    """Whether a word has two capitals or digits, and is neither a number nor a shouted word."""
    if not _SHORT.fullmatch(word) or _signs(word) < 2 or not any(map(str.isupper, word)):
        return False
    parts = re.split(r"[/.&+-]", word.removesuffix("s"))
    return all(len(part) <= _MAX_CAPITALS or not part.isupper() for part in parts)


def _signs(text: str) -> int:
    return sum(letter.isupper() or letter.isdigit() for letter in text)


def _unexplained(card: DraftCard, topic: Topic) -> set[str]:
    """Abbreviations of the question that neither the card nor the topic's name writes out."""
    known = {*read_words("content.yaml")["known_acronyms"]}
    named = {word.casefold() for word in re.findall(r"\w+", topic.title)}
    everything = " ".join(card.texts)
    found: set[str] = set()
    for match in _ACRONYM.finditer(card.question_text):
        word = match[0].removesuffix("s")
        if word in known or word.casefold() in named:
            continue
        # a code such as AC-1 or ISO 27001 is a name
        after = card.question_text[match.end() : match.end() + 2]
        if re.match(r"[-–:. ]\d", after) or re.search(r"\d", word):
            continue
        pair = rf"[(（]\s*{re.escape(word)}s?\s*[)）]|\b{re.escape(word)}s?\s*[(（]"
        if not re.search(pair, everything):
            found.add(word)
    return found


def _cut(text: str) -> str:
    shown = one_line(text)
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[: _SHOWN_CHARS - 1].rstrip()}…"


def _quoted(text: str) -> str:
    return f"'{_cut(text)}'"


def _listed(texts: list[str]) -> str:
    shown = ", ".join(f"'{text}'" for text in texts[:5])
    return f"{shown} and {len(texts) - 5} more" if len(texts) > 5 else shown

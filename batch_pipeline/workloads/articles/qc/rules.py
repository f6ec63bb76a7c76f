"""What quality control goes by: numbers (thresholds.yaml) and policies (policies.yaml).

What belongs here: their models, and reading them. What does not: the rules (checks.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from batch_pipeline.workloads.articles.package import Language
from batch_pipeline.workloads.articles.qc.report import Severity
from batch_pipeline.workloads.articles.qc.text import parse
from batch_pipeline.workloads.operator_files import read_rules

THRESHOLDS = "thresholds.yaml"
POLICIES = "policies.yaml"
PAGE = "articles-qc.md"

_DOMAIN = re.compile(r"\.?[^\W_]([\w-]*\w)?(\.[^\W_]([\w-]*\w)?)*")


def _domain(value: str) -> str:
    if not _DOMAIN.fullmatch(value):
        raise ValueError(
            f"{value!r} is no domain: write `example.com` for a site with its subdomains, or "
            "`.gov` for everything below an ending, without https:// and without a path"
        )
    return value.casefold()


def _pattern(value: str) -> str:
    if not value.strip("* ") or " " in value:
        raise ValueError(f"{value!r} is no word: write one word, `*` stands for any letters")
    return value.casefold()


def _disclaimer(value: str) -> str:
    parsed = parse(value)
    if [block.text for block in parsed.blocks] != [value] or parsed.links:
        raise ValueError(f"{value!r} must be one line of plain text, without Markdown")
    return value


# What articles for these markets may turn out as; py3langid knows more.
Candidate = Literal[
    "sv", "en", "da", "no", "nn", "fi", "is", "de", "nl", "fr", "es", "it", "pt", "pl", "et", "lv",
    "lt", "cs", "hu", "ro", "tr", "ru", "uk", "el",
]  # fmt: skip
Domain = Annotated[str, AfterValidator(_domain)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LsiBounds(_Block):
    """Terms of the topic near the link."""

    min_terms: NonNegativeInt
    max_terms: PositiveInt
    window_sentences: NonNegativeInt
    autofix_max_terms: NonNegativeInt

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_terms > self.max_terms:
            raise ValueError("min_terms is above max_terms")
        return self


class TrustBounds(_Block):
    """Sources that an article must link to."""

    min_tier_1: NonNegativeInt
    min_total: NonNegativeInt


class WordBounds(_Block):
    """The length of an article."""

    floor: NonNegativeInt
    minimum: PositiveInt
    recommended: PositiveInt
    maximum: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.floor <= self.minimum <= self.recommended <= self.maximum:
            raise ValueError("must hold: floor <= minimum <= recommended <= maximum")
        return self


class LinkBounds(_Block):
    """How often the link stands in an article."""

    min: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min is above max")
        return self


class LanguageBounds(_Block):
    """Telling the language of an article."""

    min_words: PositiveInt
    candidates: Annotated[list[Candidate], Field(min_length=2)]


class Thresholds(_Block):
    """thresholds.yaml."""

    lsi: LsiBounds
    trust: TrustBounds
    words: WordBounds
    link: LinkBounds
    language: LanguageBounds


class Severities(_Block):
    """How bad it is, rule by rule."""

    lsi_missing: Severity
    lsi_surplus: Severity
    trust_none: Severity
    trust_few: Severity
    anchor_high_risk: Severity
    anchor_partial: Severity
    placement_heading: Severity
    placement_outside: Severity
    compliance_missing: Severity
    intent_off: Severity
    words_below_floor: Severity
    words_too_few: Severity
    words_below_recommended: Severity
    words_too_many: Severity
    language_other: Severity
    link_missing: Severity
    link_too_few: Severity
    link_surplus: Severity
    link_wrong_url: Severity
    link_wrong_text: Severity
    link_competitor: Severity


class Signoff(_Block):
    """Which articles a person must sign, and who may."""

    severities: list[Severity]
    verticals: list[str]
    signers: list[str]


class TrustTiers(_Block):
    """Sites that count as sources."""

    tier_1: list[Domain]
    tier_2: list[Domain]


class AnchorWords(_Block):
    """Words of risky link texts."""

    high_risk_single_word: list[Pattern]
    high_risk_exact: list[Pattern]


class Disclaimers(_Block):
    """The text that an article must hold, by its language."""

    sv: Annotated[str, AfterValidator(_disclaimer)]
    en: Annotated[str, AfterValidator(_disclaimer)]


class Vertical(_Block):
    """A regulated line of business."""

    words: Annotated[list[Pattern], Field(min_length=1)]
    # Files from before there were exceptions go on as they are.
    not_words: list[Pattern] = Field(default_factory=list)
    disclaimer: Disclaimers


class Policies(_Block):
    """policies.yaml."""

    stop_before_writing: bool
    signoff: Signoff
    severities: Severities
    trust_sources: dict[str, TrustTiers]
    anchor: AnchorWords
    verticals: dict[str, Vertical]
    competitors: list[Domain]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if "default" not in self.trust_sources:
            raise ValueError("trust_sources needs an entry `default`")
        unknown = sorted(set(self.signoff.verticals) - set(self.verticals))
        if unknown:
            raise ValueError(
                f"signoff.verticals names {', '.join(unknown)}, which is not below verticals"
            )
        return self

    def tiers(self, language: Language) -> TrustTiers:
        """The sources for articles in a language."""
        return self.trust_sources.get(language, self.trust_sources["default"])


class QcRules(_Block):
    """All that quality control goes by."""

    thresholds: Thresholds
    policies: Policies


def load_rules(folder: Path) -> QcRules:
    """The rules of the two files in a folder.

    Raises:
        UsageError: a file is missing, or has something in it that it cannot have.
    """
    return QcRules(
        thresholds=read_rules(folder / THRESHOLDS, Thresholds, PAGE),
        policies=read_rules(folder / POLICIES, Policies, PAGE),
    )

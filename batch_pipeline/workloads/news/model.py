"""The answer for one article.

What belongs here: the output model and its rules. What does not: the prompt (defs/news/prompt.md)
and facts of the input, which nobody has to pay a model for (workload.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from batch_pipeline.workloads.text import one_line


def _names(values: list[str]) -> list[str]:
    """Names without empty ones and without repeats, which differ in case or spaces at most.

    Neither is worth another call: what was meant is plain.
    """
    found: dict[str, str] = {}
    for value in values:
        if name := one_line(value):
            found.setdefault(name.casefold(), name)
    return list(found.values())


def _paragraph(value: str) -> str:
    text = one_line(value)
    if not text:
        raise ValueError("the summary is empty")
    return text


Names = Annotated[list[str], AfterValidator(_names)]
Paragraph = Annotated[str, AfterValidator(_paragraph)]


class NewsClassification(BaseModel):
    """What the model says about one article."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    is_financial: Literal["Yes", "No"] = Field(
        description="'Yes' when the article is about markets, companies, money, prices, trade or "
        "economic policy; else 'No'."
    )
    country: Names = Field(
        description="Countries that the article is about, by their usual English names; empty when "
        "there is none."
    )
    sector: Names = Field(
        description="Economic sectors that the article is about, for example 'Technology' or "
        "'Banking'; empty when there is none."
    )
    companies: Names = Field(
        description="Companies and stock indices that the article is about, as it names them; "
        "empty when there is none."
    )
    sentiment: Literal["Positive", "Negative", "Neutral"] = Field(
        description="Mood of the news for those it concerns."
    )
    confident_score: float = Field(
        ge=1,
        le=10,
        description="How sure you are of all answers above, from 1.0 (a guess) to 10.0 (certain).",
    )
    summary_en: Paragraph = Field(description="Summary in English, 2 to 3 sentences.")
    summary_tr: Paragraph = Field(description="Summary in Turkish, 2 to 3 sentences.")

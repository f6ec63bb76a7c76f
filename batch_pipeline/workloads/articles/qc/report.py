"""What quality control says of an article.

What belongs here: the report's models and the verdict. What does not: the rules (checks.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Category = Literal[
    "lsi",
    "trust_sources",
    "anchor",
    "placement",
    "compliance",
    "intent",
    "word_count",
    "language",
    "link",
]
Severity = Literal["LOW", "MEDIUM", "HIGH", "CRITICAL"]
Status = Literal["PASS", "WARNING", "BLOCKED"]

SEVERITIES: tuple[Severity, ...] = ("LOW", "MEDIUM", "HIGH", "CRITICAL")
"""From the least to the worst."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Issue(_Part):
    """One thing that is wrong with an article."""

    category: Category
    severity: Severity
    message: str = Field(description="What is wrong, in plain words.")
    details: dict[str, Any] = Field(default_factory=dict)
    auto_fixable: bool = False
    fix_suggestion: str = ""


class QcReport(_Part):
    """What quality control says of an article."""

    job_id: str
    status: Status
    issues: list[Issue] = Field(description="The worst first.")
    autofix_done: bool = False
    autofix_logs: list[str] = Field(default_factory=list)
    human_signoff_required: bool = False
    signoff_reason: str = ""
    timestamp: str = Field(description="ISO 8601 in UTC.")
    checks: dict[Category, dict[str, Any]] = Field(
        description="By category: what was measured, and the bounds that it was held against."
    )


def verdict(issues: Iterable[Issue]) -> Status:
    """The worst issue decides: CRITICAL and HIGH block, MEDIUM warns, LOW passes."""
    worst = max((SEVERITIES.index(issue.severity) for issue in issues), default=0)
    return "BLOCKED" if worst >= 2 else "WARNING" if worst == 1 else "PASS"

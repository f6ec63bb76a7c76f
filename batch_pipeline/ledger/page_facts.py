"""What a page says of itself besides its text: description, headings, language, site.

What belongs here: the record, light enough for the processes that make it. What does not: finding
it in HTML (fetch/facts.py), keeping it (pages.py).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PageFacts(BaseModel):
    """What a page says of itself; all of it is the site's own word, and may be empty."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    description: str = Field(default="", description="Meta or Open Graph description.")
    h1: str = Field(default="", description="The first heading.")
    headings: list[str] = Field(default_factory=list, description="h2 and h3, at most 20.")
    language: str = Field(default="", description="Declared language, such as sv or en-US.")
    site_name: str = Field(default="", description="Open Graph site name.")

"""What models answer in the steps of an article.

What belongs here: the output models of its LLM steps. What does not: prompts (defs/articles),
which step follows which (steps.py).
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from batch_pipeline.search.intents import Intent
from batch_pipeline.workloads.articles.package import AnchorType, Tone


class PublisherTone(BaseModel):
    """What a publisher sounds like."""

    tone_class: Tone
    topic_focus: list[str] = Field(max_length=10, description="What the site writes about.")


class TargetTopics(BaseModel):
    """What a page is about."""

    core_entities: list[str] = Field(max_length=10, description="Names: brands, products, places.")
    core_topics: list[str] = Field(max_length=10, description="Subjects, two or three words each.")


class AnchorClass(BaseModel):
    """What a link text is."""

    anchor_type: AnchorType
    intent: Intent


class Section(BaseModel):
    """A part of an article."""

    heading: str = Field(min_length=1)
    points: list[str] = Field(min_length=1, max_length=6, description="What it says.")


class Outline(BaseModel):
    """The plan of an article."""

    title: str = Field(min_length=1)
    sections: list[Section] = Field(min_length=3, max_length=8)


class Article(BaseModel):
    """An article."""

    title: str = Field(min_length=1, description="Its headline, without the link.")
    markdown: str = Field(
        min_length=1,
        description="The whole article in Markdown: `# ` title, `## ` sections, paragraphs.",
    )

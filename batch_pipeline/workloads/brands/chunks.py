"""What a vector store takes of a brand: twelve texts, its entities and relations, a manifest.

What belongs here: these documents and their models. What does not: writing files (files.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.pricing.tokens import estimate_tokens
from batch_pipeline.workloads.brands.record import BrandRecord
from batch_pipeline.workloads.brands.sections import (
    Facts,
    Labels,
    Section,
    Table,
    Texts,
    labels_in,
    sections_of,
)
from batch_pipeline.workloads.brands.text import comparable

EntityType = Literal[
    "brand", "company", "shareholder", "product", "service", "industry", "category", "audience",
    "channel",
]  # fmt: skip
RelationType = Literal[
    "parent_company", "ultimate_parent", "subsidiary", "sister_brand", "affiliate", "competitor",
    "similar", "complementary", "shareholder", "brand_family", "industry", "sells", "offers",
    "partner", "audience", "channel",
]  # fmt: skip
Hex = Field(pattern="^[0-9a-f]{64}$")


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Entity(_Document):
    """One line of entities.jsonl."""

    id: str = Field(pattern="^[a-z]+:[0-9a-f]{16}$", description="The same in every brand's files.")
    type: EntityType
    name: str = Field(min_length=1)
    name_fa: str = ""
    brand: str = Field(description="In whose files it stands.")
    simulated: bool
    category: str = ""
    description: str = ""


class Relation(_Document):
    """One edge of relationships.json, between ids of entities.jsonl."""

    source: str
    target: str
    type: RelationType
    share_percent: float | None = None
    potential: str = ""
    reason: str = ""


class RelationsDocument(_Document):
    """relationships.json."""

    brand: str
    brand_id: str
    simulated: bool
    parent_company: str
    ultimate_parent: str
    verification: str
    relations: list[Relation]


class ChunkEntry(_Document):
    """One text in the manifest."""

    id: str
    number: int = Field(ge=1, le=12)
    section: str
    title: str
    file: str
    characters: int
    estimated_tokens: int
    has_content: bool = Field(description="False: it says that nothing is known. Do not embed it.")
    sha256: str = Hex


class EmbeddingManifest(_Document):
    """embedding_manifest.json: what there is to embed."""

    brand: str
    brand_id: str
    language: Literal["en", "fa"]
    simulated: bool
    chunk_count: int
    chunks: list[ChunkEntry]
    entities_file: str
    entity_count: int
    relationships_file: str
    relation_count: int
    metadata_file: str


@dataclass(frozen=True, slots=True)
class TextChunk:
    """One text.

    Attributes:
        number: from 1 to 12.
        section: what it is about.
        text: plain text, which says whose it is in its first line.
    """

    number: int
    section: Section
    text: str

    @property
    def file_name(self) -> str:
        """`001_overview.txt`."""
        return f"{self.number:03d}_{self.section.name}.txt"


def text_chunks(record: BrandRecord) -> list[TextChunk]:
    """The twelve texts of a brand, always all of them, so that their ids stay."""
    labels = labels_in(record.language)
    return [
        TextChunk(number, section, _plain(record, section, labels))
        for number, section in enumerate(sections_of(record), start=1)
    ]


def entities_of(record: BrandRecord) -> list[Entity]:
    """All that a brand's answers name, each once; the brand itself comes first."""
    found: dict[str, Entity] = {}
    for entity in _entities(record):
        found.setdefault(entity.id, entity)
    return list(found.values())


def relations_of(record: BrandRecord) -> RelationsDocument:
    """How the entities of a brand are related to it."""
    relations = record.relationships
    found: dict[tuple[str, str], Relation] = {}
    for relation in _relations(record):
        if relation.source != relation.target:
            found.setdefault((relation.target, relation.type), relation)
    return RelationsDocument(
        brand=record.brand_name,
        brand_id=brand_id(record),
        simulated=record.simulated,
        parent_company=record.parent,
        ultimate_parent=relations.ultimate_parent,
        verification=relations.parent_company_verification.verdict,
        relations=list(found.values()),
    )


def manifest_of(
    record: BrandRecord,
    chunks: Sequence[TextChunk],
    entities: Sequence[Entity],
    relations: RelationsDocument,
) -> EmbeddingManifest:
    """What there is to embed, with a hash of every text."""
    return EmbeddingManifest(
        brand=record.brand_name,
        brand_id=brand_id(record),
        language="fa" if record.language == "fa" else "en",
        simulated=record.simulated,
        chunk_count=len(chunks),
        chunks=[
            ChunkEntry(
                id=f"{record.item_id}/{chunk.number:03d}",
                number=chunk.number,
                section=chunk.section.name,
                title=chunk.section.title,
                file=f"chunks/{chunk.file_name}",
                characters=len(chunk.text),
                estimated_tokens=estimate_tokens(chunk.text),
                has_content=bool(chunk.section.blocks),
                sha256=hashlib.sha256(chunk.text.encode()).hexdigest(),
            )
            for chunk in chunks
        ],
        entities_file="entities.jsonl",
        entity_count=len(entities),
        relationships_file="relationships.json",
        relation_count=len(relations.relations),
        metadata_file="metadata.json",
    )


def brand_id(record: BrandRecord) -> str:
    """The id of the brand's own entity."""
    return entity_id("brand", record.brand_name)


def entity_id(kind: str, name: str) -> str:
    """The id of an entity: the same for all spellings of its name."""
    return f"{kind}:{hashlib.sha256(comparable(name).encode()).hexdigest()[:16]}"


def _entities(record: BrandRecord) -> Iterator[Entity]:
    relations, industry = record.relationships, record.categorization.primary_industry

    def made(kind: EntityType, name: str, **more: str) -> Iterator[Entity]:
        if name:
            yield Entity(
                id=entity_id(kind, name),
                type=kind,
                name=name,
                brand=record.brand_name,
                simulated=record.simulated,
                **more,
            )

    yield from made("brand", record.brand_name, category=" > ".join(record.levels))
    yield from made("company", record.parent)
    yield from made("company", relations.ultimate_parent)
    for relation, one in record.related:
        yield from made(
            _kind_of(relation),
            one.name,
            name_fa=one.name_fa,
            category=one.category,
            description=one.reason,
        )
        yield from made("company", one.parent_company)
    for name in relations.brand_family:
        yield from made("brand", name)
    for holder in relations.shareholders:
        yield from made("shareholder", holder.name)
    name = industry.name_en or industry.name_fa or industry.level_1
    yield from made("industry", name, name_fa=industry.name_fa)
    for category in (*record.categorization.product_categories, *record.product_catalog.categories):
        yield from made("category", category)
    for product in record.product_catalog.products:
        yield from made(
            "product", product.name, category=product.category, description=product.description
        )
    for service in record.product_catalog.services:
        yield from made(
            "service", service.name, category=service.category, description=service.description
        )
    for partner in record.insights.cross_promotion_opportunities:
        yield from made("brand", partner.partner_brand, description=partner.rationale)
    for audience in record.categorization.target_audiences:
        yield from made("audience", audience)
    for channel in record.categorization.distribution_channels:
        yield from made("channel", channel)


def _relations(record: BrandRecord) -> Iterator[Relation]:
    relations, industry = record.relationships, record.categorization.primary_industry
    source = brand_id(record)

    def made(
        relation: RelationType,
        kind: EntityType,
        name: str,
        share: float | None = None,
        potential: str = "",
        reason: str = "",
    ) -> Iterator[Relation]:
        if name:
            yield Relation(
                source=source,
                target=entity_id(kind, name),
                type=relation,
                share_percent=share,
                potential=potential,
                reason=reason,
            )

    yield from made("parent_company", "company", record.parent)
    yield from made("ultimate_parent", "company", relations.ultimate_parent)
    for relation, one in record.related:
        yield from made(
            _RELATIONS[relation],
            _kind_of(relation),
            one.name,
            potential=one.cross_sell_potential,
            reason=one.reason,
        )
    for name in relations.brand_family:
        yield from made("brand_family", "brand", name)
    for holder in relations.shareholders:
        yield from made("shareholder", "shareholder", holder.name, holder.share_percent)
    name = industry.name_en or industry.name_fa or industry.level_1
    yield from made("industry", "industry", name)
    for product in record.product_catalog.products:
        yield from made("sells", "product", product.name)
    for service in record.product_catalog.services:
        yield from made("offers", "service", service.name)
    for partner in record.insights.cross_promotion_opportunities:
        yield from made("partner", "brand", partner.partner_brand, reason=partner.rationale)
    for audience in record.categorization.target_audiences:
        yield from made("audience", "audience", audience)
    for channel in record.categorization.distribution_channels:
        yield from made("channel", "channel", channel)


_RELATIONS: dict[str, RelationType] = {
    "subsidiary": "subsidiary",
    "sister_brand": "sister_brand",
    "affiliate": "affiliate",
    "competitor": "competitor",
    "similar": "similar",
    "complementary": "complementary",
}


def _kind_of(relation: str) -> EntityType:
    return "company" if relation in ("subsidiary", "affiliate") else "brand"


def _plain(record: BrandRecord, section: Section, labels: Labels) -> str:
    """A section as plain text. Its first line stands alone in a search result."""
    simulated = f"[{labels.simulated}]\n\n" if record.simulated else ""
    parts = [f"{record.brand_name}: {section.title}"]
    for block in section.blocks:
        match block:
            case Facts(entries):
                parts.append("\n".join(f"{name}: {value}" for name, value in entries))
            case Texts(title, texts, bullets):
                lines = [f"- {text}" for text in texts] if bullets else list(texts)
                body = ("\n" if bullets else "\n\n").join(lines)
                parts.append(f"{title}:\n{body}" if title else body)
            case Table(title, columns, rows):
                parts.append("\n".join([f"{title}:", *(_plain_row(columns, row) for row in rows)]))
    if not section.blocks:
        parts.append(labels.nothing_known)
    return simulated + "\n\n".join(parts) + "\n"


def _plain_row(columns: Sequence[str], row: Sequence[str]) -> str:
    first, *rest = zip(columns, row, strict=True)
    told = "; ".join(f"{name}: {value.rstrip('.')}" for name, value in rest if value)
    return f"- {first[1]} ({told})" if told else f"- {first[1]}"

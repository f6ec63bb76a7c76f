"""The files of a brand: reports, tables, texts for a vector store, each whole or not there.

What belongs here: names of folders and files, writing, removing what holds no more, the documents
quick_reference.json and metadata.json. What does not: what reports say (sections.py, pages.py) and
what a vector store takes (chunks.py).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.sinks.files import replaced_file, write_csv
from batch_pipeline.workloads.brands.chunks import (
    entities_of,
    manifest_of,
    relations_of,
    text_chunks,
)
from batch_pipeline.workloads.brands.models import BusinessModel, MarketPosition, PriceTier
from batch_pipeline.workloads.brands.pages import complete_report, executive_summary, html_report
from batch_pipeline.workloads.brands.record import BrandRecord, category_levels
from batch_pipeline.workloads.brands.text import as_written, comparable

REPORTS, EXPORTS, VECTORS = "human_reports", "data_exports", "vector_database"
CHUNKS = f"{VECTORS}/chunks"
METADATA = f"{VECTORS}/metadata.json"

BRAND_COLUMNS = (
    "brand_name", "relationship_type", "parent_company", "category", "category_level_1",
    "category_level_2", "category_level_3", "cross_sell_potential", "market_position", "price_tier",
)  # fmt: skip
CATALOG_COLUMNS = ("product_name", "category", "description", "target_market")
CAMPAIGN_COLUMNS = (
    "partner_brand", "rationale", "potential_reach", "recommended_approach", "timing",
)  # fmt: skip

FIXED_FILES = (
    f"{REPORTS}/6_executive_summary.md",
    f"{REPORTS}/complete_analysis_report.md",
    f"{REPORTS}/brand_report.html",
    f"{REPORTS}/quick_reference.json",
    f"{EXPORTS}/3_brands_database.csv",
    f"{EXPORTS}/product_catalog.csv",
    f"{EXPORTS}/campaign_opportunities.csv",
    f"{VECTORS}/entities.jsonl",
    f"{VECTORS}/relationships.json",
    f"{VECTORS}/embedding_manifest.json",
    METADATA,
)
"""Every file but the texts, below a brand's folder."""

SELF = "brand"
"""`relationship_type` of the brand itself, the first row of 3_brands_database.csv."""

_CHUNK_NAME = re.compile(r"\d{3}_\w+\.txt")
_TOP = 5

# What some disk does not take in a name, or a shell takes for something else.
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*~\x00-\x1f\x7f-\x9f\u2028\u2029]+')
_WINDOWS_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_MAX_NAME_BYTES = 120
"""Of a folder: with the files below it, paths stay short enough for every system."""


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class QuickReference(_Document):
    """quick_reference.json: the brand on one page."""

    brand_name: str
    website: str
    parent_company: str
    ultimate_parent: str
    industry: str
    industry_fa: str
    category_levels: list[str]
    business_model: BusinessModel
    price_tier: PriceTier
    market_position: MarketPosition
    total_products: int | None
    top_products: list[str] = Field(max_length=_TOP)
    top_competitors: list[str] = Field(max_length=_TOP)
    top_partners: list[str] = Field(max_length=_TOP)
    target_audiences: list[str]
    distribution_channels: list[str]
    summary: str
    simulated: bool
    made_at: str


class SourceEntry(_Document):
    """A page that the research found."""

    title: str
    url: str


class FileEntry(_Document):
    """A file of the brand."""

    path: str
    bytes: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Metadata(_Document):
    """metadata.json: written last, so that what it lists is there and belongs together."""

    brand_name: str
    website: str
    parent_company: str
    batch_id: str
    item_id: str
    row: int
    made_at: str
    simulated: bool
    language: Literal["en", "fa"]
    direction: Literal["ltr", "rtl"]
    models: dict[str, str]
    sources: list[SourceEntry]
    set_aside: dict[str, int] = Field(
        description="Step -> parts of its answer that could not be read or were not asked for."
    )
    files: list[FileEntry]


def folder_names(brands: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A folder for each brand of a batch, by item id: its name, made safe for every disk.

    Names that some disk takes for the same (in case, composition or width) all get `~` and a part
    of a hash behind them, so that none of them depends on the order of rows.

    Args:
        brands: item id and brand name of every row.
    """
    safe = {item_id: _safe_name(name) for item_id, name in brands}
    counts = Counter(map(_folded, safe.values()))
    return {
        item_id: name if counts[_folded(name)] == 1 else f"{name}~{_digest(item_id)}"
        for item_id, name in safe.items()
    }


def write_brand_files(folder: Path, record: BrandRecord, *, bom: bool = False) -> list[Path]:
    """Write all files of a brand; files of an earlier run that it has no more are removed.

    Args:
        folder: the brand's folder; created where absent, for its owner only.
        record: the brand.
        bom: whether CSV starts with a byte order mark, which older Excel needs for Persian.

    Returns:
        The files, metadata.json last.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in (REPORTS, EXPORTS, VECTORS, CHUNKS):
        # one by one: parents that mkdir adds by itself are open to others
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    contents = dict(_contents(record, bom))
    contents[METADATA] = _json(_metadata(record, contents))
    names = list(contents)
    # A replaced file costs milliseconds, and most files of a batch are as they were.
    changed = [name for name in names if not _holds(folder / name, contents[name])]
    stale = [old for old in _own_files(folder) if old.relative_to(folder).as_posix() not in names]
    if changed or stale:
        # While files change, nothing says that they belong together.
        (folder / METADATA).unlink(missing_ok=True)
        for old in stale:
            old.unlink(missing_ok=True)
        for name in [*(name for name in changed if name != METADATA), METADATA]:
            with replaced_file(folder / name) as temporary:
                temporary.write_bytes(contents[name])
    return [folder / name for name in names]


def remove_brand_files(folder: Path) -> None:
    """Remove a brand's files; what a person put beside them stays, and the folders around it."""
    (folder / METADATA).unlink(missing_ok=True)
    for path in _own_files(folder):
        path.unlink(missing_ok=True)
    for name in (CHUNKS, VECTORS, EXPORTS, REPORTS, "."):
        here = folder / name
        if here.is_dir() and not any(here.iterdir()):
            here.rmdir()


def remove_other_brands(root: Path, kept: Collection[str]) -> list[str]:
    """Remove the files of brands that a batch has no result of any more.

    Args:
        root: the folder that holds the brands' folders.
        kept: names of those that stay.

    Returns:
        The names of the folders that were emptied.
    """
    if not root.is_dir():
        return []
    folded = set(map(_folded, kept))
    gone = [
        folder
        for folder in sorted(root.iterdir())
        if folder.is_dir()
        and not folder.is_symlink()
        and _folded(folder.name) not in folded
        and any(_own_files(folder))
    ]
    for folder in gone:
        remove_brand_files(folder)
    return [folder.name for folder in gone]


def brand_rows(record: BrandRecord) -> Iterator[dict[str, str]]:
    """Rows of 3_brands_database.csv: the brand, then every related one."""
    categories = record.categorization
    levels = (record.levels + [""] * 3)[:3]
    yield dict(
        zip(
            BRAND_COLUMNS,
            (
                record.brand_name,
                SELF,
                record.parent,
                record.levels[-1] if record.levels else categories.primary_industry.name_en,
                *levels,
                "",
                categories.market_position,
                categories.price_tier,
            ),
            strict=True,
        )
    )
    for relation, one in record.related:
        levels = category_levels(one.category)
        yield dict(
            zip(
                BRAND_COLUMNS,
                (
                    one.name,
                    relation,
                    one.parent_company,
                    next((level for level in reversed(levels) if level), ""),
                    *levels,
                    one.cross_sell_potential,
                    one.market_position,
                    one.price_tier,
                ),
                strict=True,
            )
        )


def catalog_rows(record: BrandRecord) -> Iterator[dict[str, str]]:
    """Rows of product_catalog.csv: products, then services."""
    for entry in (*record.product_catalog.products, *record.product_catalog.services):
        yield {
            "product_name": entry.name,
            "category": entry.category,
            "description": entry.description,
            "target_market": entry.target_market,
        }


def campaign_rows(record: BrandRecord) -> Iterator[dict[str, str]]:
    """Rows of campaign_opportunities.csv."""
    for one in record.insights.cross_promotion_opportunities:
        yield {name: getattr(one, name) for name in CAMPAIGN_COLUMNS}


def _contents(record: BrandRecord, bom: bool) -> Iterator[tuple[str, bytes]]:
    """Every file but metadata.json."""
    yield f"{REPORTS}/6_executive_summary.md", executive_summary(record).encode()
    yield f"{REPORTS}/complete_analysis_report.md", complete_report(record).encode()
    yield f"{REPORTS}/brand_report.html", html_report(record).encode()
    yield f"{REPORTS}/quick_reference.json", _json(_quick_reference(record))
    yield from _tables(record, bom)
    chunks, entities, relations = text_chunks(record), entities_of(record), relations_of(record)
    for chunk in chunks:
        yield f"{CHUNKS}/{chunk.file_name}", chunk.text.encode()
    lines = (orjson.dumps(one.model_dump(), option=orjson.OPT_APPEND_NEWLINE) for one in entities)
    yield f"{VECTORS}/entities.jsonl", b"".join(lines)
    yield f"{VECTORS}/relationships.json", _json(relations)
    manifest = manifest_of(record, chunks, entities, relations)
    yield f"{VECTORS}/embedding_manifest.json", _json(manifest)


def _tables(record: BrandRecord, bom: bool) -> Iterator[tuple[str, bytes]]:
    tables: Mapping[str, tuple[Sequence[str], Iterator[dict[str, str]]]] = {
        "3_brands_database.csv": (BRAND_COLUMNS, brand_rows(record)),
        "product_catalog.csv": (CATALOG_COLUMNS, catalog_rows(record)),
        "campaign_opportunities.csv": (CAMPAIGN_COLUMNS, campaign_rows(record)),
    }
    with TemporaryDirectory() as temporary:
        for name, (columns, rows) in tables.items():
            path = Path(temporary) / name
            write_csv(path, columns, rows, bom=bom)
            yield f"{EXPORTS}/{name}", path.read_bytes()


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _quick_reference(record: BrandRecord) -> QuickReference:
    categories, insights = record.categorization, record.insights
    return QuickReference(
        brand_name=record.brand_name,
        website=record.website,
        parent_company=record.parent,
        ultimate_parent=record.relationships.ultimate_parent,
        industry=categories.primary_industry.name_en,
        industry_fa=categories.primary_industry.name_fa,
        category_levels=record.levels,
        business_model=categories.business_model,
        price_tier=categories.price_tier,
        market_position=categories.market_position,
        total_products=record.product_catalog.total_products,
        top_products=[one.name for one in record.product_catalog.products[:_TOP]],
        top_competitors=[one.name for one in record.relationships.competitors[:_TOP]],
        top_partners=[one.partner_brand for one in insights.cross_promotion_opportunities[:_TOP]],
        target_audiences=categories.target_audiences,
        distribution_channels=categories.distribution_channels,
        summary=insights.executive_summary.partition("\n\n")[0],
        simulated=record.simulated,
        made_at=record.made,
    )


def _metadata(record: BrandRecord, contents: Mapping[str, bytes]) -> Metadata:
    return Metadata(
        brand_name=record.brand_name,
        website=record.website,
        parent_company=record.parent_company,
        batch_id=record.batch_id,
        item_id=record.item_id,
        row=record.number,
        made_at=record.made,
        simulated=record.simulated,
        language="fa" if record.language == "fa" else "en",
        direction=record.direction,
        models=dict(record.models),
        sources=[SourceEntry(title=one.title, url=one.url) for one in record.sources],
        set_aside=record.set_aside,
        files=[
            FileEntry(path=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        ],
    )


def _own_files(folder: Path) -> Iterator[Path]:
    """Files that this module has written there, now or earlier."""
    for name in FIXED_FILES:
        if (folder / name).is_file():
            yield folder / name
    chunks = folder / CHUNKS
    if chunks.is_dir():
        yield from (path for path in chunks.iterdir() if _CHUNK_NAME.fullmatch(path.name))


def _json(document: BaseModel) -> bytes:
    values: Mapping[str, Any] = document.model_dump(mode="json")
    return orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _safe_name(brand: str) -> str:
    name = _NOT_IN_NAMES.sub("_", as_written(brand).replace("\n", " "))
    # a name may begin with a dot (.NET), a file that does is hidden
    name = name.strip(" ").rstrip(". ")
    name = f"_{name.lstrip('.')}" if name.startswith(".") else name
    name = name.encode()[:_MAX_NAME_BYTES].decode("utf-8", "ignore").rstrip(". \u200c\u200d")
    if _WINDOWS_NAMES.fullmatch(name):
        name = f"_{name}"
    return name if name.strip("_ ") else "brand"


def _folded(name: str) -> str:
    """What names have in common that some disk, or an eye, takes for the same."""
    return comparable(unicodedata.normalize("NFKD", name))


def _digest(item_id: str) -> str:
    return hashlib.sha256(item_id.encode()).hexdigest()[:10]

"""What the ledger keeps of a brand: the documents of its local steps.

What belongs here: their models, and the finished brand made of one. What does not: making them
(steps.py), storing them (ledger/documents.py).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.ledger.batches import Batch, Item
from batch_pipeline.settings import Realm
from batch_pipeline.workloads.brands.models import (
    Categorization,
    Insights,
    ProductCatalog,
    Relationships,
)
from batch_pipeline.workloads.brands.record import BrandRecord, Source
from batch_pipeline.workloads.brands.rows import BRAND, PARENT, WEBSITE

COLLECTION = "collection"
RECORD = "record"
"""Names of the local steps: their documents go by them."""


class FoundPage(BaseModel):
    """A page that the research found, its text cut to a bound."""

    model_config = ConfigDict(frozen=True)

    title: str
    url: str
    text: str


class CollectionDocument(BaseModel):
    """Document of the step `collection`: what the searches found.

    Attributes:
        pages: each page once, the best of every search first.
        notes: searches that had no answer, in words.
    """

    pages: list[FoundPage] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class FoundSource(BaseModel):
    """A page that the research found, without its text."""

    model_config = ConfigDict(frozen=True)

    title: str
    url: str


class RecordDocument(BaseModel):
    """Document of the step `record`: what a finished brand is, besides its row.

    Attributes:
        relationships: answer of the step, like the next three.
        sources: what the research found.
        notes: what was missing in the research.
        models: step -> `provider/model` that answered.
        made_at: when it was finished (UTC seconds).
        folder: the brand's folder, below that of its batch.
        csv_bom: whether its CSV files start with a byte order mark.
    """

    relationships: Relationships
    categorization: Categorization
    product_catalog: ProductCatalog
    insights: Insights
    sources: list[FoundSource] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    models: dict[str, str] = Field(default_factory=dict)
    made_at: float
    folder: str
    csv_bom: bool = False

    @property
    def set_aside(self) -> int:
        """Parts of its answers that could not be read or were not asked for."""
        answers = (self.relationships, self.categorization, self.product_catalog, self.insights)
        return sum(len(answer.set_aside) for answer in answers)

    def record(self, batch: Batch, item: Item, realm: Realm) -> BrandRecord:
        """The finished brand, of which its files are made."""
        return BrandRecord(
            brand_name=item.row[BRAND],
            website=item.row[WEBSITE],
            parent_company=item.row[PARENT],
            batch_id=batch.batch_id,
            item_id=item.item_id,
            number=item.number,
            made_at=self.made_at,
            simulated=realm == "simulated",
            relationships=self.relationships,
            categorization=self.categorization,
            product_catalog=self.product_catalog,
            insights=self.insights,
            sources=[Source(one.title, one.url) for one in self.sources],
            models=self.models,
        )

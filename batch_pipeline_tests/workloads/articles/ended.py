"""A small ledger with article jobs in every state, written by hand.

What belongs here: short ways to write rows, documents, attempts and decisions. What does not:
assertions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from batch_pipeline.clock import SystemClock
from batch_pipeline.ledger.batches import NewItem, ingest
from batch_pipeline.ledger.documents import KEEP_DOCUMENT, KeepDocument
from batch_pipeline.ledger.tables import Outcome, attempts, items, reviews, runs
from batch_pipeline.settings import Realm
from batch_pipeline.workloads.articles.models import Article
from batch_pipeline.workloads.articles.package import JobPackage, Strategy
from batch_pipeline.workloads.articles.qc.report import Issue, QcReport, Status
from batch_pipeline.workloads.articles.record import LogEntry, PackageRecord, QcRecord, iso, job_id
from batch_pipeline_tests.ledger.books import open_ledger

START = 1_793_880_000.0  # 2026-11-05 12:00:00 UTC
MODEL = "anthropic/claude-haiku-4-5"
ARTICLE = "# Rubrik\n\nText med [länk](https://example.com/p) i mitten.\n"


class SetClock(SystemClock):
    """A clock that stands where a test puts it."""

    def __init__(self) -> None:
        super().__init__()
        self.at = START

    def now(self) -> float:
        """Where it stands."""
        return self.at


class Books:
    """One ledger with one batch of article jobs.

    Args:
        where: a folder for its database, or a URL.
        rows: how many jobs; the odd ones are single_shot.
        realm: the ledger's realm.
    """

    def __init__(self, where: Path | str, rows: int, realm: Realm = "live") -> None:
        self.clock = SetClock()
        self.ledger = open_ledger(where, realm, self.clock)
        self.batch, _ = ingest(
            self.ledger,
            batch_id="client",
            workload="articles",
            table_name="client",
            source="client.csv",
            columns=[],
            rows=(NewItem(f"item-{at}", at + 1, row(at)) for at in range(rows)),
            options={},
            chunk_size=1_000,
            launch="door",
            warnings=[],
        )
        self._attempts = 0

    def job_id(self, ordinal: int) -> str:
        """The job's id."""
        return job_id(self.batch.batch_id, self.batch.created_at, f"item-{ordinal}")

    def run(self, run_id: str, began: float, ended: float, **settings: Any) -> None:
        """A run that is over; times are seconds after START."""
        with self.ledger.write() as connection:
            connection.execute(
                runs.insert(),
                {
                    "run_id": run_id,
                    "realm": self.ledger.realm,
                    "workload": "articles",
                    "batch_id": self.batch.batch_id,
                    "owner_id": "gone",
                    "settings": orjson.dumps(settings).decode(),
                    "status": "done",
                    "message": "",
                    "started_at": START + began,
                    "ended_at": START + ended,
                    "summary": "{}",
                },
            )

    def call(self, ordinals: Sequence[int], step: str, at: float, **fields: Any) -> None:
        """An attempt about these jobs, two seconds long; `at` is seconds after START."""
        self._attempts += 1
        number = self._attempts
        values = {
            "attempt_id": f"a{number:05d}",
            "realm": self.ledger.realm,
            "workload": "articles",
            "step": step,
            "batch_id": self.batch.batch_id,
            "run_id": "run-1",
            "request_id": f"r{number}",
            "parent_request_id": None,
            "reason": "first",
            "provider": "anthropic",
            "model": MODEL,
            "key_id": "…abcd",
            "lane": "realtime",
            "state": "settled",
            "owner_id": "gone",
            "item_count": len(ordinals),
            "members": orjson.dumps([[at, f"{step}-{at}"] for at in ordinals]).decode(),
            "estimated_input_tokens": 100,
            "worst_nano": 10_000_000,
            "rate_wait_s": 0.5,
            "sent_at": START + at,
            "deadline_at": START + at + 60,
            "settled_at": START + at + 2,
            "status": 200,
            "answered_model": MODEL,
            "input_tokens": 1_001,
            "cached_input_tokens": 100,
            "output_tokens": 501,
            "cost_nano": 1_000_003,
            "latency_s": 2.0,
        }
        with self.ledger.write() as connection:
            connection.execute(attempts.insert(), {**values, **fields})

    def keep(self, ordinal: int, step: str, at: float, content: Any, outcome: Outcome) -> None:
        """A document, `at` seconds after START."""
        self.clock.at = START + at  # the writer stamps what it writes
        document = KeepDocument(
            realm=self.ledger.realm,
            batch_id=self.batch.batch_id,
            ordinal=ordinal,
            step=step,
            outcome=outcome,
            content=content if isinstance(content, dict) else content.model_dump(mode="json"),
            run_id="run-1",
        )
        self.ledger.writer.submit(KEEP_DOCUMENT, document).result(60)

    def end(self, ordinal: int, outcome: Outcome, at: float, **fields: Any) -> None:
        """What a job came to."""
        with self.ledger.write() as connection:
            connection.execute(
                items.update()
                .where(items.c.ordinal == ordinal)
                .values(outcome=outcome.value, settled_at=START + at, **fields)
            )

    def decide(self, ordinal: int, decision: str, at: float, sequence: int = 1) -> None:
        """A person's decision."""
        with self.ledger.write() as connection:
            connection.execute(
                reviews.insert(),
                {
                    "realm": self.ledger.realm,
                    "batch_id": self.batch.batch_id,
                    "ordinal": ordinal,
                    "sequence": sequence,
                    "decision": decision,
                    "reviewer": "Anna",
                    "reason": "good enough",
                    "signed_off": True,
                    "details": "{}",
                    "decided_at": START + at,
                },
            )

    def write(
        self, ordinal: int, at: float, status: Status = "PASS", repaired: bool = False
    ) -> None:
        """All of a job: package, calls of its strategy, QC; it ends by its verdict."""
        strategy: Strategy = "single_shot" if ordinal % 2 else "multi_stage"
        self.clock.at = START + at + 1
        self.keep(ordinal, "package", at + 1, self.package(ordinal), Outcome.SUCCEEDED)
        steps = ["single_shot"] if ordinal % 2 else ["outline", "draft", "polish"]
        for place, step in enumerate(steps):
            self.call([ordinal], step, at + 2 + 3 * place)
        ended = at + 20
        outcome = Outcome.BLOCKED if status == "BLOCKED" else Outcome.SUCCEEDED
        report = self.report(ordinal, status)
        record = QcRecord(
            article=Article(title="Rubrik", markdown=ARTICLE),
            report=report,
            first_report=self.report(ordinal, "WARNING") if repaired else None,
            strategy=strategy,
            model=MODEL,
        )
        self.keep(ordinal, "qc", ended, record, outcome)
        blocked = {"error": "Too few sources.", "error_kind": "qc"}
        self.end(ordinal, outcome, ended, **(blocked if outcome is Outcome.BLOCKED else {}))

    def package(self, ordinal: int) -> PackageRecord:
        """A job's package."""
        return PackageRecord(
            package=JobPackage.model_validate(package(self.job_id(ordinal))),
            log=[LogEntry(at=iso(self.clock.now() - 1), type="info", message="SERP: 4 searches.")],
        )

    def report(self, ordinal: int, status: Status) -> QcReport:
        """A QC report."""
        issue = Issue(category="trust_sources", severity="HIGH", message="Too few sources.")
        return QcReport(
            job_id=self.job_id(ordinal),
            status=status,
            issues=[issue] if status == "BLOCKED" else [],
            timestamp=iso(self.clock.now()),
            checks={},
        )


def row(at: int) -> dict[str, Any]:
    """A row as the input reader gives it."""
    return {
        "publisher": f"publisher-{at}.se",
        "target": f"https://example.com/p{at}",
        "anchor": f"länk {at}",
        "llm_provider": "anthropic" if at % 2 else "auto",
        "strategy": "single_shot" if at % 2 else "multi_stage",
        "country": "se",
        "use_ahrefs": "" if at % 2 else True,
        "enable_llm_profiling": False,
    }


def package(of_job: str) -> dict[str, Any]:
    """A valid job package."""
    return {
        "job_meta": {
            "job_id": of_job,
            "created_at": iso(START),
            "mode": "multi_stage",
            "llm_provider": "auto",
            "serp_source": "mock",
        },
        "input_minimal": {
            "publisher_domain": "publisher.se",
            "target_url": "https://example.com/p",
            "anchor_text": "länk",
        },
        "publisher_profile": {
            "domain": "publisher.se",
            "sample_urls": [],
            "about_excerpt": "",
            "detected_language": "sv",
            "topic_focus": [],
            "tone_class": "hobby_blog",
            "allowed_commerciality": "medium",
        },
        "target_profile": {
            "url": "https://example.com/p",
            "http_status": 200,
            "title": "P",
            "meta_description": "",
            "h1": "P",
            "h2_h3_sample": [],
            "main_content_excerpt": "",
            "detected_language": "sv",
            "core_entities": [],
            "core_topics": [],
            "core_offer": "",
            "candidate_main_queries": [],
        },
        "anchor_profile": {
            "proposed_text": "länk",
            "type_hint": "partial",
            "llm_classified_type": "partial",
            "llm_intent_hint": "info_primary",
        },
        "serp_research_extension": {
            "main_query": "p",
            "cluster_queries": [],
            "queries_rationale": "",
            "serp_sets": [],
            "serp_intent_primary": "info_primary",
            "serp_intent_secondary": None,
            "data_confidence": "medium",
        },
        "intent_extension": {
            "serp_intent_primary": "info_primary",
            "target_page_intent": "info_primary",
            "anchor_implied_intent": "info_primary",
            "publisher_role_intent": "info_primary",
            "intent_alignment": dict.fromkeys(
                ("anchor_vs_serp", "target_vs_serp", "publisher_vs_serp", "overall"), "aligned"
            ),
            "recommended_bridge_type": "strong",
            "recommended_article_angle": "",
            "required_subtopics": [],
            "forbidden_angles": [],
            "notes": {"rationale": "", "data_confidence": "medium"},
        },
        "generation_constraints": {"language": "sv"},
    }

"""A good card, a topic and a record to begin with, and the rules as they are shipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch_pipeline.workloads.flashcards.models import (
    DraftCard,
    Flashcard,
    OptimizedPrompt,
    Vote,
    finished,
)
from batch_pipeline.workloads.flashcards.record import Source, TopicRecord
from batch_pipeline.workloads.flashcards.rules import load_check_rules, load_voting_rules
from batch_pipeline.workloads.flashcards.topics import Topic
from batch_pipeline.workloads.flashcards.voting import tally

ROOT = Path(__file__).resolve().parents[3]
DEFS = ROOT / "batch_pipeline" / "defs" / "flashcards"
SAMPLES = ROOT / "data" / "samples" / "flashcards"
RULES = load_check_rules(DEFS)
VOTING = load_voting_rules(DEFS)

TOPIC = Topic(
    path="001_cybersecurity/001_identity/001_authentication/factors/salting/topic.json",
    title="Password Salting",
    category="Cybersecurity",
    category_folder="001_cybersecurity",
    domain="Identity",
    subdomain="Authentication",
    context="A salt is a random value stored beside each password hash.",
)

GOOD: Mapping[str, Any] = {
    "question_text": "What does a salt add to the storage of a password hash?",
    "correct_answer": "A random value that makes equal passwords differ",
    "distractors": [
        {
            "text": "A secret key that decrypts the stored password",
            "misconception": "Targets [hash and cipher]: a hash is taken for something reversible",
        },
        {
            "text": "A checksum that shows damage during transfer",
            "misconception": "Targets [integrity]: any extra value is taken for an error code",
        },
        {
            "text": "A counter that slows down every later attempt",
            "misconception": "Targets [rate limits]: two defences of sign-in pages are mixed up",
        },
    ],
    "detailed_explanation": {
        "core_logic": "The salt is hashed together with the password, so that hashes differ.",
        "distractor_analysis": "Hashes cannot be decrypted, and a salt counts and repairs nothing.",
        "analogy": "Two equal letters in envelopes with different stamps look different.",
    },
    "code_snippets": [],
    "difficulty": "foundational",
    "question_type": "definition",
    "bloom_level": "understand",
    "prerequisites": ["HASH-FUNCTIONS"],
}


def draft(**changes: Any) -> DraftCard:
    """The good card with other fields."""
    return DraftCard.model_validate({**GOOD, **changes})


def with_options(answer: str, *texts: str) -> DraftCard:
    """The good card with other options."""
    wrong = [{**one, "text": text} for one, text in zip(GOOD["distractors"], texts, strict=True)]
    return draft(correct_answer=answer, distractors=wrong)


def card(number: int = 0) -> Flashcard:
    """A finished card, each number another question."""
    question = str(GOOD["question_text"])
    return finished(draft(question_text=f"{question} Case {number}." if number else question))


def vote(decision: str = "APPROVE", confidence: float = 0.9, text: str = "", *tips: str) -> Vote:
    return Vote.model_validate(
        {"decision": decision, "confidence": confidence, "reasoning": text, "suggestions": tips}
        | {"suggestions": list(tips)}
    )


PROMPT = OptimizedPrompt.model_validate(
    {
        "system_prompt": "Write about salts, hashes and what tables made in advance can do.",
        "objectives": [
            {
                "bloom_level": "understand",
                "verb": "explain",
                "text": "Explain why equal passwords get different hashes.",
            },
            {
                "bloom_level": "apply",
                "verb": "choose",
                "text": "Choose the length of a random value for a sign-in database.",
            },
            {
                "bloom_level": "analyze",
                "verb": "compare",
                "text": "Compare rainbow tables with guessing one account at a time.",
            },
        ],
        "active_learning": {
            "discussion": ["What does a leak of salts cost?"],
            "peer_teaching": ["Explain a rainbow table to a neighbour."],
            "problem_solving": ["Find equal passwords in a dump without salts."],
        },
        "scaffolding": [
            {"level": level, "name": name, "support": f"Support of level {level}"}
            for level, name in enumerate(("Shown", "Guided", "Prompted", "Alone"), start=1)
        ],
        "applied_suggestions": ["Name rainbow tables."],
    }
)


def record(**changes: Any) -> TopicRecord:
    """A completed topic of unified mode."""
    names = [voter.name for voter in VOTING.voters]
    votes = {name: vote(text=f"It is right for {name}.") for name in names}
    given: dict[str, Any] = {
        "topic": TOPIC,
        "mode": "unified",
        "model": "google/gemini-3.1-flash-lite",
        "temperature": 0.1,
        "made_at": "2026-11-22T08:00:00+00:00",
        "wanted": 3,
        "cards": [card(1), card(2), card(3)],
        "sources": [Source(title="Salts", url="https://example.org/salts?a=1&b=2")],
        "votes": votes,
        "tally": tally(votes, VOTING).as_json(),
        "prompt": PROMPT,
        "cost_usd": 0.01,
        "duration_s": 20.0,
    }
    return TopicRecord.model_validate({**given, **changes})

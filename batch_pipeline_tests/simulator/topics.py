"""Forty small topics, invented for the tests, as prompts say them and as checks take them."""

from __future__ import annotations

from itertools import product
from typing import Any

from batch_pipeline.workloads.flashcards.topics import Topic, topic_content

_NAMES = (
    "Password Salting",
    "AC-2.1 Automated Account Management",
    "TLS Handshake",
    "Session Cookies (HTTP)",
    "Rust",
    "Key Rotation",
    "Least Privilege",
    "XSS Filters",
    "Backups",
    "Write-Ahead Log",
)
_PLACES = (
    ("Identity", "Authentication", "A salt is a random value stored beside each password hash."),
    (
        "Security And Privacy Controls",
        "XML External Entity Prevention",
        "The organization employs [parameter] to review user accounts; SSRF and RCE are **not** "
        "covered. Temporary accounts expire after thirty days, unless somebody renews them.",
    ),
    ("", "", ""),
    ("Web", "Fonts", "MDN explains {braces}, web fonts and their loading order, in 3 parts."),
)

TOPICS = [
    Topic(
        path=f"001_cybersecurity/{n}/topic.json",
        title=name,
        category="Cybersecurity" if n % 2 else "Software Engineering",
        category_folder="001_cybersecurity" if n % 2 else "002_software-engineering",
        domain=domain,
        subdomain=subdomain,
        entry_domain="Basics",
        context=context,
    )
    for n, (name, (domain, subdomain, context)) in enumerate(product(_NAMES, _PLACES))
]


def content_of(topic: Topic, **more: Any) -> dict[str, Any]:
    """What a prompt says of a topic."""
    return {**topic_content(topic), **more}

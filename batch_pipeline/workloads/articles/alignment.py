"""Whether publisher, target and link text fit to what searchers want, and what bridges them.

What belongs here: intents of the parts, the table of pairs, the bridge. What does not: the words
that tell intents (search/intents.yaml), what QC makes of the result (qc/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from batch_pipeline.search.intents import Intent, intent_of, intents_of_results
from batch_pipeline.workloads.articles.package import (
    Alignment,
    AnchorProfile,
    Bridge,
    IntentAlignment,
    PublisherProfile,
    TargetProfile,
)
from batch_pipeline.workloads.articles.phrases import Stems
from batch_pipeline.workloads.articles.profiles import roles

COMPATIBLE: frozenset[frozenset[str]] = frozenset(
    frozenset(pair)
    for pair in (
        ("info_primary", "commercial_research"),
        ("commercial_research", "transactional"),
        ("support", "info_primary"),
        ("local", "info_primary"),
    )
)
"""Pairs that fit in part. Source: DOMAIN.md section 0."""

STRONG_OVERLAP, PIVOT_OVERLAP = 0.7, 0.4
"""Shares of the target's subjects that a publisher writes about. From the first on, the origin's
specification suggests a strong bridge, from the second on a pivot, below it a wrapper."""

# A front page that names fewer does not say what a publisher writes about.
_FEW_SUBJECTS = 3

_UNSAID: frozenset[Intent] = frozenset(("navigational_brand", "mixed"))


@dataclass(frozen=True, slots=True)
class Intents:
    """What each part of a job is for, and how they fit."""

    serp_primary: Intent
    serp_secondary: Intent | None
    target: Intent
    anchor: Intent
    publisher: Intent
    alignment: IntentAlignment
    bridge: Bridge
    overlap: float | None


def pair(part: Intent, serp: Intent) -> Alignment:
    """How two intents fit: the same, or of the same kind, in part, or not."""
    if part == serp or part.partition("_")[0] == serp.partition("_")[0]:
        return "aligned"
    return "partial" if frozenset((part, serp)) in COMPATIBLE else "off"


def against(part: Intent, primary: Intent, secondary: Intent | None) -> Alignment:
    """How an intent fits to what a search serves.

    Results that serve two intents fit at least in part to what either of them fits to.
    """
    found = pair(part, primary)
    if found == "off" and secondary is not None and pair(part, secondary) != "off":
        return "partial"
    return found


def overall(parts: Sequence[Alignment]) -> Alignment:
    """All aligned is aligned, one off is off, else partial."""
    if "off" in parts:
        return "off"
    return "aligned" if all(part == "aligned" for part in parts) else "partial"


def bridge_of(alignment: Alignment) -> Bridge:
    """How an article leads from the publisher's readers to the target."""
    bridges: dict[Alignment, Bridge] = {"aligned": "strong", "partial": "pivot", "off": "wrapper"}
    return bridges[alignment]


def target_page_intent(target: TargetProfile) -> Intent:
    """What the target's page is for, by its title, its address and what it offers."""
    title = target.h1 or target.title
    host = urlsplit(target.url).hostname or ""
    entity = target.core_entities[0] if target.core_entities else ""
    shown = [{"title": title, "url": target.url, "domain": host.removeprefix("www.")}]
    found = intents_of_results(shown, entity)[0]
    if found not in _UNSAID:
        return found
    # the front page of a company is named after it: what it says of itself tells more
    said = intent_of(f"{target.title} {target.core_offer}", entity)
    return "commercial_research" if said in _UNSAID else said


def anchor_implied_intent(anchor: AnchorProfile, target: TargetProfile) -> Intent:
    """What a reader expects behind the link.

    Names and words such as "read more" promise nothing of their own: they lead to what is there.
    """
    hint = anchor.llm_intent_hint
    if anchor.llm_classified_type == "generic" or hint in _UNSAID:
        return target_page_intent(target)
    return hint


def publisher_role_intent(
    publisher: PublisherProfile, primary: Intent, secondary: Intent | None = None
) -> Intent:
    """What readers of a publisher come for; of several things, the one that fits a search best."""
    known = roles()
    if publisher.allowed_commerciality == "high":
        offered = known.shop_intents
    else:
        offered = known.reader_intents[publisher.tone_class]
    order: tuple[Alignment, ...] = ("aligned", "partial", "off")
    return min(offered, key=lambda intent: order.index(against(intent, primary, secondary)))


def overlap_of(publisher: PublisherProfile, target: TargetProfile) -> float | None:
    """Share of the target's subjects that the publisher writes about; None where not known."""
    stems = Stems(publisher.detected_language)
    if len(publisher.topic_focus) < _FEW_SUBJECTS:
        return None
    said = (*publisher.topic_focus, publisher.about_excerpt)
    written = {stem for phrase in said for stem in stems.all_of(phrase) if len(stem) > 2}
    subjects = [
        set(stems.all_of(phrase)) for phrase in (*target.core_topics, *target.core_entities)
    ]
    if not subjects:
        return None
    return sum(bool(subject & written) for subject in subjects) / len(subjects)


def align(
    publisher: PublisherProfile,
    target: TargetProfile,
    anchor: AnchorProfile,
    primary: Intent,
    secondary: Intent | None,
) -> Intents:
    """How a job's parts fit to what its search serves."""
    of_target = target_page_intent(target)
    of_anchor = anchor_implied_intent(anchor, target)
    of_publisher = publisher_role_intent(publisher, primary, secondary)
    parts = [against(one, primary, secondary) for one in (of_anchor, of_target, of_publisher)]
    whole = overall(parts)
    return Intents(
        serp_primary=primary,
        serp_secondary=secondary,
        target=of_target,
        anchor=of_anchor,
        publisher=of_publisher,
        alignment=IntentAlignment(
            anchor_vs_serp=parts[0],
            target_vs_serp=parts[1],
            publisher_vs_serp=parts[2],
            overall=whole,
        ),
        bridge=bridge_of(whole),
        overlap=overlap_of(publisher, target),
    )


def overlap_note(overlap: float | None) -> str:
    """What the overlap of subjects suggests, for the package's notes."""
    if overlap is None:
        return "How far the publisher's subjects overlap with the target's is not known."
    if overlap >= STRONG_OVERLAP:
        bridge = "a strong bridge"
    elif overlap >= PIVOT_OVERLAP:
        bridge = "a pivot"
    else:
        bridge = "a wrapper"
    return (
        f"The publisher writes about {overlap:.0%} of the target's subjects, which by itself "
        f"suggests {bridge}."
    )

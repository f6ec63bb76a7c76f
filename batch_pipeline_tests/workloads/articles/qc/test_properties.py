"""What holds for any article: nothing that makes one worse ever improves its verdict."""

from __future__ import annotations

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batch_pipeline.workloads.articles.models import Article
from batch_pipeline.workloads.articles.package import JobPackage
from batch_pipeline.workloads.articles.qc.autofix import autofix
from batch_pipeline.workloads.articles.qc.checks import check_article
from batch_pipeline.workloads.articles.qc.report import (
    SEVERITIES,
    Category,
    Issue,
    QcReport,
    Severity,
    Status,
    verdict,
)
from batch_pipeline_tests.workloads.articles.qc.samples import (
    ANCHOR,
    AT,
    JOB_ID,
    TARGET,
    TERMS,
    article,
    package,
    rules,
    short,
    with_policies,
)

RULES = with_policies(competitors=["rival.example"])
STATUS: tuple[Status, ...] = ("PASS", "WARNING", "BLOCKED")
CATEGORIES: tuple[Category, ...] = ("lsi", "anchor", "intent", "link")
LINK = f"[{ANCHOR}]({TARGET})"

issues = st.builds(
    Issue,
    category=st.sampled_from(CATEGORIES),
    severity=st.sampled_from(SEVERITIES),
    message=st.just("m"),
)
packages = st.builds(
    package,
    overall=st.sampled_from(["aligned", "partial", "off"]),
    anchor_type=st.sampled_from(["exact", "partial", "brand", "generic"]),
    publisher=st.sampled_from(["tidning.example", "halsa.example", "finans-juridik.example"]),
    terms=st.lists(st.sampled_from(TERMS["sv"]), max_size=8, unique=True),
    max_usages=st.integers(1, 3),
)
articles = st.builds(
    article,
    words=st.integers(150, 400),
    near=st.lists(st.sampled_from(TERMS["sv"]), max_size=14)
    | st.lists(st.sampled_from(TERMS["sv"][:7]), min_size=11, max_size=20),
    far=st.lists(st.sampled_from(TERMS["sv"]), max_size=4),
    places=st.lists(
        st.sampled_from(["h1", "h2", "h3", "intro", "middle", "middle", "last"]), max_size=6
    ),
    sources=st.lists(
        st.sampled_from(["https://www.skatteverket.se/a", "https://dn.se/", "https://x.example/"]),
        max_size=3,
    ),
)
loose = st.lists(
    st.sampled_from(
        [
            "# A ",
            "## B ",
            "### C ",
            "- ",
            "> ",
            "\n\n",
            "\n",
            LINK,
            f"[x]({TARGET})",
            TARGET,
            ANCHOR,
            "Ett ord. ",
            "ränta, ",
            "amortering. ",
            "`",
            "**",
            "[",
            "](",
            "~~~\n",
            "<b>",
            "t.ex. ",
        ]
    ),
    max_size=30,
).map("".join)
any_article = articles | loose.filter(str.strip).map(short)


def report(one: Article, job: JobPackage) -> QcReport:
    return check_article(one, job, RULES, job_id=JOB_ID, at=AT)


def rank(status: Status) -> int:
    return STATUS.index(status)


@given(st.lists(issues, max_size=8), issues, st.randoms())
def test_a_further_issue_never_improves_the_verdict(
    found: list[Issue], further: Issue, rng: object
) -> None:
    together = [*found, further]
    rng.shuffle(together)  # type: ignore[attr-defined]

    assert rank(verdict(together)) >= rank(verdict(found))
    assert rank(verdict(together)) == max(rank(verdict(found)), rank(verdict([further])))


@given(st.lists(issues, min_size=1, max_size=8), st.data())
def test_a_worse_severity_never_improves_the_verdict(
    found: list[Issue], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(found) - 1))
    worse: Severity = data.draw(
        st.sampled_from(SEVERITIES[SEVERITIES.index(found[place].severity) :])
    )
    changed = list(found)
    changed[place] = found[place].model_copy(update={"severity": worse})

    assert rank(verdict(changed)) >= rank(verdict(found))


WORSE = {
    "a competitor is linked": lambda text: f"{text}\n\n[pris](https://rival.example/)\n",
    "the target is linked with another text": lambda text: f"{text}\n\n[här]({TARGET})\n",
    "the anchor leads elsewhere": lambda text: f"{text}\n\n[{ANCHOR}](https://y.example/)\n",
    "all links become text": lambda text: re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text),
    "all addresses go": lambda text: re.sub(r"https?://[^\s)>]+", "", text),
}


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(any_article, packages, st.sampled_from(sorted(WORSE)))
def test_no_article_is_judged_better_for_a_fault_that_is_added(
    one: Article, job: JobPackage, fault: str
) -> None:
    worse = short(WORSE[fault](one.markdown) or ".")

    assert rank(report(worse, job).status) >= rank(report(one, job).status)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(any_article, packages)
def test_a_job_that_does_not_fit_is_never_judged_better(one: Article, job: JobPackage) -> None:
    intent = job.intent_extension
    off = job.model_copy(
        update={
            "intent_extension": intent.model_copy(
                update={
                    "intent_alignment": intent.intent_alignment.model_copy(
                        update={"overall": "off"}
                    )
                }
            )
        }
    )

    assert report(one, off).status == "BLOCKED"


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=150)
@given(any_article, packages)
def test_a_repair_never_makes_an_article_worse_and_needs_no_second(
    one: Article, job: JobPackage
) -> None:
    first = report(one, job)
    repaired, logs = autofix(one, job, RULES, first)
    second = report(repaired, job)

    assert rank(second.status) <= rank(first.status)
    assert {i.category for i in second.issues if i.severity == "CRITICAL"} <= {
        i.category for i in first.issues if i.severity == "CRITICAL"
    }
    assert (repaired.markdown == one.markdown) == (not logs)
    assert autofix(repaired, job, RULES, second) == (repaired, [])


def test_the_strategies_make_articles_of_every_verdict() -> None:
    statuses = {
        report(article(words=words, near=near), package()).status
        for words, near in ((1250, 6), (1250, 5), (150, 6))
    }
    assert statuses == set(STATUS)
    assert rules().policies.competitors == []

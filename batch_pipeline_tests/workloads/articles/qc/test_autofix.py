"""The one automatic repair: what it changes, and what it leaves alone."""

from __future__ import annotations

import pytest

from batch_pipeline.workloads.articles.qc.autofix import Controlled, autofix, control
from batch_pipeline.workloads.articles.qc.checks import anchor_links, check_article, site
from batch_pipeline.workloads.articles.qc.report import SEVERITIES, QcReport
from batch_pipeline.workloads.articles.qc.text import parse
from batch_pipeline_tests.workloads.articles.qc.cases import CASES, Case
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

IDS = [case.name for case in CASES]
STATUS = ("PASS", "WARNING", "BLOCKED")
LINK = f"[{ANCHOR}]({TARGET})"
DISCLAIMERS = {
    "nordcasino.example": "Spela ansvarsfullt. 18+. Stödlinjen.se",
    "finansbladet.example": "Finansiella tjänster innebär risker. Sök alltid rådgivning.",
    "halsa.example": "Detta är inte medicinsk rådgivning. Kontakta läkare vid symtom.",
    "juridik.example": "Detta är generell information, inte juridisk rådgivning.",
    "kryptonytt.example": "Kryptovalutor innebär hög risk. Du kan förlora hela beloppet.",
}


def controlled(case: Case) -> Controlled:
    return control(case.article, case.package, case.rules, job_id=JOB_ID, at=AT)


def found(report: QcReport) -> list[str]:
    return [issue.details["rule"] for issue in report.issues]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_repair_makes_nothing_worse_and_a_second_one_changes_nothing(case: Case) -> None:
    first = check_article(case.article, case.package, case.rules, job_id=JOB_ID, at=AT)
    repaired, logs = autofix(case.article, case.package, case.rules, first)
    second = check_article(repaired, case.package, case.rules, job_id=JOB_ID, at=AT)

    assert STATUS.index(second.status) <= STATUS.index(first.status)
    for severity in SEVERITIES[1:]:
        worse = SEVERITIES.index(severity)
        assert sum(SEVERITIES.index(i.severity) >= worse for i in second.issues) <= sum(
            SEVERITIES.index(i.severity) >= worse for i in first.issues
        )
    assert bool(logs) == (repaired.markdown != case.article.markdown)
    assert autofix(repaired, case.package, case.rules, second) == (repaired, [])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_repair_makes_up_no_sources_and_links_only_to_the_target(case: Case) -> None:
    result = controlled(case)
    before, after = parse(case.article.markdown), parse(result.article.markdown)
    target = site(case.package.input_minimal.target_url)

    new = {link.url for link in after.links} - {link.url for link in before.links}
    assert {site(url) for url in new} <= {target}
    assert set(after.bare_urls) == set(before.bare_urls)
    assert result.article.title == case.article.title


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_what_cannot_be_repaired_stays_as_it_is(case: Case) -> None:
    """W0-06: blocked without a repair ended with a misleading error; it stays BLOCKED."""
    first = check_article(case.article, case.package, case.rules, job_id=JOB_ID, at=AT)
    result = controlled(case)

    if not any(issue.auto_fixable for issue in first.issues):
        assert result == Controlled(case.article, first, None)
        assert not result.report.autofix_done
    elif result.first_report is not None:
        assert result.first_report == first
        assert result.report.autofix_done and result.report.autofix_logs


def test_missing_terms_are_in_the_text_afterwards() -> None:
    """W0-07: the origin's repair wrote a log line and left the article as it was."""
    result = control(article(near=4), package(), rules(), job_id=JOB_ID, at=AT)

    assert found(result.report) == []
    assert result.report.status == "PASS"
    assert f"Här spelar också bostadsmarknad och skuldkvot in. Se {LINK}. Så." in (
        result.article.markdown
    )
    assert result.report.autofix_logs == ["Added near the link: bostadsmarknad, skuldkvot."]
    assert result.report.checks["lsi"]["found"] == TERMS["sv"][:6]


def test_english_articles_get_an_english_sentence() -> None:
    result = control(
        article(language="en", near=5), package(language="en"), rules(), job_id=JOB_ID, at=AT
    )

    assert found(result.report) == []
    assert f"This also ties in with debt ratio. Se {LINK}. Så." in result.article.markdown


def test_four_terms_are_added_and_never_five() -> None:
    four = control(article(near=2), package(), rules(), job_id=JOB_ID, at=AT)
    five = control(article(near=1), package(), rules(), job_id=JOB_ID, at=AT)

    assert found(four.report) == []
    assert "lånelöfte, bostadsmarknad och skuldkvot" in four.article.markdown
    assert found(five.report) == ["lsi_missing"] and five.first_report is None
    assert five.article == article(near=1)


def test_terms_with_markup_in_them_do_no_harm() -> None:
    terms = [*TERMS["sv"][:5], "c# [kurs](x)"]
    result = control(article(near=5), package(terms=terms), rules(), job_id=JOB_ID, at=AT)

    assert found(result.report) == []
    assert [link.text for link in parse(result.article.markdown).links] == [
        "källa",
        "källa",
        ANCHOR,
    ]


def test_surplus_terms_move_away_from_the_link_and_no_word_is_lost() -> None:
    terms = TERMS["sv"]
    text = article(near=[*terms[:6]], far=[]).markdown.replace(
        f"Ja. Se {LINK}.", f"Ja. Om {', '.join(terms[:6])}. Se {LINK}."
    )
    before = short(text)
    result = control(before, package(), rules(), job_id=JOB_ID, at=AT)

    assert result.first_report is not None and found(result.first_report) == ["lsi_surplus"]
    assert found(result.report) == []
    assert sorted(result.article.markdown.split()) == sorted(text.split())


@pytest.mark.parametrize("place", ["h1", "h2"])
def test_a_link_leaves_the_heading_for_the_middle_section(place: str) -> None:
    text = article(places=[]).markdown
    if place == "h1":
        text = text.replace("# Bostad", f"# Bostad {LINK}", 1)
    else:
        text = text.replace("## Två", f"## Två {LINK}", 1)
    result = control(short(text), package(), rules(), job_id=JOB_ID, at=AT)

    parsed = parse(result.article.markdown)
    [link] = anchor_links(parsed, package())
    assert link.in_heading == 0
    assert f"Läs mer: {LINK}." in result.article.markdown
    assert {"# Bostad Hemguiden", "## Två Hemguiden"} & set(result.article.markdown.splitlines())
    assert result.report.checks["placement"]["in_the_middle"] == 1
    assert found(result.report) == []


def test_the_anchor_text_becomes_the_link_where_the_middle_has_it() -> None:
    text = article(places=["h2"]).markdown.replace("Ja. ", "Ja. Hos hemguiden finns mer. ")
    result = control(short(text), package(), rules(), job_id=JOB_ID, at=AT)

    assert f"Hos [hemguiden]({TARGET}) finns mer." in result.article.markdown
    assert "Läs mer" not in result.article.markdown
    assert found(result.report) == []


def test_a_link_in_a_heading_beside_one_in_the_text_becomes_text() -> None:
    result = control(article(places=["h2", "middle"]), package(), rules(), job_id=JOB_ID, at=AT)

    assert f"## Två {ANCHOR}\n" in result.article.markdown
    assert result.article.markdown.count(LINK) == 1
    assert found(result.report) == []


def test_surplus_links_become_text_and_the_one_in_the_middle_stays() -> None:
    two = article(places=["intro", "middle", "middle", "last"])
    one = package(max_usages=1)
    both = control(two, package(), rules(), job_id=JOB_ID, at=AT)
    single = control(two, one, rules(), job_id=JOB_ID, at=AT)

    assert found(both.report) == [] and found(single.report) == []
    assert both.article.markdown.count(LINK) == 2
    assert single.article.markdown.count(LINK) == 1
    assert single.article.markdown.count(ANCHOR) == 4
    assert single.report.checks["placement"]["in_the_middle"] == 1


@pytest.mark.parametrize(("publisher", "text"), DISCLAIMERS.items(), ids=list(DISCLAIMERS))
def test_the_swedish_disclaimers_are_appended_word_for_word(publisher: str, text: str) -> None:
    result = control(article(), package(publisher=publisher), rules(), job_id=JOB_ID, at=AT)

    assert result.first_report is not None and result.first_report.status == "BLOCKED"
    assert result.report.status == "PASS"
    assert result.article.markdown.endswith(f"\n\n{text}\n")


def test_an_article_of_two_verticals_gets_both_disclaimers() -> None:
    job = package(target="https://casino.example/lawyers", language="en")
    text = article(language="en", link=f"[{ANCHOR}](https://casino.example/lawyers)")
    result = control(text, job, rules(), job_id=JOB_ID, at=AT)

    assert found(result.report) == []
    assert result.article.markdown.endswith(
        "\n\nGamble responsibly. 18+. Help is available at BeGambleAware.org"
        "\n\nThis is general information, not legal advice.\n"
    )


def test_several_faults_are_repaired_at_once_and_the_rest_still_blocks() -> None:
    job = package(target="https://casino.example/", overall="off")
    text = article(link=f"[{ANCHOR}](https://casino.example/)", near=5, places=["h2", "middle"])
    result = control(text, job, rules(), job_id=JOB_ID, at=AT)

    assert found(result.report) == ["intent_off"]
    assert result.report.status == "BLOCKED" and result.report.human_signoff_required
    assert len(result.report.autofix_logs) == 3


def test_what_a_reviewer_accepted_is_left_alone() -> None:
    job = package(publisher="halsa.example", accepted=["compliance"])
    result = control(article(), job, rules(), job_id=JOB_ID, at=AT)

    assert result.article == article() and result.first_report is None
    assert result.report.status == "PASS"


def test_an_operator_can_switch_the_terms_repair_off() -> None:
    shipped = rules()
    lsi = shipped.thresholds.lsi.model_copy(update={"autofix_max_terms": 0})
    off = shipped.model_copy(
        update={"thresholds": shipped.thresholds.model_copy(update={"lsi": lsi})}
    )
    result = control(article(near=5), package(), off, job_id=JOB_ID, at=AT)

    assert found(result.report) == ["lsi_missing"] and result.first_report is None


def test_a_heading_without_a_middle_keeps_its_link() -> None:
    text = short(f"# Bostad {LINK}\n\nEtt stycke.\n")
    result = control(text, package(terms=[]), rules(), job_id=JOB_ID, at=AT)

    assert result.article == text
    assert "placement_heading" in found(result.report)


def test_a_change_that_would_weigh_more_than_the_fault_is_not_made() -> None:
    severities = rules().policies.severities.model_copy(update={"placement_heading": "LOW"})
    lenient = with_policies(severities=severities)
    text = article(words=2499, places=["h2"])
    result = control(text, package(terms=[]), lenient, job_id=JOB_ID, at=AT)

    assert found(result.report) == ["placement_heading"]
    assert result.article == text and result.report.status == "PASS"

"""The files an operator edits: what is shipped, and what is said of a wrong one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.errors import UsageError
from batch_pipeline.workloads.articles.qc.checks import belongs, site, verticals_of
from batch_pipeline.workloads.articles.qc.rules import POLICIES, THRESHOLDS, load_rules
from batch_pipeline_tests.workloads.articles.qc.samples import (
    FOLDER,
    package,
    rules,
    with_policies,
)

PROJECT = Path(__file__).parents[4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (THRESHOLDS, POLICIES):
        shutil.copy(FOLDER / name, tmp_path / name)
    return tmp_path


def change(path: Path, *keys: str, to: object) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    part = document
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = to
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")


def test_the_shipped_numbers_are_those_of_the_reference() -> None:
    found = rules().thresholds

    assert (found.lsi.min_terms, found.lsi.max_terms, found.lsi.window_sentences) == (6, 10, 2)
    assert found.lsi.autofix_max_terms == 4
    assert (found.trust.min_tier_1, found.trust.min_total) == (1, 2)
    assert (found.words.minimum, found.words.recommended, found.words.maximum) == (900, 1200, 2500)
    assert (found.link.min, found.link.max) == (1, 2)


def test_the_shipped_policies_are_those_of_the_reference() -> None:
    found = rules().policies

    assert found.stop_before_writing
    assert found.signoff.severities == ["CRITICAL"]
    assert found.signoff.verticals == found.signoff.signers == found.competitors == []
    assert found.tiers("sv").tier_1 == [
        ".gov",
        ".edu",
        "konsumentverket.se",
        "riksbanken.se",
        "skatteverket.se",
    ]
    assert found.tiers("sv").tier_2 == [
        "wikipedia.org",
        "dn.se",
        "svd.se",
        "aftonbladet.se",
        "expressen.se",
    ]
    assert set(found.verticals) == {"gambling", "finance", "health", "legal", "crypto"}
    assert {name: one.disclaimer.sv for name, one in found.verticals.items()} == {
        "gambling": "Spela ansvarsfullt. 18+. Stödlinjen.se",
        "finance": "Finansiella tjänster innebär risker. Sök alltid rådgivning.",
        "health": "Detta är inte medicinsk rådgivning. Kontakta läkare vid symtom.",
        "legal": "Detta är generell information, inte juridisk rådgivning.",
        "crypto": "Kryptovalutor innebär hög risk. Du kan förlora hela beloppet.",
    }


def test_the_page_of_the_documentation_has_every_rule_with_its_severity() -> None:
    page = (PROJECT / "docs" / "articles-qc.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    written = {row[2].strip("`"): row[4] for row in cells if len(row) == 7 and row[2][:1] == "`"}

    assert written == rules().policies.severities.model_dump()


@pytest.mark.parametrize(
    ("name", "keys", "to", "said"),
    [
        (THRESHOLDS, ("lsi", "min_terms"), 11, "lsi: Value error, min_terms is above max_terms"),
        (THRESHOLDS, ("lsi", "min_terms"), -1, "lsi.min_terms"),
        (THRESHOLDS, ("words", "maximum"), 1000, "minimum <= recommended <= maximum"),
        (THRESHOLDS, ("link", "max"), 0, "link.max"),
        (THRESHOLDS, ("lsi", "minimum"), 6, "lsi.minimum: Extra inputs"),
        (THRESHOLDS, ("language", "candidates"), ["sv", "en", False], "language.candidates.2"),
        (THRESHOLDS, ("language", "candidates"), ["sv", "xx"], "language.candidates.1"),
        (POLICIES, ("severities", "intent_off"), "SEVERE", "severities.intent_off"),
        (POLICIES, ("severities", "typo"), "LOW", "severities.typo: Extra inputs"),
        (POLICIES, ("competitors",), ["https://rival.se/"], "'https://rival.se/' is no domain"),
        (POLICIES, ("signoff", "verticals"), ["gamling"], "names gamling"),
        (POLICIES, ("trust_sources",), {}, "trust_sources needs an entry `default`"),
        (POLICIES, ("anchor", "high_risk_exact"), ["köp nu"], "'köp nu' is no word"),
        (POLICIES, ("verticals", "legal", "disclaimer", "sv"), "# Obs", "one line of plain text"),
        (POLICIES, ("verticals", "legal", "disclaimer"), {"sv": "Obs."}, "legal.disclaimer.en"),
    ],
)
def test_a_wrong_entry_is_named_with_its_file_and_key(
    folder: Path, name: str, keys: tuple[str, ...], to: object, said: str
) -> None:
    change(folder / name, *keys, to=to)

    with pytest.raises(UsageError) as error:
        load_rules(folder)

    assert name in error.value.message and said in error.value.message
    assert "docs/articles-qc.md" in error.value.next_step


def test_a_missing_entry_is_named(folder: Path) -> None:
    document = yaml.safe_load((folder / THRESHOLDS).read_text(encoding="utf-8"))
    del document["trust"]
    (folder / THRESHOLDS).write_text(yaml.safe_dump(document), encoding="utf-8")

    with pytest.raises(UsageError, match="trust: Field required"):
        load_rules(folder)


def test_a_file_that_is_missing_or_no_yaml_is_said(folder: Path) -> None:
    (folder / POLICIES).write_text("a: [", encoding="utf-8")
    with pytest.raises(UsageError, match=r"policies\.yaml is no YAML"):
        load_rules(folder)

    (folder / POLICIES).unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        load_rules(folder)


def test_an_empty_file_is_said(folder: Path) -> None:
    (folder / THRESHOLDS).write_text("", encoding="utf-8")

    with pytest.raises(UsageError, match="the file"):
        load_rules(folder)


@pytest.mark.parametrize(
    ("url", "domain", "expected"),
    [
        ("https://dn.se", "dn.se", True),
        ("https://www.dn.se/a?b=svd.se", "dn.se", True),
        ("http://DN.SE.:80/", "dn.se", True),
        ("https://din.dn.se.example/", "dn.se", False),
        ("https://adn.se/", "dn.se", False),
        ("https://user@dn.se/", "dn.se", True),
        ("https://dn.se@evil.example/", "dn.se", False),
        ("https://irs.gov/a", ".gov", True),
        ("https://gov/", ".gov", False),
        ("https://x.gov.se/", ".gov", False),
        ("https://räksmörgås.se/", "räksmörgås.se", True),
        ("https://xn--rksmrgs-5wao1o.se/", "räksmörgås.se", True),
        ("https://[broken/", "dn.se", False),
    ],
)
def test_an_address_belongs_to_a_domain_by_its_host_alone(
    url: str, domain: str, expected: bool
) -> None:
    assert belongs(url, domain) is expected


def test_a_site_is_what_is_registered() -> None:
    assert site("https://sv.wikipedia.org/wiki/Hus") == "wikipedia.org"
    assert site("https://www.bbc.co.uk/news") == "bbc.co.uk"
    assert site("http://127.0.0.1:8000/a") == "127.0.0.1"
    assert site("not a url") == site("not a url")


@pytest.mark.parametrize(
    ("target", "publisher", "expected"),
    [
        ("https://hemguiden.example/", "tidning.example", []),
        ("https://nordcasino.example/", "tidning.example", ["gambling"]),
        ("https://a.example/bästa-bolån", "tidning.example", ["finance"]),
        ("https://a.example/b%C3%A4sta-bol%C3%A5n", "tidning.example", ["finance"]),
        ("https://a.example/", "apoteket.se", ["health"]),
        ("https://xn--hlsa-loa.se/", "tidning.example", ["health"]),
        ("https://lawyers.example/bitcoin", "tidning.example", ["legal", "crypto"]),
        ("https://a.example/in-laws-and-clawback", "tidning.example", ["legal"]),
        ("https://a.example/lan-party", "wealthy.example", []),
        ("https://a.example?kategori=casino", "tidning.example", ["gambling"]),
        ("https://a.example#bolån", "tidning.example", ["finance"]),
        ("https://a.example/", "myfinance.se", ["finance"]),
        ("https://fintechfinance.io/", "tidning.example", ["finance"]),
        ("https://bilfinans.se/", "tidning.example", ["finance"]),
        ("https://swedbank.se/", "nordeabank.se", ["finance"]),
        ("https://www.handelsbanken.se/", "tidning.example", ["finance"]),
        ("https://a.example/snabblån", "tidning.example", ["finance"]),
        ("https://a.example/lånapengar", "tidning.example", ["finance"]),
        ("https://yourhealth.com/", "tidning.example", ["health"]),
        ("https://a.example/mentalhealth", "ehealth.se", ["health"]),
        ("https://a.example/hälsokost", "tandvården.example", ["health"]),
        ("https://golegal.se/", "tidning.example", ["legal"]),
        ("https://familjejurist.example/", "tidning.example", ["legal"]),
        ("https://unibet.se/", "tidning.example", ["gambling"]),
        ("https://bet365.com/", "tidning.example", ["gambling"]),
        ("https://www.svenskaspel.se/", "tidning.example", ["gambling"]),
        ("https://buybitcoin.example/", "tidning.example", ["crypto"]),
        # the origin's rule: any address with the letters of its words, whatever the word is
        ("https://illegal.example/", "tidning.example", ["legal"]),
        # what only ends like a bank, a bet or money
        ("https://a.example/powerbank", "alphabet.example", []),
        ("https://drömjobbet.example/tibet", "blodbanken.example", []),
        ("https://a.example/alfabet/3d-plotter/investigation", "cryptography.example", []),
        ("https://a.example/plånbok/akkreditering/långsam", "tidning.example", []),
        # only the very word is left out, not what else the address says
        ("https://a.example/powerbank-finance", "tidning.example", ["finance"]),
    ],
)
def test_verticals_are_read_from_the_words_of_the_addresses(
    target: str, publisher: str, expected: list[str]
) -> None:
    assert verticals_of(package(target=target, publisher=publisher), rules()) == expected


@pytest.mark.parametrize("word", ["gambling", "finance", "health", "legal"])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_an_address_with_a_word_of_the_origin_is_regulated_wherever_the_word_stands(
    word: str, data: st.DataObject
) -> None:
    around = st.text("abcdefghijklmnopqrstuvwxyz0123456789", max_size=12)
    written = st.sampled_from([word, word.capitalize(), word.upper()])
    inside = f"{data.draw(around)}{data.draw(written)}{data.draw(around)}"
    shape = data.draw(
        st.sampled_from(
            [
                "https://{}.se/",
                "https://www.{}.se",
                "https://{}.tidning.example/a",
                "https://a.example/{}",
                "https://a.example/b/c-{}_d.html",
                "https://a.example/?q={}",
                "https://a.example?{}",
                "https://a.example/#{}",
            ]
        )
    )

    assert word in verticals_of(package(target=shape.format(inside)), rules())
    assert word in verticals_of(package(publisher=f"{inside}.se"), rules())


def test_policies_of_an_operator_without_exceptions_go_on_as_they_are(folder: Path) -> None:
    path = folder / POLICIES
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for vertical in document["verticals"].values():
        vertical.pop("not_words", None)
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    change(path, "verticals", "finance", "words", to=["bank", "*bank"])
    own = load_rules(folder)

    def found(publisher: str) -> list[str]:
        return verticals_of(package(publisher=publisher), own)

    assert found("swedbank.se") == found("powerbank.se") == ["finance"]
    assert found("myfinance.se") == []


def test_an_operator_says_which_words_are_not_meant(folder: Path) -> None:
    change(folder / POLICIES, "verticals", "legal", "not_words", to=["Illegal*"])
    own = load_rules(folder)

    assert verticals_of(package(target="https://a.example/illegala-spel"), own) == []
    assert verticals_of(package(target="https://a.example/illegala-golegal"), own) == ["legal"]


def test_every_exception_that_is_shipped_leaves_out_a_word_that_would_be_found() -> None:
    for name, vertical in rules().policies.verticals.items():
        bare = {name: vertical.model_copy(update={"not_words": []})}
        for word in vertical.not_words:
            # With `*` one could leave out a word that holds one of the origin's.
            assert "*" not in word
            job = package(publisher=f"{word}.example")
            assert verticals_of(job, with_policies(verticals=bare)) == [name], word
            assert name not in verticals_of(job, rules()), word

"""An article is taken apart as a reader sees it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.workloads.articles.qc.text import (
    HIDDEN,
    normal_url,
    parse,
    sentence_spans,
    stems,
)

PIECES = st.sampled_from(
    [
        "# ",
        "## ",
        "- ",
        "> ",
        "1. ",
        "[",
        "](",
        ")",
        "<",
        ">",
        "https://a.se/b",
        "*",
        "_",
        "`",
        "~~~",
        "\n",
        "\n\n",
        " ",
        "\t",
        "\r\n",
        "\0",
        "Hej du. ",
        "t.ex. ",
        "åäö",
        "![",
        "[r]: /u",
        "---",
        "\\",
    ]
)


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ett. Två! Tre? Fyra…", ["Ett.", "Två!", "Tre?", "Fyra…"]),
        (
            "Läs t.ex. Skatteverket. Sedan bl.a. annat.",
            ["Läs t.ex. Skatteverket.", "Sedan bl.a. annat."],
        ),
        ("Det kostar ca. 3.5 kr. per dag.", ["Det kostar ca. 3.5 kr. per dag."]),
        ("Kl. 12 den 3. mars kom J. Berg hit.", ["Kl. 12 den 3. mars kom J. Berg hit."]),
        ("Ränta, avgift m.m. Sedan nytt.", ["Ränta, avgift m.m.", "Sedan nytt."]),
        ("Ränta m.m. räknas.", ["Ränta m.m. räknas."]),
        ('"Varför?" sade hon. "Nej."', ['"Varför?" sade hon.', '"Nej."']),
        ("Dr. Smith of the U.S. Treasury left. He did.", None),
        ("It was 2024. Then more.", ["It was 2024.", "Then more."]),
        ("Utan slut", ["Utan slut"]),
        ("", []),
    ],
)
def test_a_text_is_cut_into_its_sentences(text: str, expected: list[str] | None) -> None:
    if expected is None:
        assert sentences(text)[0].startswith("Dr. Smith of the")
        assert sentences(text)[-1] == "He did."
    else:
        assert sentences(text) == expected


@pytest.mark.parametrize(
    "words",
    [
        "ränta räntan räntor räntorna räntornas",
        "kontantinsats kontantinsatsen kontantinsatser kontantinsatserna",
        "lånelöfte lånelöftet lånelöften",
        "konto kontot konton",
        "bostadsmarknad bostadsmarknaden",
        "Bolån bolånet BOLÅNEN",
    ],
)
def test_swedish_forms_of_a_word_have_one_stem(words: str) -> None:
    assert len(set(stems(words, "sv"))) == 1


def test_other_words_keep_stems_of_their_own() -> None:
    assert len(set(stems("ränta ränteläge bank bankrån konto kontor hus husvagn", "sv"))) == 8
    assert stems("Interest rates", "en") == stems("interest rate", "en")


def test_links_are_found_with_their_places_wherever_they_stand() -> None:
    markdown = (
        "# Rubrik [ett](https://a.se)\n\nText med [*två* ord](<https://b.se/x y> 'Titel').\n\n"
        "> citat\n> med [tre][ref] och <https://d.se/>\n\n- [fem](/e)\n\n[ref]: https://c.se/ref\n"
    )
    article = parse(markdown)

    assert [(link.text, link.url, link.in_heading) for link in article.links] == [
        ("ett", "https://a.se/", 1),
        ("två ord", "https://b.se/x%20y", 0),
        ("tre", "https://c.se/ref", 0),
        ("https://d.se/", "https://d.se/", 0),
        ("fem", "/e", 0),
    ]
    assert [markdown[link.start : link.end] for link in article.links] == [
        "[ett](https://a.se)",
        "[*två* ord](<https://b.se/x y> 'Titel')",
        "[tre][ref]",
        "<https://d.se/>",
        "[fem](/e)",
    ]
    assert [link.label for link in article.links][1] == "*två* ord"


def test_what_looks_like_a_link_in_code_is_none() -> None:
    article = parse("A `[x](https://a.se)` b.\n\n```\n[y](https://b.se)\n```\n")

    assert article.links == ()


def test_addresses_and_markup_are_no_words() -> None:
    assert parse("# Ett två\n\n**Tre** [fyra](https://a.se/b c) - https://x.se/y 5 %.").words >= 5
    assert parse("# Ett\n\nTvå [tre](https://a.se/b), https://x.se/y - & 4 %.").words == 4
    assert parse('Två <a href="https://a.se">ord</a> ![bild](b.png)').words == 2


def test_bare_addresses_are_found_without_what_follows_them() -> None:
    article = parse(
        'Se https://a.se/x. <a href="https://b.se/">b</a> [c](https://c.se)\n\n'
        '<p><a href="https://d.se/y">d</a></p>\n'
    )

    assert article.bare_urls == ("https://b.se/", "https://a.se/x", "https://d.se/y")


def test_sections_begin_with_first_and_second_level_headings() -> None:
    article = parse("Före\n\n# A\n\nEtt\n\n### C\n\nTvå\n\nB\n---\n\nTre")

    assert [(block.text, block.section) for block in article.body] == [
        ("Före", 0),
        ("Ett", 1),
        ("Två", 1),
        ("Tre", 2),
    ]


def test_the_bare_host_has_one_spelling() -> None:
    assert normal_url("HTTPS://Example.com") == normal_url("https://example.com/")
    assert normal_url("https://example.com/a") != normal_url("https://example.com/a/")


@given(st.lists(PIECES, max_size=40).map("".join))
def test_any_text_can_be_taken_apart_and_every_place_is_right(markdown: str) -> None:
    article = parse(markdown)

    assert len(article.shown) == len(article.markdown)
    for shown, written in zip(article.shown, article.markdown, strict=True):
        assert shown in (HIDDEN, written) or (shown, written) == (" ", "\n")
    for link in article.links:
        assert article.markdown[link.start] in "[<"
        assert article.markdown[link.end - 1] in ")>]"
        assert link.label in article.markdown[link.start : link.end]
    for sentence in article.sentences:
        block = article.blocks[sentence.block]
        assert block.start <= sentence.start < sentence.end <= block.end

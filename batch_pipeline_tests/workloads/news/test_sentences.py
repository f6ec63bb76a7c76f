"""Long articles are cut at the end of a sentence, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.pricing.tokens import estimate_tokens
from batch_pipeline.workloads.news.sentences import cut_at_sentence, shorten
from batch_pipeline_tests.workloads.news.installation import real_articles


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Shares rose. Bonds fell. Gold did not", "Shares rose. Bonds fell."),
        ("It fell, said Mr. Harlan of the bank", "It fell, said Mr. Harlan of the bank"),
        ("He left at once. Mr. Harlan stayed", "He left at once."),
        ("It left the market. The U.S. Treasury", "It left the market."),
        ("Prices rose by 3.5 percent. Wages", "Prices rose by 3.5 percent."),
        ('"We did not buy growth." She paused', '"We did not buy growth."'),
        (
            "\u201cWho pays for all that?\u201d she asked. No",
            "\u201cWho pays for all that?\u201d she asked.",
        ),
        ("Büyüme 3. çeyrekte hızlandı. Sonra", "Büyüme 3. çeyrekte hızlandı."),
        ("Rapor bugün çıktı. Dr. Aydın konuştu", "Rapor bugün çıktı."),
        ("Karar 29. Ekim günü alındı. Yarın", "Karar 29. Ekim günü alındı."),
        ("Şirket kâr etti! İhracat da arttı mı", "Şirket kâr etti!"),
        ("株価は上昇した。債券は下落し", "株価は上昇した。"),
        ("A headline without a stop\n\nThe text that", "A headline without a stop"),
        ("It was over... Then it began again and", "It was over..."),
    ],
)
def test_the_cut_is_at_the_end_of_a_sentence(text: str, kept: str) -> None:
    longer = f"{text} something more, with no end in sight"
    assert cut_at_sentence(longer, len(text)) == kept


def test_a_text_without_sentences_is_cut_between_words() -> None:
    assert cut_at_sentence("one two three four", 12) == "one two"
    assert cut_at_sentence("x" * 30, 12) == "x" * 12
    assert cut_at_sentence("No. " + "word " * 30, 100).endswith("word")


def test_the_end_of_a_sentence_right_at_the_limit_counts() -> None:
    text = "First one. Second one."
    assert cut_at_sentence(f"{text} Third", len(text)) == text
    assert cut_at_sentence(f"{text} Third", len(text) - 1) == "First one."


@given(st.text(alphabet="aB1 .?!\n\"'Şç。", max_size=300), st.integers(1, 300))
def test_what_is_kept_is_a_beginning_within_the_limit(text: str, limit: int) -> None:
    kept = cut_at_sentence(text, limit)
    assert text.startswith(kept)
    assert len(kept) <= max(limit, 0)


@given(st.text(min_size=1, max_size=600), st.integers(5, 100))
def test_a_shortened_text_fits_its_tokens(text: str, most: int) -> None:
    kept = shorten(text, most)
    assert text.startswith(kept)
    # What follows a cut may make one piece of two at most.
    assert estimate_tokens(kept) <= most + 1
    if estimate_tokens(text) <= most:
        assert kept == text


def test_real_articles_end_with_a_sentence(reference_data: Path) -> None:
    for row in real_articles(reference_data, "us_federal_long", 200):
        kept = shorten(row["contents"], 1_000)
        assert len(kept) < len(row["contents"])
        assert estimate_tokens(kept) <= 1_000
        # Lists of names have no sentences; everything else ends with one.
        assert kept[-1] in '.!?"\u201d)' or "." not in kept[len(kept) * 3 // 4 :], row["id"]

"""Persian text: what is the same name, and which way a text runs."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.workloads.brands.text import as_written, comparable, direction, latin_digits


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ديجيكالا", "دیجیکالا"),  # Arabic yeh and kaf
        ("دیجی‌کالا", "دیجی کالا"),  # half-space, space
        ("دیجی‌کالا", "دیجیکالا"),
        ("همراه ١", "همراه ۱"),
        ("همراه ۱", "همراه 1"),
        ("مهـــرسا", "مهرسا"),  # tatweel
        ("مُهرسا", "مهرسا"),
        ("کارخانهٔ نان", "کارخانه نان"),
        ("کارخانۀ نان", "کارخانه نان"),
        ("Café", unicodedata.normalize("NFD", "CAFÉ")),
        ("ＮＩＫＥ", "nike"),
        ("Straße", "STRASSE"),
        ("\u202bNike\u202c", "Nike"),
    ],
)
def test_spellings_of_one_name_are_equal(one: str, other: str) -> None:
    assert comparable(one) == comparable(other)


@pytest.mark.parametrize(("one", "other"), [("Active Home", "ActiveHome"), ("آب", "آن"), ("", "a")])
def test_other_names_are_not(one: str, other: str) -> None:
    assert comparable(one) != comparable(other)


def test_a_text_stays_as_written_but_for_marks_that_turn_others_around() -> None:
    assert as_written("  ديجي\u200cكالا \u202eabc\u202c\x00 ") == "ديجي\u200cكالا abc"
    assert as_written("Cafe\u0301") == "Caf\u00e9"


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("Mehrsa یکی از برندهای لبنیات است.", "rtl"),
        ("Danette (Danone) و Nestlé رقیب‌اند و قیمت بالاتری دارند.", "rtl"),
        ("The brand مهرسا sells dairy in Iran.", "ltr"),
        ("120 %", "ltr"),
        ("", "ltr"),
        ("۱۲۰", "ltr"),
    ],
)
def test_the_letters_of_a_text_say_which_way_it_runs(text: str, way: str) -> None:
    assert direction(text) == way


def test_persian_digits_are_read() -> None:
    assert latin_digits("۵۱٫۵٪ ٣") == "51.5% 3"


@given(st.text())
def test_a_key_of_a_key_is_the_key(text: str) -> None:
    assert comparable(comparable(text)) == comparable(text)
    assert as_written(as_written(text)) == as_written(text)

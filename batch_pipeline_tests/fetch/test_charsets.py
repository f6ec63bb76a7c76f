"""Which encoding a page is read in."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.fetch.charsets import decode_page

TURKISH = "Türkiye'nin ekonomisi güçlü büyüyor, şirketler ihracatı artırıyor. " * 5


def meta(charset: str) -> str:
    return f'<html><head><meta charset="{charset}"></head><body>{TURKISH}</body></html>'


def test_the_header_wins_over_the_page() -> None:
    text = meta("iso-8859-1")
    assert decode_page(text.encode("iso-8859-9"), "ISO-8859-9", html=True) == text


@pytest.mark.parametrize("charset", ["iso-8859-9", "windows-1254", "utf-8"])
def test_the_meta_element_says_the_encoding(charset: str) -> None:
    assert decode_page(meta(charset).encode(charset), "", html=True) == meta(charset)


def test_the_old_form_of_the_meta_element_is_read() -> None:
    start = "<meta http-equiv='Content-Type' content='text/html; charset=windows-1251'>"
    assert decode_page((start + "Привет").encode("cp1251"), "", html=True).endswith("Привет")


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
def test_a_byte_order_mark_wins_over_everything(mark: bytes, name: str) -> None:
    assert decode_page(mark + TURKISH.encode(name), "latin-1", html=True) == TURKISH


def test_latin_1_means_windows_1252_as_in_browsers() -> None:
    assert decode_page("“quoted” €5".encode("cp1252"), "iso-8859-1", html=True) == "“quoted” €5"


def test_without_a_word_utf_8_is_tried_and_then_guessed() -> None:
    assert decode_page(TURKISH.encode(), "", html=False) == TURKISH
    german = "Die Straße führt über die Brücke nach Köln, größer als früher. " * 10
    assert decode_page(german.encode("cp1252"), "", html=False) == german


@pytest.mark.parametrize("label", ["utf-7", "base64", "rot13", "idna", "no-such", "x\0y", "hex"])
def test_labels_that_are_no_encodings_of_pages_are_ignored(label: str) -> None:
    assert decode_page(b"+ADw-script+AD4-", label, html=True) == "+ADw-script+AD4-"


@given(st.binary(max_size=300), st.text(max_size=12), st.booleans())
def test_any_bytes_become_text(body: bytes, header: str, html: bool) -> None:
    assert isinstance(decode_page(body, header, html=html), str)

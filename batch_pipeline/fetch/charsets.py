"""Which encoding a page is in, found as browsers find it.

What belongs here: byte order mark, header, meta element, guess. What does not: table files, which
say wrong encodings as errors (sources/text.py).
"""

from __future__ import annotations

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META = re.compile(rb"""<meta\s[^>]{0,500}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.I)
_META_BYTES = 4096
_GUESS_BYTES = 32 * 1024
# Labels that web pages use for more than they say (WHATWG Encoding).
_WIDER = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "iso8859-9": "cp1254",
    "tis-620": "cp874",
    "iso8859-11": "cp874",
}
# No page's own encoding: markup could hide in the first, the others are no character sets.
_NEVER = frozenset(
    {
        "utf-7",
        "idna",
        "punycode",
        "unicode_escape",
        "raw_unicode_escape",
        "undefined",
        "mbcs",
        "oem",
    }
)


def decode_page(body: bytes, header: str, *, html: bool) -> str:
    """The text of a page; bytes that do not fit become replacement characters.

    Args:
        body: as it came, unpacked.
        header: the charset of the Content-Type header, or empty.
        html: whether a meta element may name the encoding.
    """
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    meta = _META.search(body[:_META_BYTES]) if html else None
    named = _codec(header)
    if named is None and meta is not None:
        named = _codec(meta[1].decode("ascii"))
        if named in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
            named = "utf-8"  # whoever could read the meta element read it as ASCII
    if named is not None:
        return body.decode(named, "replace")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        return body.decode(_guess(body, error.start), "replace")


def _codec(label: str) -> str | None:
    """Python's codec for a label, if there is one that decodes text."""
    try:
        info = codecs.lookup(label.strip()) if label.strip() else None
        if info is None or info.name in _NEVER:
            return None
        name = _WIDER.get(info.name, info.name)
        b"a\0".decode(name, "replace")  # codecs from bytes to bytes fail here
    except (LookupError, ValueError, AssertionError):
        return None
    return name


def _guess(body: bytes, first_odd: int) -> str:
    from charset_normalizer import from_bytes

    start = max(0, first_odd - _GUESS_BYTES // 2)
    best = from_bytes(body[start : start + _GUESS_BYTES]).best()
    return best.encoding if best is not None else "cp1252"

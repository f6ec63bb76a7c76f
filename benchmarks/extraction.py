"""`python -m benchmarks.extraction`: how well libraries find a page's article text.

What belongs here: the candidates, the scoring, the table. What does not: which one we use and how
(batch_pipeline/fetch/extract.py), which is measured here as `ours`.

Scoring is that of scrapinghub/article-extraction-benchmark: shingles of four words, true and false
positives and false negatives normalized per page, mean precision over the pages with a prediction,
mean recall over all, F1 of these two means.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import logging
import random
import re
import statistics
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.envs import ROOT

DATA = ROOT.parent / "shared" / "data" / "news" / "url_extraction.tar.gz"

Extract = Callable[[bytes], str]

_SHINGLE_WORDS = 4
_WORD = re.compile(r"\w+")
_RESAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class Page:
    """A saved page and the article text that a person found in it."""

    html: bytes
    article: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way of extracting: `make` imports what it needs, which may be absent."""

    title: str
    package: str
    make: Callable[[], Extract]


@dataclass(frozen=True, slots=True)
class Score:
    """Means over the pages; `error` is 1.96 standard deviations of F1 over resampled pages."""

    f1: float
    error: float
    precision: float
    recall: float
    empty: int
    seconds: float


def load_pages(archive: Path) -> list[Page]:
    """The pages of the archive, in the order of their names."""
    html: dict[str, bytes] = {}
    truth: dict[str, dict[str, str]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            if stream is None:
                continue
            name = PurePosixPath(member.name)
            if name.name == "ground-truth.json":
                truth = json.load(stream)
            elif name.name.endswith(".html.gz"):
                html[name.name.removesuffix(".html.gz")] = gzip.decompress(stream.read())
    return [Page(html[key], truth[key].get("articleBody", "")) for key in sorted(truth)]


def matches(true: str, found: str) -> tuple[float, float, float]:
    """Shares of true positives, false positives and false negatives among the shingles."""
    wanted, got = _shingles(true), _shingles(found)
    hits = sum((wanted & got).values())
    counts = hits, sum(got.values()) - hits, sum(wanted.values()) - hits
    total = sum(counts) or 1
    return counts[0] / total, counts[1] / total, counts[2] / total


def means(shares: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """F1, precision and recall over pages."""
    precision = statistics.mean([hit / (hit + false) for hit, false, _ in shares if hit + false])
    recall = statistics.mean([hit / (hit + missed) for hit, _, missed in shares if hit + missed])
    total = precision + recall
    return (2 * precision * recall / total if total else 0.0), precision, recall


def measure(extract: Extract, pages: Sequence[Page]) -> Score:
    """Extract every page and score what came out; a page that raises has no text."""
    texts = []
    began = time.process_time()
    for page in pages:
        try:
            texts.append(extract(page.html))
        except Exception:  # libraries raise what they like on odd pages; it counts as nothing found
            texts.append("")
    seconds = time.process_time() - began
    shares = [matches(page.article, text) for page, text in zip(pages, texts, strict=True)]
    f1, precision, recall = means(shares)
    draw = random.Random(1)
    spread = [means(draw.choices(shares, k=len(shares)))[0] for _ in range(_RESAMPLES)]
    empty = sum(not text.strip() for text in texts)
    return Score(f1, 1.96 * statistics.stdev(spread), precision, recall, empty, seconds)


def main() -> None:
    """Print the table for the candidates that are installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction", description=__doc__)
    parser.add_argument("archive", nargs="?", type=Path, default=DATA)
    archive: Path = parser.parse_args().archive
    console = Console()
    if not archive.is_file():
        parser.error(f"{archive} is not there; name the archive of saved pages")
    logging.disable(logging.CRITICAL)
    pages = load_pages(archive)
    scores: list[tuple[str, Score]] = []
    absent: list[str] = []
    for candidate in CANDIDATES:
        try:
            extract = candidate.make()
            title = f"{candidate.title} ({candidate.package} {version(candidate.package)})"
        except (ImportError, PackageNotFoundError):
            absent.append(candidate.package)
            continue
        extract(pages[0].html)  # what is loaded at first use is no page's time
        scores.append((title, measure(extract, pages)))
    fastest = min(score.seconds for _, score in scores)
    table = Table(title=f"Article text of {len(pages)} pages")
    for heading in ("extractor", "F1", "+-", "precision", "recall", "empty", "CPU time"):
        table.add_column(heading, justify="left" if heading == "extractor" else "right")
    for title, score in sorted(scores, key=lambda pair: -pair[1].f1):
        figures = (score.f1, score.error, score.precision, score.recall)
        table.add_row(
            title,
            *(f"{figure:.3f}" for figure in figures),
            str(score.empty),
            f"{score.seconds / fastest:.1f}x",
        )
    console.print(table)
    console.print(f"1.0x is {1000 * fastest / len(pages):.1f} ms of CPU a page on this machine.")
    if absent:
        console.print(f"Not installed, so not measured: {', '.join(dict.fromkeys(absent))}.")


def _shingles(text: str) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text)
    count = max(1, len(words) - _SHINGLE_WORDS + 1) if words else 0
    return Counter(tuple(words[at : at + _SHINGLE_WORDS]) for at in range(count))


def _text(html: bytes) -> str:
    return html.decode("utf-8", "replace")


def _ours() -> Extract:
    extract: Any = importlib.import_module("batch_pipeline.fetch.extract").article_text
    return lambda html: str(extract(_text(html)))


def _trafilatura(**options: Any) -> Callable[[], Extract]:
    def make() -> Extract:
        library: Any = importlib.import_module("trafilatura")
        return lambda html: library.extract(_text(html), include_comments=False, **options) or ""

    return make


def _trafilatura_baseline() -> Extract:
    library: Any = importlib.import_module("trafilatura")
    return lambda html: str(library.baseline(_text(html))[1])


def _readability() -> Extract:
    library: Any = importlib.import_module("readability")
    to_text: Any = importlib.import_module("html_text")
    return lambda html: str(to_text.extract_text(library.Document(_text(html)).summary()))


def _newspaper() -> Extract:
    library: Any = importlib.import_module("newspaper")
    return lambda html: str(library.article("http://page.invalid/", input_html=_text(html)).text)


def _goose() -> Extract:
    reader: Any = importlib.import_module("goose3").Goose({"enable_image_fetching": False})
    return lambda html: str(reader.extract(raw_html=_text(html)).cleaned_text)


def _resiliparse() -> Extract:
    library: Any = importlib.import_module("resiliparse.extract.html2text")
    return lambda html: str(library.extract_plain_text(_text(html), main_content=True))


def _boilerpy() -> Extract:
    library: Any = importlib.import_module("boilerpy3.extractors").ArticleExtractor()
    return lambda html: str(library.get_content(_text(html)))


def _html_text() -> Extract:
    library: Any = importlib.import_module("html_text")
    return lambda html: str(library.extract_text(_text(html)))


def _justext() -> Extract:
    library: Any = importlib.import_module("justext")
    words: Any = library.get_stoplist("English")

    def extract(html: bytes) -> str:
        found = library.justext(html, words, encoding="utf-8", enc_errors="replace")
        return "\n".join(part.text for part in found if not part.is_boilerplate)

    return extract


CANDIDATES: tuple[Candidate, ...] = (
    Candidate("ours", "trafilatura", _ours),
    Candidate("default", "trafilatura", _trafilatura()),
    Candidate("favor_precision", "trafilatura", _trafilatura(favor_precision=True)),
    Candidate("favor_recall", "trafilatura", _trafilatura(favor_recall=True)),
    Candidate("fast", "trafilatura", _trafilatura(fast=True)),
    Candidate("without tables", "trafilatura", _trafilatura(include_tables=False)),
    Candidate("fast, without tables", "trafilatura", _trafilatura(fast=True, include_tables=False)),
    Candidate("baseline", "trafilatura", _trafilatura_baseline),
    Candidate("summary", "readability-lxml", _readability),
    Candidate("article", "newspaper4k", _newspaper),
    Candidate("cleaned_text", "goose3", _goose),
    Candidate("main_content", "resiliparse", _resiliparse),
    Candidate("ArticleExtractor", "boilerpy3", _boilerpy),
    Candidate("justext", "justext", _justext),
    Candidate("whole page", "html-text", _html_text),
)


if __name__ == "__main__":
    main()

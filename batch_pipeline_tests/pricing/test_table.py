"""The user's price table: it wins over genai-prices, is dated, and says what is wrong in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batch_pipeline.pricing.prices import (
    MissingBatchPriceError,
    find_pricer,
    require_pricer,
    worst_nano,
)
from batch_pipeline.pricing.table import PRICES_VARIABLE, PriceTableError, price_table
from batch_pipeline.providers.base import Usage
from batch_pipeline.settings import DATA_VARIABLE

AT = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
MILLION = Usage(input_tokens=1_000_000, output_tokens=1_000_000)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the installation's prices.yaml."""
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))

    def write_table(text: str) -> Path:
        path = tmp_path / "prices.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_table


def cost_usd(provider: str, model: str, usage: Usage = MILLION, at: float = AT) -> float:
    return require_pricer(provider, model).cost_nano(usage, at) / 1e9


def test_the_users_price_wins_over_the_published_one(write: Write) -> None:
    assert cost_usd("google", "gemini-3.1-flash-lite") == 1.75
    write("google/gemini-3.1-flash-lite: {input: 2, output: 3.5}\n")
    assert cost_usd("google", "gemini-3.1-flash-lite") == 5.5


def test_a_model_that_nobody_else_knows_gets_its_price(write: Write) -> None:
    assert find_pricer("openai-compatible", "qwen3") is None
    write("openai-compatible/qwen3: {input: 0.05, output: 0.1}\n")
    price = find_pricer("openai-compatible", "qwen3")
    assert price is not None and price(MILLION, AT) == 150_000_000


def test_an_edited_file_counts_at_once(write: Write) -> None:
    path = write("openai/mine: {input: 1, output: 1}\n")
    assert cost_usd("openai", "mine") == 2
    write("openai/mine: {input: 1, output: 9}\n")
    os.utime(path, ns=(0, 0))
    assert cost_usd("openai", "mine") == 10


def test_every_kind_of_token_has_its_own_price_and_falls_back_on_the_next_dearer(
    write: Write,
) -> None:
    write(
        "openai/all: {input: 10, output: 50, cached_input: 1, cache_write: 12, "
        "cache_write_1h: 20, web_search: 14}\n"
        "openai/few: {input: 10, output: 50}\n"
        "openai/write: {input: 10, output: 50, cache_write: 12}\n"
    )
    usage = Usage(400_000, 100_000, 100_000, 100_000, 10_000, web_searches=5)
    assert cost_usd("openai", "all", usage) == pytest.approx(1 + 0.1 + 1.2 + 2 + 0.5 + 0.07)
    assert cost_usd("openai", "few", usage) == pytest.approx(4 + 0.5)
    assert cost_usd("openai", "write", usage) == pytest.approx(2 + 1.2 + 1.2 + 0.5)


def test_a_dated_list_changes_on_its_day(write: Write) -> None:
    write(
        "gemini/dated:\n"
        "  - {from: 2027-01-01, input: 4, output: 4}\n"
        "  - {from: 2026-06-01, input: 2, output: 2}\n"
    )
    night = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    early = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    costs = [cost_usd("google", "dated", at=at) for at in (early, AT, night - 1, night)]
    assert costs == [4, 4, 4, 8]


def test_long_prompts_have_the_price_of_their_tier(write: Write) -> None:
    write(
        "openai/tiered: {input: 1, output: 10, cached_input: 0.5, "
        "tiers: [{above_tokens: 200000, input: 2, output: 20}]}\n"
    )
    below = Usage(input_tokens=200_000, output_tokens=1_000)
    above = Usage(input_tokens=200_001, output_tokens=1_000)
    assert cost_usd("openai", "tiered", below) == pytest.approx(0.21)
    assert cost_usd("openai", "tiered", above) == pytest.approx(0.420002)
    assert worst_nano("openai", "tiered", 10_000, 1_000, AT) < 0.021 * 1e9
    assert worst_nano("openai", "tiered", 300_000, 1_000, AT) > 0.62 * 1e9


def test_the_batch_lane_takes_the_batch_block_and_nothing_else(write: Write) -> None:
    write(
        "google/gemini-3.8-flash: {input: 1, output: 5}\n"
        "google/mine: {input: 1, output: 5, batch: {input: 0.4, output: 2}}\n"
    )
    assert require_pricer("google", "mine", "batch").cost_nano(MILLION, AT) == 2_400_000_000
    with pytest.raises(MissingBatchPriceError, match=r"google/gemini-3\.8-flash"):
        require_pricer("google", "gemini-3.8-flash", "batch")


def test_another_file_can_be_named(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("openai/mine: {input: 1, output: 1}\n")
    other = tmp_path / "other.yaml"
    other.write_text("openai/mine: {input: 3, output: 3}\n", encoding="utf-8")
    monkeypatch.setenv(PRICES_VARIABLE, str(other))
    assert cost_usd("openai", "mine") == 6
    other.unlink()
    with pytest.raises(PriceTableError, match=f"{PRICES_VARIABLE} names .*other.yaml"):
        price_table()


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_table_is_none(write: Write, text: str) -> None:
    write(text)
    assert not price_table().models


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("openai/m: {input: 1}\n", r"entry openai/m, output: Field required"),
        ("openai/m: {input: 1, output: -2}\n", r"entry openai/m, output: .*greater than"),
        ("openai/m: {input: '1', output: 2}\n", r"entry openai/m, input: .*number"),
        ("openai/m: {input: 1, output: 2, prise: 3}\n", r"entry openai/m, prise: Extra inputs"),
        ("openai/m: {input: 1, output: .nan}\n", r"entry openai/m, output: .*finite"),
        ("openai/m: 3\n", r"entry openai/m: "),
        ("openai/m: []\n", r"entry openai/m: .*at least 1"),
        ("nobody/m: {input: 1, output: 2}\n", r"entry 'nobody/m'.*There is no provider 'nobody'"),
        ("justamodel: {input: 1, output: 2}\n", r"entry 'justamodel'"),
        ("openai/a, openai/b: {input: 1, output: 2}\n", r"several models"),
        ("- 1\n", r"is not a list of models"),
        ("openai/m: {input: [\n", r"cannot be read"),
        (
            "gemini/m: {input: 1, output: 2}\ngoogle/m: {input: 1, output: 2}\n",
            r"has prices of google/m twice",
        ),
        (
            "openai/m: [{input: 1, output: 2}, {input: 2, output: 2}]\n",
            r"entry openai/m.*begin on the same day",
        ),
    ],
)
def test_a_wrong_entry_is_named_with_its_file_and_what_to_do(
    write: Write, text: str, says: str
) -> None:
    path = write(text)
    with pytest.raises(PriceTableError, match=says) as caught:
        find_pricer("openai", "m")
    assert str(path) in caught.value.message
    assert caught.value.next_step

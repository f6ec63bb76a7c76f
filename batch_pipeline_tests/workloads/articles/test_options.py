"""What an operator chooses for a batch of articles, against what the rows say."""

from __future__ import annotations

from typing import Any

import pytest

from batch_pipeline.engine.step import AnyStep
from batch_pipeline.errors import UsageError
from batch_pipeline.workloads.articles.options import ArticleOptions, choices_of
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.operator_files import read_options
from batch_pipeline.workloads.runner import resolve_steps

MULTI, SINGLE = "multi_stage", "single_shot"


@pytest.mark.parametrize(
    ("name", "cell", "options", "comes_to"),
    [
        # nothing given: the project's defaults
        ("strategy", "", {}, MULTI),
        ("country", "", {}, "se"),
        ("use_ahrefs", "", {}, True),
        ("enable_llm_profiling", "", {}, True),
        ("strategy", None, {}, MULTI),
        # the cell against a default
        ("strategy", SINGLE, {"default_strategy": MULTI}, SINGLE),
        ("country", "us", {"default_country": "no"}, "us"),
        ("use_ahrefs", False, {"default_use_ahrefs": True}, False),
        ("use_ahrefs", True, {"default_use_ahrefs": False}, True),
        ("enable_llm_profiling", False, {"default_enable_llm_profiling": True}, False),
        # an empty cell is filled
        ("strategy", "", {"default_strategy": SINGLE}, SINGLE),
        ("country", "", {"default_country": "NO"}, "no"),
        ("use_ahrefs", "", {"default_use_ahrefs": False}, False),
        ("enable_llm_profiling", None, {"default_enable_llm_profiling": False}, False),
        # the run's option wins over cell and default
        ("strategy", MULTI, {"strategy": SINGLE}, SINGLE),
        ("strategy", "", {"strategy": SINGLE, "default_strategy": MULTI}, SINGLE),
        ("country", "us", {"country": "de", "default_country": "no"}, "de"),
        ("use_ahrefs", True, {"use_ahrefs": False}, False),
        ("use_ahrefs", False, {"use_ahrefs": True, "default_use_ahrefs": False}, True),
        ("enable_llm_profiling", True, {"enable_llm_profiling": False}, False),
        # an option that was taken back does not win
        ("strategy", SINGLE, {"strategy": None}, SINGLE),
    ],
)
def test_an_option_wins_over_the_cell_and_the_cell_over_the_default(
    name: str, cell: Any, options: dict[str, Any], comes_to: Any
) -> None:
    assert (
        getattr(choices_of({name: cell}, read_options(ArticleOptions, options, "articles")), name)
        == comes_to
    )


def test_the_files_defaults_are_the_guides() -> None:
    shipped = read_options(ArticleOptions, load_workload_config("articles").options, "articles")
    assert shipped == ArticleOptions()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strategi": SINGLE}, "strategi: there is no such option"),
        ({"strategy": "quick"}, "strategy: input should be 'multi_stage' or 'single_shot'"),
        ({"country": "xx"}, "country: 'xx' is no ISO 3166 country code such as se or us"),
        ({"default_country": ""}, "default_country: '' is no ISO 3166 country code"),
        ({"country": False}, "country: YAML reads no as false: write it in quotes"),
        ({"country": 46}, "country: input should be a valid string"),
        ({"use_ahrefs": "perhaps"}, "use_ahrefs: input should be a valid boolean"),
        ({"a": 1, "use_ahrefs": []}, "a: there is no such option"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_with_those_there_are(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_options(ArticleOptions, given, "articles")
    assert said in caught.value.message
    assert "strategy, country, use_ahrefs, enable_llm_profiling" in caught.value.next_step


def steps(**options: Any) -> list[AnyStep]:
    config = load_workload_config("articles").with_options({"options": options})
    return list(resolve_steps(config))


def taken(row: dict[str, Any], **options: Any) -> list[str]:
    return [step.name for step in steps(**options) if step.applies(row)]


PROFILES = ["profile_publisher", "profile_target", "classify_anchor"]
WRITING = {MULTI: ["outline", "draft", "polish"], SINGLE: ["single_shot"]}


@pytest.mark.parametrize("strategy", [MULTI, SINGLE])
@pytest.mark.parametrize("profiling", [True, False])
def test_a_row_takes_the_steps_of_its_strategy_in_their_order(
    strategy: str, profiling: bool
) -> None:
    expected = [
        "preflight", *(PROFILES if profiling else []), "package", *WRITING[strategy], "qc",
    ]  # fmt: skip
    row = {"strategy": strategy, "enable_llm_profiling": profiling}
    assert taken(row) == expected
    other = {"strategy": SINGLE if strategy == MULTI else MULTI, "enable_llm_profiling": True}
    assert taken(other, strategy=strategy, enable_llm_profiling=profiling) == expected
    empty = {"strategy": "", "enable_llm_profiling": ""}
    defaults = {"default_strategy": strategy, "default_enable_llm_profiling": profiling}
    assert taken(empty, **defaults) == expected


def test_an_option_is_part_of_what_steps_are_asked_for_and_a_wrong_one_stops_before_all() -> None:
    with pytest.raises(UsageError, match="there is no such option"):
        steps(stratgy=SINGLE)
    with pytest.raises(UsageError, match="written one by one"):
        resolve_steps(load_workload_config("articles").with_options({"pack": 2}))

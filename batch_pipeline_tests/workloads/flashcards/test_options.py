"""Options of a run, and the steps that each mode has."""

from __future__ import annotations

from typing import Any

import pytest

from batch_pipeline.engine.step import Branches, LocalStep, llm_steps
from batch_pipeline.errors import UsageError
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.flashcards.options import MOST_CARDS, FlashcardOptions
from batch_pipeline.workloads.flashcards.workload import FlashcardsWorkload
from batch_pipeline.workloads.operator_files import read_options
from batch_pipeline.workloads.runner import resolve_steps


def names(**options: Any) -> list[str]:
    config = load_workload_config("flashcards").with_options({"options": options})
    return [step.name for step in resolve_steps(config)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "google"}, "mode: input should be 'exa', 'web' or 'unified', but it is 'google'"),
        ({"num_flashcards": 0}, "num_flashcards: input should be greater than or equal to 1"),
        ({"num_flashcards": 51}, "less than or equal to 50"),
        ({"rounds": 9}, "less than or equal to 5"),
        ({"cards": 15}, "cards: there is no such option"),
        ({"search_context_size": "huge"}, "'low', 'medium' or 'high', but it is 'huge'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_what_there_is(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        read_options(FlashcardOptions, given, "flashcards")
    assert said in str(refused.value)
    assert "There are: mode, num_flashcards, research" in str(refused.value)


def test_defs_yaml_says_what_holds_without_it() -> None:
    shipped = load_workload_config("flashcards").options
    assert read_options(FlashcardOptions, shipped, "flashcards") == FlashcardOptions()


def test_context_size_bounds_the_search() -> None:
    found = []
    for size in ("low", "medium", "high"):
        search = read_options(
            FlashcardOptions, {"search_context_size": size}, "flashcards"
        ).web_search
        assert search is not None
        found.append((search.max_results, search.max_characters))
    assert found == [(3, 1_000), (5, 2_000), (10, 4_000)]
    assert FlashcardOptions(research=False).web_search is None


def test_each_mode_has_its_steps() -> None:
    checks = ["check", "again_1", "check_1", "again_2", "check_2", "record"]
    assert names() == ["cards", *checks]
    assert names(mode="exa") == ["research", "cards", *checks]
    assert names(mode="unified") == [
        "research", "sources", "votes", "tally", "synthesis", "cards", *checks,
    ]  # fmt: skip
    assert names(mode="exa", research=False) == ["cards", *checks]
    assert names(rounds=0) == ["cards", "check", "record"]


def test_only_the_step_that_researches_searches_the_web() -> None:
    def searching(**options: Any) -> list[str]:
        config = load_workload_config("flashcards").with_options({"options": options})
        return [one.name for one in llm_steps(resolve_steps(config)) if one.web_search]

    assert searching() == ["cards"]
    assert searching(mode="unified") == ["research"]
    assert searching(mode="exa") == searching(research=False) == []
    assert searching(mode="unified", research=False) == []


def test_exa_is_needed_in_its_own_mode_alone() -> None:
    workload = FlashcardsWorkload()
    assert workload.search_providers({"mode": "exa"}) == ("exa",)
    assert workload.search_providers({"mode": "exa", "research": False}) == ()
    assert workload.search_providers({}) == workload.search_providers({"mode": "unified"}) == ()
    config = load_workload_config("flashcards").with_options({"options": {"mode": "exa"}})
    (research,) = [one for one in resolve_steps(config) if one.name == "research"]
    assert isinstance(research, LocalStep) and research.searches == {"exa": 1}


def test_eight_voters_vote_side_by_side_and_none_is_needed() -> None:
    config = load_workload_config("flashcards").with_options({"options": {"mode": "unified"}})
    (votes,) = [one for one in resolve_steps(config) if isinstance(one, Branches)]
    assert len(votes.steps) == 8
    assert all(one.optional and one.name.startswith("vote_") for one in votes.steps)


def test_the_largest_set_fits_what_models_can_write() -> None:
    config = load_workload_config("flashcards")
    steps = resolve_steps(config.with_options({"options": {"num_flashcards": MOST_CARDS}}))
    bounds = [one.output_tokens_base + one.output_tokens_per_item for one in llm_steps(steps)]
    assert max(bounds) <= 65_536


def test_packs_are_refused() -> None:
    with pytest.raises(UsageError, match="asked about one by one"):
        resolve_steps(load_workload_config("flashcards").with_options({"pack": 5}))

"""What stops a run before anything is paid: keys of search providers, models without the web."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from batch_pipeline.engine.step import Step
from batch_pipeline.errors import UsageError
from batch_pipeline.providers.base import WebSearch
from batch_pipeline.providers.registry import MissingKeyError
from batch_pipeline.workloads.config import WorkloadConfig, load_workload_config
from batch_pipeline.workloads.roadmaps.workload import RoadmapsWorkload
from batch_pipeline.workloads.runner import check_ready, resolve_route

SIMULATOR = "http://127.0.0.1:1"


class Searching(RoadmapsWorkload):
    """Topics that a model looks up on the web, and Tavily besides where an option says so."""

    def search_providers(self, options: Mapping[str, Any]) -> Sequence[str]:
        """By the option `tavily`."""
        return ["tavily"] if options.get("tavily") else []

    def steps(self, prompt: str, knobs: Mapping[str, Any]) -> Sequence[Step]:
        """The roadmaps' own step, with the web."""
        (step,) = super().steps(prompt, {"pack": 1})
        return (replace(step, web_search=WebSearch()),)


def config(route: str, **options: Any) -> WorkloadConfig:
    name = "batch_pipeline_tests.workloads.test_ready:Searching"
    found = load_workload_config("roadmaps").with_options({"route": route, "rate_limit": 60.0})
    return found.model_copy(update={"workload": name, "options": options, "tier": None})


@pytest.mark.parametrize(
    ("route", "names"),
    [
        ("google/gemini-3.1-flash-lite", "google/gemini-3.1-flash-lite"),
        ("openrouter/x/y, anthropic/claude-haiku-5-5", "anthropic/claude-haiku-5-5"),
    ],
)
def test_every_model_of_a_route_must_be_able_to_search(route: str, names: str) -> None:
    with pytest.raises(
        UsageError, match=f"{names} cannot search the web, and the step enrich"
    ) as e:
        check_ready(config(route), SIMULATOR)
    assert "openrouter" in e.value.next_step


def test_models_that_are_never_asked_need_not() -> None:
    found = config("openrouter/x/y, google/gemini-3.1-flash-lite")
    assert len(check_ready(found.model_copy(update={"fallback": False}), SIMULATOR)) == 1
    assert len(resolve_route(config("openrouter/x/y"), SIMULATOR)) == 1


def test_a_search_provider_without_a_key_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-v1-0123456789abcdef")
    wanted = config("openrouter/x/y", tavily=True)
    with pytest.raises(MissingKeyError, match=r"searches with tavily, and TAVILY_API_KEY") as error:
        check_ready(wanted, None)
    assert "--simulate" in error.value.next_step
    assert check_ready(wanted, SIMULATOR)
    monkeypatch.setenv("TAVILY_API_KEY", "tvly-0123456789abcdef")
    assert check_ready(wanted, None)
    monkeypatch.delenv("TAVILY_API_KEY")
    assert check_ready(config("openrouter/x/y"), None), "the options say that none is needed"

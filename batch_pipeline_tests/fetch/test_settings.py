"""What the environment says about fetching."""

from __future__ import annotations

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.fetch.settings import FetchSettings, load_fetch_settings


def test_without_variables_robots_are_obeyed_and_nothing_private_is_allowed() -> None:
    settings = load_fetch_settings({})
    assert settings == FetchSettings()
    assert settings.obey_robots and settings.robots_name == "batch-pipeline"
    assert not settings.rules.hosts and not settings.rules.networks


def test_the_operator_may_allow_hosts_name_us_and_ignore_robots() -> None:
    settings = load_fetch_settings(
        {
            "BATCH_PIPELINE_FETCH_ALLOW": "wiki.example, 10.1.0.0/16",
            "BATCH_PIPELINE_FETCH_USER_AGENT": "acme-reader/2.0 (+https://acme.example)",
            "BATCH_PIPELINE_FETCH_ROBOTS": "Ignore",
        }
    )
    assert [one.name for one in settings.rules.hosts] == ["wiki.example"]
    assert settings.robots_name == "acme-reader" and not settings.obey_robots


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCH_PIPELINE_FETCH_ROBOTS", "maybe"),
        ("BATCH_PIPELINE_FETCH_USER_AGENT", "a\r\nX-Injected: 1"),
        ("BATCH_PIPELINE_FETCH_USER_AGENT", "läser/1"),
        ("BATCH_PIPELINE_FETCH_ALLOW", "http://x"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        load_fetch_settings({name: value})

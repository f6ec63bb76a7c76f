"""The shared resources: ceilings on a run's rates, and what the runs of all processes share."""

from __future__ import annotations

import dagster as dg
import sqlalchemy as sa

from batch_pipeline.component.resources import RateLimitResource
from batch_pipeline.definitions import build_defs
from batch_pipeline.engine.job import Endpoint
from batch_pipeline.ledger.calls import Owner, PauseKey
from batch_pipeline.ledger.tables import gates, limit_rates, limits, owners, pauses
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.runner import resolve_route
from batch_pipeline_tests.dagster.installation import Installation


def test_a_ceiling_lowers_what_is_higher_or_unlimited_and_leaves_the_rest() -> None:
    ceilings = RateLimitResource(workers=2, rate_limit=100.0, input_tokens_per_min=5_000.0)
    config = load_workload_config("roadmaps").with_options({"workers": 8, "rate_limit": 15.0})

    held = ceilings.apply(config)

    assert (held.workers, held.rate_limit) == (2, 15.0)
    assert (held.input_tokens_per_min, held.output_tokens_per_min) == (5_000.0, None)
    assert RateLimitResource().apply(config) is config


def test_a_location_with_ceilings_runs_below_them(instance: dg.DagsterInstance) -> None:
    defs = build_defs(resource_overrides={"limits": RateLimitResource(workers=1)})
    assert defs.resources is not None
    assert defs.resources["limits"].workers == 1
    assert instance.get_runs_count() == 0


def test_shared_limits_show_the_lowest_rate_of_living_runs_and_a_pause(
    here: Installation,
) -> None:
    config = load_workload_config("roadmaps")
    endpoint: Endpoint = resolve_route(config, here.simulator.url)[0]
    key = PauseKey("simulated", endpoint.provider, endpoint.label, endpoint.key_id)
    names = {
        "realm": key.realm, "provider": key.provider, "model": key.model, "key_id": key.key_id,
    }  # fmt: skip
    with here.ledger() as ledger:
        now = ledger.clock.now()
        with ledger.write() as connection:
            for run_id, rate, lease_s in (("slow", 1.0, 60), ("fast", 5.0, 60), ("dead", 0.1, -1)):
                owner = Owner.here(run_id)
                connection.execute(
                    owners.insert(),
                    {
                        "owner_id": owner.owner_id, "host": "h", "pid": 1, "run_id": run_id,
                        "started_at": now, "lease_expires_at": now + lease_s,
                    },
                )  # fmt: skip
                connection.execute(
                    gates.insert(),
                    {**names, "owner_id": owner.owner_id, "held": 2, "updated_at": now},
                )
                connection.execute(
                    limit_rates.insert(),
                    {
                        **names, "dimension": "requests", "owner_id": owner.owner_id,
                        "amount": rate * 60,
                    },
                )  # fmt: skip
            connection.execute(
                limits.insert(), {**names, "dimension": "requests", "arrival_at": now + 30}
            )
            connection.execute(
                pauses.insert(), {**names, "paused_until": now + 50, "reason": "429"}
            )

        shared = RateLimitResource().shared_limits(ledger, endpoint)

        assert shared.per_minute == {"requests": 60.0}
        assert {run.run_id for run in shared.key.runs} == {"slow", "fast"}
        assert 25 < (shared.key.limit("requests").free_in_s or 0) <= 30
        assert shared.key.limit("concurrent").used == 4, "slots of a dead run are free"
        assert 45 < shared.key.paused_s <= 50
        assert "| requests a minute | 60 | user |" in shared.markdown()
        with ledger.write() as connection:
            connection.execute(sa.delete(pauses))
        assert RateLimitResource().shared_limits(ledger, endpoint).key.paused_s == 0

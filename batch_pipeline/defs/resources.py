"""The resources of this code location.

What belongs here: instances, by key. What does not: their classes (component/resources.py).
"""

import dagster as dg

from batch_pipeline.component.resources import (
    EngineRoom,
    InstallationResource,
    LedgerResource,
    RateLimitResource,
    RunListener,
)


@dg.definitions
def resources() -> dg.Definitions:
    """Settings, ledger, rate limits, engine threads and the listener."""
    return dg.Definitions(
        resources={
            "installation": InstallationResource(),
            "engines": EngineRoom(),
            "ledger": LedgerResource(),
            "limits": RateLimitResource(),
            "listener": RunListener(),
        }
    )

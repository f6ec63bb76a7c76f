"""The code location: everything below defs/, and the seam for other resources (tests, CLI).

What belongs here: loading. What does not: any Dagster object (defs/, component.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

LOCATION_NAME = "batch_pipeline"
"""Name of this code location; the same as in workspace.yaml and pyproject.toml."""


def build_defs(*, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """A fresh code location.

    Args:
        resource_overrides: resources by key that replace those of defs/resources.py.
    """
    loaded = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions(
        assets=loaded.assets,
        asset_checks=loaded.asset_checks,
        jobs=loaded.jobs,
        schedules=loaded.schedules,
        sensors=loaded.sensors,
        resources={**(loaded.resources or {}), **(resource_overrides or {})},
        # A process per step costs 6 to 7 s of imports and buys nothing: the engine has its own
        # thread and loop.
        executor=dg.in_process_executor,
        component_tree=loaded.component_tree,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What `dagster dev` and `dg dev` load."""
    return build_defs()

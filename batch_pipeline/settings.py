"""Where this installation keeps things and which realm it works in, read in one place.

What belongs here: paths and environment variables that several rooms need. What does not: a
workload's knobs (its defs.yaml) and provider keys (providers/registry.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Realm = Literal["live", "simulated"]

DATA_VARIABLE = "BATCH_PIPELINE_DATA"
LEDGER_VARIABLE = "BATCH_PIPELINE_LEDGER_URL"
SIMULATE_VARIABLE = "BATCH_PIPELINE_SIMULATE"

_TRUE = frozenset({"1", "true", "yes", "on"})


def project_root() -> Path:
    """The nearest folder above this package with a workspace.yaml, else the working directory."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "workspace.yaml").is_file():
            return folder
    return Path.cwd()


@dataclass(frozen=True, slots=True)
class Settings:
    """Paths and realm of one installation.

    Attributes:
        data: root of all state and outputs.
        ledger_url: SQLAlchemy URL of the ledger.
        simulate: whether simulation was asked for by the environment.
    """

    data: Path
    ledger_url: str
    simulate: bool

    @property
    def dagster_home(self) -> Path:
        """DAGSTER_HOME of every door."""
        return self.data / "dagster_home"

    @property
    def inbox(self) -> Path:
        """Files dropped into `<inbox>/<workload>/` become batches."""
        return self.data / "inbox"

    @property
    def logs(self) -> Path:
        """Logs of runs, one pair of files for each day."""
        return self.data / "logs"

    @property
    def outputs(self) -> Path:
        """Deliverables and reports, at `<outputs>/<workload>/<batch>/`."""
        return self.data / "outputs"

    @property
    def roadmaps(self) -> Path:
        """Roadmap folders that `--roadmap NAME` finds."""
        return self.data / "roadmaps"

    @property
    def simulator_state(self) -> Path:
        """Journal, log and address of the local simulator."""
        return self.data / "simulator"

    def realm(self, simulate: bool | None = None) -> Realm:
        """The realm of a run: `simulate` where given, else what the environment asks for."""
        return "simulated" if (self.simulate if simulate is None else simulate) else "live"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ`; by default from this process's and the project's .env."""
    if environ is None:
        _load_dotenv()
        environ = os.environ
    data = Path(environ.get(DATA_VARIABLE) or project_root() / "data").expanduser().resolve()
    return Settings(
        data=data,
        ledger_url=environ.get(LEDGER_VARIABLE) or f"sqlite:///{data / 'ledger.db'}",
        simulate=environ.get(SIMULATE_VARIABLE, "").strip().lower() in _TRUE,
    )


def _load_dotenv() -> None:
    """Take over the project's .env, without overriding what the environment already says."""
    path = project_root() / ".env"
    if path.is_file():
        from dotenv import load_dotenv

        load_dotenv(path, override=False)

"""simulator.json in the state folder: where the running simulator is. Cheap to import."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_NAME = "simulator.json"


@dataclass(frozen=True)
class State:
    """One running simulator.

    Attributes:
        started_at: UTC seconds.
        mode: `normal` or `bench`.
    """

    url: str
    pid: int
    started_at: float
    mode: str


def read_state(state_dir: Path) -> State | None:
    """Return what is recorded, whether it still runs or not; None when nothing readable is."""
    try:
        return State(**json.loads((state_dir / FILE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_state(state_dir: Path, state: State) -> None:
    """Record a running simulator; a reader never sees half a file."""
    part = state_dir / f".{FILE_NAME}.{state.pid}"
    part.write_text(json.dumps(asdict(state)), encoding="utf-8")
    os.replace(part, state_dir / FILE_NAME)


def forget_state(state_dir: Path, pid: int) -> None:
    """Remove the record of one process, not that of another one that came later."""
    state = read_state(state_dir)
    if state and state.pid == pid:
        (state_dir / FILE_NAME).unlink(missing_ok=True)

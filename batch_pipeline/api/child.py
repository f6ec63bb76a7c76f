"""One run of a batch in a process of its own: asked on stdin, answered on stdout.

What belongs here: that translation. What does not: the run (doors.py), who starts it (worker.py).
"""

from __future__ import annotations

import sys
from typing import Any

import orjson

from batch_pipeline.doors import RunRequest, RunResult, run_batch
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.tables import NANO

_FIGURES = (
    "cache_hits", "requests", "attempts", "input_tokens", "cached_input_tokens", "output_tokens",
    "wall_s", "rate_wait_s",
)  # fmt: skip


def main() -> int:
    """Run what stdin asks for, and write one JSON object.

    What is not the caller's to mend is raised: its traceback goes to stderr, for the operator.
    """
    request = RunRequest(**orjson.loads(sys.stdin.buffer.read()))
    try:
        document = _document(run_batch(request))
    except KeyboardInterrupt:
        document = {"status": "interrupted"}
    except UsageError as error:
        document = {"error": str(error)}
    sys.stdout.buffer.write(orjson.dumps(document))
    return 0


def _document(result: RunResult) -> dict[str, Any]:
    summary = result.summary
    return {
        "run_id": result.run_id,
        "status": result.status,
        "message": result.message,
        "summary": {
            "status": result.status,
            "rows": result.row_count,
            "outcomes": {name: count for name, count in result.outcomes.items() if count},
            **{name: summary[name] for name in _FIGURES if name in summary},
            "cost_usd": (summary.get("cost_nano") or 0) / NANO,
            "lost_cost_usd": (summary.get("lost_nano") or 0) / NANO,
            "deliverables": [path.name for path in result.deliverables],
        },
    }


if __name__ == "__main__":
    sys.exit(main())

"""A process that holds slots until it is killed: `python -m ... LEDGER_URL COUNT LIMIT`.

Prints one line when it holds them.
"""

from __future__ import annotations

import asyncio
import sys

from batch_pipeline.clock import SystemClock
from batch_pipeline.ledger.calls import HEARTBEAT, Owner
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.limits.limiter import Gate, Rates
from batch_pipeline_tests.limits.offices import KEY


async def _main(url: str, count: int, limit: int) -> None:
    with Ledger(url, "simulated") as ledger:
        owner = Owner.here("holder")
        await ledger.writer.post(HEARTBEAT, owner)
        gate = Gate(ledger.writer, SystemClock(), KEY, owner.owner_id, Rates(concurrent=limit))
        await gate.open()
        await asyncio.gather(*(gate.enter() for _ in range(count)))
        sys.stdout.write("held\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

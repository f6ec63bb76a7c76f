"""`make bench`, or `python -m benchmarks [a b ...]`: our engine and its peers in one run.

What belongs here: which parts there are, their order, and the page they are written to. What does
not: the measurements.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import cached, cost, crash, lane, limit, memory, throughput
from benchmarks.bench import Bench, Part
from benchmarks.clients import FLOOR, PEERS, own, peer_clients

PARTS: dict[str, Callable[[Bench], Part]] = {
    "a": throughput.run,
    "b": limit.run,
    "c": crash.run,
    "d": memory.run,
    "e": cached.run,
    "f": cost.run,
    "g": lane.run,
}
_WITH_PEERS = frozenset("abce")
_RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    """Run the parts asked for, print them, and write them to benchmarks/RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="a to g; all when none is named")
    parser.add_argument(
        "--quick", action="store_true", help="small counts, and nothing is written to RESULTS.md"
    )
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    names = [name for name in PARTS if name in (options.parts or PARTS)]
    console = Console(stderr=True)
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {text}", markup=False, highlight=False)

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        wanted = (FLOOR, *PEERS) if _WITH_PEERS & set(names) else ()
        say("environments of the peers")
        clients, missing = peer_clients(scratch / "home", wanted)
        floor = next((client for client in clients if client.peer is FLOOR), None)
        bench = Bench(
            scratch=scratch,
            floor=floor,
            ours=own(),
            peers=[client for client in clients if client is not floor],
            missing=missing,
            quick=options.quick,
            say=say,
        )
        parts = [PARTS[part](bench) for part in names]
        page = _page(parts, bench, names, time.monotonic() - began)
    Console().print(Markdown(page))
    if not options.quick:
        _RESULTS.write_text(page, encoding="utf-8")
        say(f"written to {_RESULTS.name}")


def _page(parts: Sequence[Part], bench: Bench, names: Sequence[str], took_s: float) -> str:
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    chosen = "" if len(names) == len(PARTS) else " " + " ".join(names)
    compared = [client.title for client in (bench.floor, *bench.peers) if client is not None]
    lines = [
        "# Benchmark results",
        "",
        f"Written by `python -m benchmarks{chosen}` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC in "
        f"{took_s / 60:.0f} minutes. Machine: {machine}; load at the end {load}. Ratios within one "
        "run mean more than the figures alone.",
        "",
        f"Ours is batch-pipeline {version('batch-pipeline')} (in bold) with SQLite ledger, limiter "
        "and budget on, as a run of the pipeline has them.",
    ]
    if compared:
        lines.append(
            f"Compared with: {', '.join(compared)}; each in an environment of its own, with its "
            "own retries (10), its own limiter and cache where it has them, and nothing sent home. "
            "All of them send the same prompts to the same simulator on this machine, over "
            "OpenAI's Chat Completions. `aiohttp` is a bare loop without retries: the floor."
        )
    lines.append("")
    if bench.missing:
        lines += ["Could not be installed, and so not measured:", ""]
        lines += [f"- {title}: {why}" for title, why in bench.missing.items()]
        lines.append("")
    stamp = f"Measured on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; load at the end {load}."
    sections = [
        "\n".join([f"## {part.heading}", "", stamp, "", *part.lines]).strip() for part in parts
    ]
    head = "\n".join(lines).strip()
    if chosen and _RESULTS.is_file():
        # Parts that were not run keep what an earlier run found, and its head.
        head, *old = _RESULTS.read_text(encoding="utf-8").split("\n## ")
        kept = {section[:3]: f"## {section.strip()}" for section in old}
        kept |= {section[3:6]: section for section in sections}
        sections = [kept[letter] for letter in sorted(kept)]
    text = "\n\n".join([head.strip(), *sections])
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


if __name__ == "__main__":
    main()

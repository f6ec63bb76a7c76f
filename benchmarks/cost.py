"""Part f: what 1,000 rows cost: one by one, packed, and with the provider's prompt cache.

What belongs here: that measurement, from the simulator's journal. What does not: estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch_pipeline.simulator.prices import price_usd
from batch_pipeline.simulator.wire import Usage
from benchmarks.bench import Bench, Part, table
from benchmarks.envs import ROOT
from benchmarks.load import Simulator, write_table
from benchmarks.ours import work

GOOGLE = "google/gemini-3.1-flash-lite"
ANTHROPIC = "anthropic/claude-haiku-5-5"
PACK = 20

# Long enough that every provider caches it (1,024 tokens and more).
_EXAMPLES = 40


def run(bench: Bench) -> Part:
    """Each way of sending the same rows."""
    source = ROOT.parent / "shared" / "data" / "roadmaps" / "rows_1000.csv"
    named = "`rows_1000.csv`"
    if not source.exists() or bench.quick:
        source = write_table(bench.folder("f") / "rows.csv", range(bench.count(1_000, 60)))
        named = "made-up rows (`rows_1000.csv` is not beside the checkout)"
    long = _long_prompt(bench.folder("f"))
    ways: list[tuple[str, str, int, Path | None]] = [
        ("single", GOOGLE, 1, None),
        ("packed", GOOGLE, PACK, None),
        ("single", ANTHROPIC, 1, None),
        ("packed", ANTHROPIC, PACK, None),
        ("single, prompt-cached", ANTHROPIC, 1, long),
        ("packed, prompt-cached", ANTHROPIC, PACK, long),
    ]
    rows = []
    for way, route, pack, prompt in ways:
        bench.say(f"(f) {route}, {way}")
        folder = bench.folder("f")
        with Simulator.start(folder / "simulator") as server:
            server.configure(latency_s=0.02, limits=[{"requests_per_minute": 1e9}])
            knobs = {"route": route, "pack": pack, "workers": 8}
            given = work(server.url, source, folder, knobs=knobs, prompt=prompt)
            done = bench.ours.run(given, folder).done
            paid = float(server.summary()["price_usd"])
            journal = server.journal()
        rows.append([way, f"`{route}`", *_figures(journal, done, paid)])
    lines = [
        f"{named}, priced from the simulator's journal. `without the cache` is what the same "
        "requests would have cost at the full input price. The prompt-cached runs have a system "
        f"prompt with {_EXAMPLES} worked examples, long enough to be cached; the others the "
        "workload's own.",
        "",
        *table(
            (
                "way", "model", "requests", "input tokens", "of these cached", "output tokens",
                "USD per 1,000 rows", "without the cache",
            ),
            rows,
        ),
    ]  # fmt: skip
    return Part("(f) Cost per 1,000 rows", lines)


def _figures(journal: Sequence[dict[str, Any]], done: int, paid: float) -> list[str]:
    def total(name: str) -> int:
        return sum(entry[name] for entry in journal)

    uncached = sum(
        price_usd(
            entry["provider"],
            entry["model"],
            Usage(input_tokens=entry["input_tokens"], output_tokens=entry["output_tokens"]),
            entry["t"],
        )
        or 0.0
        for entry in journal
    )
    cached = total("cached_input_tokens")
    return [
        f"{len(journal):,}",
        f"{total('input_tokens'):,}",
        f"{cached / max(1, total('input_tokens')):.0%}",
        f"{total('output_tokens'):,}",
        f"**{1_000 * paid / done:.4f}**",
        f"{1_000 * uncached / done:.4f}" if cached else "",
    ]


def _long_prompt(folder: Path) -> Path:
    """A folder with the workload's prompt and worked examples behind it."""
    own = ROOT / "batch_pipeline" / "defs" / "roadmaps" / "prompt.md"
    examples = [
        f'- "Exercise {number}" under "Practice": `tldr` "Shows one small step of a larger skill '
        f'at level {number}", `challenge` "{"expert" if number % 2 else "practice"}"'
        for number in range(_EXAMPLES)
    ]
    text = "\n".join([own.read_text(encoding="utf-8").strip(), "", "More examples:", *examples])
    (folder / "prompt.md").write_text(f"{text}\n", encoding="utf-8")
    return folder

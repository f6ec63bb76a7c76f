"""`python -m benchmarks.guides flashcards|exa|brands`: the guides' jobs, at their size, by the CLI.

What belongs here: these jobs, with kills, and what they paid. What does not: the engine against
peers (the parts of `python -m benchmarks`), correctness in the small (the tests).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.bench import table
from benchmarks.envs import ROOT
from benchmarks.load import Simulator

DATA = ROOT.parent / "shared" / "data"
CLI = Path(sys.executable).with_name("batch-pipeline")

CATEGORY = "001_cybersecurity"
WORKERS = 100
GUIDE_LATENCY_S = 20.0
GUIDE_PER_MINUTE = (50, 100)

EXA_PER_SECOND = 5
PROCESSES = 3

LLM_PER_MINUTE = 60
SEARCHES_PER_MINUTE = 100
BRAND_WORKERS = 8
BOOK = "brands-bench"

_ON_THE_WAY_S = 0.1
"""An answer needs so long, on a busy machine, to travel and to be stored."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A data folder, and the simulator that its runs go to."""

    folder: Path
    server: Simulator

    def run(self, *words: str) -> tuple[int, dict[str, Any], float]:
        """A command to its end: exit code, its JSON object, seconds."""
        began = time.monotonic()
        done = subprocess.run(
            [str(CLI), *words, "--json"], env=self._environment, capture_output=True, text=True
        )
        said = json.loads(done.stdout) if done.stdout.strip() else {"error": done.stderr[-2_000:]}
        if "error" in said:
            raise SystemExit(f"{' '.join(words)}: {said['error']}")
        return done.returncode, said, time.monotonic() - began

    def kill_at(self, ended: int, *words: str) -> float:
        """Kill a command once the simulator has ended so many attempts; when that was."""
        process = subprocess.Popen(
            [str(CLI), *words, "--json"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and self.server.ended() < ended:
            time.sleep(0.01)
        process.kill()
        at = time.time()
        process.wait()
        return at

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if "_API_KEY" not in name},
            "BATCH_PIPELINE_DATA": str(self.folder / "data"),
            "BATCH_PIPELINE_SIMULATE": "1",
            "BATCH_PIPELINE_SIMULATOR_URL": self.server.url,
        }


@contextmanager
def _installed(latency_s: float, **settings: Any) -> Iterator[Installation]:
    with tempfile.TemporaryDirectory(prefix="guides-") as name:
        folder = Path(name)
        with Simulator.start(folder / "simulator") as server:
            _configure(server, latency_s, **settings)
            yield Installation(folder, server)


def _configure(server: Simulator, latency_s: float, **settings: Any) -> None:
    latency = {"base_s": latency_s, "per_output_token_s": 0.0, "jitter_s": 0.1 * latency_s}
    given = {"latency": latency, **settings}
    httpx.put(f"{server.url}/_sim/config", json=given, timeout=60).raise_for_status()


@dataclass(frozen=True, slots=True)
class Paid:
    """What a journal says of calls that were billed."""

    calls: int
    lost: int
    again: int
    needless: int
    refused: int


def paid(journal: Sequence[dict[str, Any]], killed_at: Sequence[float]) -> Paid:
    """Count what was paid again, and of that what had been answered well before a kill.

    Args:
        journal: of the simulator.
        killed_at: when clients were killed.
    """
    billed = sorted((one for one in journal if one["billed"]), key=lambda one: float(one["t"]))
    ends: dict[str, float] = {}
    lost = again = needless = 0
    for one in billed:
        ended_at = one["t"] + one["latency_s"]
        lost += any(one["t"] < at <= ended_at + _ON_THE_WAY_S for at in killed_at)
        before = ends.get(one["body_sha"])
        if before is not None:
            again += 1
            needless += not any(at <= before + _ON_THE_WAY_S for at in killed_at if at < one["t"])
        ends[one["body_sha"]] = ended_at
    return Paid(len(billed), lost, again, needless, sum(one["status"] == 429 for one in journal))


def _spread(rng: random.Random, calls: int, kills: int) -> list[int]:
    """At how many attempts to kill: one place in each of as many equal parts of the work."""
    part = calls * 0.9 / max(1, kills)
    return [int(part * (place + rng.uniform(0.2, 0.9))) for place in range(kills)]


# ---- flashcards ----------------------------------------------------------------------------------


def flashcards(count: int | None, latency_s: float, kills: int, rng: random.Random) -> list[str]:
    """Cybersecurity topics in mode web with 100 calls in flight; whole, and killed again and again.

    Args:
        count: topics; None is all of them.
        latency_s: of a call; the guide's is about 20 s.
        kills: how often the second run is killed.
        rng: chooses when.
    """
    rows = []
    for name, latency, times in (("whole", latency_s, 0), (f"{kills} kills", 2.0, kills)):
        with _installed(latency) as place:
            source = _topics(place.folder / "topics.jsonl", count)
            words = (
                "run", "flashcards", "--input", str(source), "--category", CATEGORY,
                "--workers", str(WORKERS),
            )  # fmt: skip
            total = sum(1 for _ in source.open(encoding="utf-8"))
            at = [place.kill_at(ended, *words) for ended in _spread(rng, total, times)]
            code, ended, wall_s = place.run(*words)
            found = paid(place.server.journal(), at)
            completion = place.run("completion", "status")[1]
            files = len(list((place.folder / "data" / "outputs").rglob("batch.json")))
            per_minute = 60 * ended["outcomes"]["succeeded"] / wall_s
            rows.append([
                name, f"{latency:g} s", f"{total:,}", f"{ended['outcomes']['succeeded']:,}",
                f"{ended['outcomes']['failed']:,}", f"{completion['completed']:,}", f"{files:,}",
                f"{found.calls:,}", f"{found.lost:,}", f"{found.again:,}", f"{found.needless:,}",
                "" if times else f"{wall_s:,.0f} s", "" if times else f"{per_minute:,.0f}",
            ])  # fmt: skip
            print(rows[-1], "exit", code, file=sys.stderr)
    ideal = WORKERS * 60 / latency_s
    return [
        f"`{CATEGORY}` in mode web, {WORKERS} calls in flight. The guide says "
        f"{GUIDE_PER_MINUTE[0]}-{GUIDE_PER_MINUTE[1]} topics a minute at about "
        f"{GUIDE_LATENCY_S:g} s a topic; {WORKERS} calls of {latency_s:g} s are {ideal:,.0f} calls "
        "a minute at best. `needless`: paid again although the answer had come before any kill.",
        "",
        *table(
            (
                "run", "latency", "topics", "succeeded", "failed", "completed", "files",
                "calls paid", "in flight at a kill", "paid again", "needless", "wall",
                "topics/min",
            ),
            rows,
        ),
    ]  # fmt: skip


def _topics(path: Path, count: int | None) -> Path:
    """The category's topics, as JSON lines."""
    kept = 0
    with (
        gzip.open(DATA / "flashcards" / "topics.jsonl.gz", "rt", encoding="utf-8") as given,
        path.open("w", encoding="utf-8") as file,
    ):
        for line in given:
            if json.loads(line)["category_folder"] == CATEGORY and (count is None or kept < count):
                file.write(line)
                kept += 1
    return path


# ---- Exa's limit ---------------------------------------------------------------------------------


def exa(count: int, processes: int) -> list[str]:
    """Several runs in mode exa at once, against a server that refuses what is above the limit.

    Args:
        count: topics of each.
        processes: runs.
    """
    with _installed(0.5, exa_per_second=EXA_PER_SECOND) as place:
        source = _topics(place.folder / "topics.jsonl", processes * count)
        lines = source.read_text(encoding="utf-8").splitlines()
        # What is made once for a data folder is made before.
        place.run("status")
        with ThreadPoolExecutor(processes) as pool:
            for number in range(processes):
                part = place.folder / f"topics-{number}.jsonl"
                part.write_text("\n".join(lines[number::processes]) + "\n", encoding="utf-8")
                words = ("run", "flashcards", "--input", str(part), "--mode", "exa")
                pool.submit(place.run, *words, "--num-flashcards", "3")
        journal = [one for one in place.server.journal() if one["provider"] == "exa"]
    sent = sorted(float(one["t"]) for one in journal)
    rate = (len(sent) - 1) / (sent[-1] - sent[0])
    refused = sum(one["status"] == 429 for one in journal)
    return [
        f"{processes} processes with {count} topics each in mode exa; the server refuses more than "
        f"{EXA_PER_SECOND} searches a second.",
        "",
        *table(
            ("searches", "429s", "a second, first to last", "of the limit"),
            [[f"{len(sent):,}", str(refused), f"{rate:.3f}", f"{rate / EXA_PER_SECOND:.1%}"]],
        ),
    ]


# ---- brands --------------------------------------------------------------------------------------


def brands(count: int | None, speed: float, kills: int, rng: random.Random) -> list[str]:
    """The Iranian and 500 world brands from a sheet, with half of the budget, then the rest.

    Args:
        count: brands of each table; None is all of them.
        speed: how much faster than the guide's limits time passes.
        kills: how often each of both halves is killed.
        rng: chooses when.
    """
    limits = {
        "limits": [{"provider": "openrouter", "requests_per_minute": LLM_PER_MINUTE * speed}],
        "tavily_per_minute": SEARCHES_PER_MINUTE * speed,
    }
    given = _brands("brands_iran_sheet.csv", count) + _brands("brands_500_sheet.csv", count)
    with _installed(2.0 / speed, **limits) as place:
        url = f"{place.server.url}/_sim/sheets/{BOOK}"
        header = ["Brand Name", "Website", "Parent Company", "Status", "Output Path"]
        httpx.put(url, json={"sheets": {"INPUT": [header, *given]}}).raise_for_status()
        words = (
            "run", "brands", "--input", f"sheets:{BOOK}/INPUT", "--workers", str(BRAND_WORKERS),
            "--rate-limit", str(LLM_PER_MINUTE * speed),
            "--search-rate-limit", str(SEARCHES_PER_MINUTE * speed),
        )  # fmt: skip
        estimate = place.run("estimate", *words[1:4])[1]
        need = float(estimate["expected"]["cost_usd"])
        calls = 7 * len(given)
        at = [
            place.kill_at(ended, *words, "--budget", f"{need / 2:.4f}")
            for ended in _spread(rng, calls // 3, kills)
        ]
        code, half, half_s = place.run(*words, "--budget", f"{need / 2:.4f}")
        spent = _spent(place.server)
        first = [_line(place, half, "half the budget", need / 2, spent, half_s, code)]
        done = place.server.ended()
        at += [
            place.kill_at(done + ended, *words, "--budget", f"{2 * need:.4f}")
            for ended in _spread(rng, calls // 3, kills)
        ]
        code, whole, whole_s = place.run(*words, "--budget", f"{2 * need:.4f}")
        first.append(_line(place, whole, "the rest", 2 * need, _spent(place.server), whole_s, code))
        found = paid(place.server.journal(), at)
        asked = httpx.get(f"{place.server.url}/_sim/sheets").json()["requests"]
        writes = sum(one["method"] == "values.batchUpdate" for one in asked)
    return [
        f"{len(given)} brands from a sheet, {BRAND_WORKERS} workers, limits {speed:g} times the "
        f"guide's {LLM_PER_MINUTE} calls and {SEARCHES_PER_MINUTE} searches a minute, killed "
        f"{kills} times in each half. `sheet`: rows whose status is that of the ledger.",
        "",
        *table(
            (
                "run", "budget", "spent in all", "succeeded", "pending", "sheet", "last run",
                "exit",
            ),
            first,
        ),
        f"Calls and searches paid {found.calls:,}, in flight at a kill {found.lost:,}, paid again "
        f"{found.again:,}, needless {found.needless:,}; 429s {found.refused:,}; sheet writes "
        f"{writes:,} in {2 * kills + 2} runs.",
    ]  # fmt: skip


def _line(
    place: Installation,
    ended: dict[str, Any],
    name: str,
    budget: float,
    spent: float,
    wall_s: float,
    code: int,
) -> list[str]:
    sheet = httpx.get(f"{place.server.url}/_sim/sheets/{BOOK}").json()["sheets"]["INPUT"]["values"]
    said = Counter(str(row[3]) if len(row) > 3 and row[3] else "" for row in sheet[1:])
    outcomes = ended["outcomes"]
    right = said["Completed"] == outcomes["succeeded"] and said[""] == ended["pending"]
    print(name, outcomes, said, file=sys.stderr)
    return [
        name, f"${budget:.2f}", f"${spent:.4f}", f"{outcomes['succeeded']:,}",
        f"{ended['pending']:,}", "equal" if right else f"DIFFERS {dict(said)}", f"{wall_s:,.0f} s",
        str(code),
    ]  # fmt: skip


def _spent(server: Simulator) -> float:
    return float(server.summary()["price_usd"])


def _brands(name: str, count: int | None) -> list[list[str]]:
    with (DATA / "brands" / name).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return rows if count is None else rows[:count]


def main() -> None:
    """Run one of the jobs, and print what it came to as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("flashcards", "exa", "brands"))
    parser.add_argument("--count", type=int, help="rows; default: all")
    parser.add_argument(
        "--latency", type=float, default=GUIDE_LATENCY_S, help="flashcards: seconds"
    )
    parser.add_argument(
        "--speed", type=float, default=10.0, help="brands: times the guide's limits"
    )
    parser.add_argument("--kills", type=int, help="default: 10 for flashcards, 5 for brands")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    if given.job == "flashcards":
        kills = 10 if given.kills is None else given.kills
        lines = flashcards(given.count, given.latency, kills, rng)
    elif given.job == "exa":
        lines = exa(given.count or 100, PROCESSES)
    else:
        kills = 5 if given.kills is None else given.kills
        lines = brands(given.count, given.speed, kills, rng)
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""No key gets into anything that a run writes or prints, whatever the providers answer.

Runs are made in a process of their own against a simulator that quotes the keys in its errors; then
every file, every value of every database and all output is searched.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline_tests.simulator.running import INSTANT, ROOT, Running, running

SCRIPT = Path(sys.executable).with_name("batch-pipeline")

# A beginning for each variable that may hold a key; the rest of the key is drawn.
VARIABLES = {
    "GOOGLE_API_KEY": "AIzaSy",
    "GEMINI_API_KEY": "AIzaSy",
    "ANTHROPIC_API_KEY": "sk-ant-api03-",
    "OPENAI_API_KEY": "sk-proj-",
    "OPENROUTER_API_KEY": "sk-or-v1-",
    # no known shape: only the transport knows that it is a key
    "OPENAI_COMPATIBLE_API_KEY": "house",
    "AHREFS_API_KEY": "",
    "EXA_API_KEY": "",
    "TAVILY_API_KEY": "tvly-",
    "BATCH_PIPELINE_SIM_KEY": "simulated",
}
USED = {
    "google": "GOOGLE_API_KEY",
    "openai": "OPENAI_COMPATIBLE_API_KEY",
    "openrouter": "BATCH_PIPELINE_SIM_KEY",
}

_PROGRAM = """
import json, os, sys, traceback
from batch_pipeline.doors import RunRequest, run_batch
for step in json.loads(sys.argv[1]):
    os.environ.update(step["env"])
    try:
        print(run_batch(RunRequest("roadmaps", **step["request"])))
    except BaseException:
        traceback.print_exc()
"""

_ECHO = {"echo_key": True}


@dataclass(frozen=True)
class Written:
    """What the runs left behind.

    Attributes:
        keys: the drawn keys by variable, and passwords.
        row_key: what only looks like a key, in a row of the user's table.
        data: the data folder.
        printed: stdout and stderr of all commands.
        journal: what the simulator saw.
    """

    keys: dict[str, str]
    row_key: str
    data: Path
    printed: str
    journal: list[dict[str, Any]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """Runs and reports of an installation whose providers fail in many ways."""
    data = tmp_path_factory.mktemp("secrets") / "data"
    data.mkdir()
    keys = {name: start + secrets.token_hex(12) for name, start in VARIABLES.items()}
    passwords = {name: secrets.token_hex(12) for name in ("base URL", "ledger")}
    row_key = f"sk-ant-api03-{secrets.token_hex(12)}"
    with running(tmp_path_factory.mktemp("simulator")) as simulator:
        _break(simulator)
        steps = _steps(data, simulator, row_key, passwords)
        environ = _environ(data, simulator, keys)
        printed = [_run([sys.executable, "-c", _PROGRAM, json.dumps(steps)], environ)]
        for words in (
            ["failed", "compatible"],
            ["show", "google:41", "--verbose"],
            ["keys", "check"],
        ):
            printed.append(_run([str(SCRIPT), *words], environ))
        yield Written({**keys, **passwords}, row_key, data, "\n".join(printed), simulator.journal())


def _break(simulator: Running) -> None:
    simulator.configure(
        latency=INSTANT,
        faults=[
            {"provider": "google", "kind": "status", "status": 500, "count": 1, **_ECHO},
            {"provider": "google", "kind": "html", "status": 200, "count": 1, **_ECHO},
            {"provider": "google", "kind": "error_body", "count": 1, **_ECHO},
            {"provider": "google", "kind": "hang", "count": 1},
            {"provider": "google", "kind": "invalid_item", "match": "quotes a key"},
            {"provider": "openai", "kind": "status", "status": 400, **_ECHO},
            {"provider": "openrouter", "kind": "status", "status": 401, **_ECHO},
        ],
    )


def _steps(
    data: Path, simulator: Running, row_key: str, passwords: dict[str, str]
) -> list[dict[str, Any]]:
    table = data / "topics.csv"
    rows = [f"Testing,topic {n},About learning number {n}." for n in range(1, 41)]
    rows.append(f"Testing,topic 41,This row quotes a key: {row_key}")
    table.write_text("\n".join(["Category,Topic,Description", *rows]) + "\n", encoding="utf-8")
    models = {
        "google": "google/gemini-3.1-flash-lite",
        "compatible": "openai-compatible/gpt-6-luna",
        "openrouter": "openrouter/openai/gpt-6-luna",
        "openai": "openai/gpt-6-luna",
    }

    def step(batch: str, **env: str) -> dict[str, Any]:
        knobs = {
            "route": models[batch], "rate_limit": 60_000.0, "pack": 10, "workers": 4,
            "timeout_s": 2.0,
        }  # fmt: skip
        request = {"source": str(table), "batch_id": batch, "knobs": knobs, "verbose": True}
        return {"env": env, "request": {**request, "simulate": batch == "openrouter"}}

    host = simulator.url.removeprefix("http://")
    return [
        step("google"),
        step("compatible"),
        step("openrouter"),
        step("openai", OPENAI_BASE_URL=f"http://user:{passwords['base URL']}@{host}/openai/v1"),
        step(
            "google",
            BATCH_PIPELINE_LEDGER_URL=f"postgresql://batch:{passwords['ledger']}@127.0.0.1:1/none",
        ),
    ]


def _environ(data: Path, simulator: Running, keys: dict[str, str]) -> dict[str, str]:
    addresses = {
        provider.base_url_variable: simulator.url + provider.simulator_path
        for provider in PROVIDERS.values()
    }
    return {
        **os.environ,
        **keys,
        **addresses,
        "BATCH_PIPELINE_DATA": str(data),
        "BATCH_PIPELINE_SIMULATE": "0",
        "BATCH_PIPELINE_SIMULATOR_URL": simulator.url,
    }


def _run(command: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(
        command, env=environ, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def parts(secret: str) -> tuple[bytes, bytes]:
    """Two pieces of a secret's drawn end; its last four characters, which may be shown, are out."""
    return secret[-24:-14].encode(), secret[-14:-4].encode()


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, and every value in it where it is a database or a Parquet file."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        content = path.read_bytes()
        yield name, content
        if content.startswith(b"SQLite format 3"):
            yield from ((f"{name}: {table}", value) for table, value in _values(path))
        if path.suffix == ".parquet":
            yield f"{name}: values", pd.read_parquet(path).to_json().encode()


def _values(path: Path) -> Iterator[tuple[str, bytes]]:
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    if isinstance(value, bytes):
                        # The ledger compresses long bodies.
                        yield table, zlib.decompress(value[1:]) if value[:1] == b"z" else value
                    elif isinstance(value, str):
                        yield table, value.encode("utf-8", "replace")


def test_the_keys_were_really_used(written: Written) -> None:
    used = {record["provider"]: record["key_last4"] for record in written.journal}
    assert used == {name: written.keys[variable][-4:] for name, variable in USED.items()}
    faults = {record["fault"] for record in written.journal}
    assert {"status", "html", "error_body", "hang", "invalid_item"} <= faults


def test_no_key_and_no_password_is_in_anything_that_was_written(written: Written) -> None:
    found, names = [], []
    for name, content in contents(written.data):
        names.append(name)
        found += [
            (name, variable)
            for variable, secret in written.keys.items()
            if any(part in content for part in parts(secret))
        ]
    assert found == []
    everything = " ".join(names)
    for kind in (
        "ledger.db: attempts", "batch_report.html", "batch_report.json", ".csv", ".parquet: values",
        "dagster_home/storage", "event_logs", "logs/batch_",
    ):  # fmt: skip
        assert kind in everything, kind


def test_no_key_and_no_password_is_printed(written: Written) -> None:
    printed = written.printed.encode()
    assert b"Traceback" in printed and b"[key removed]" in printed
    for variable, secret in written.keys.items():
        assert not any(part in printed for part in parts(secret)), variable


def test_a_row_that_quotes_a_key_stays_the_users_data_but_is_not_logged(written: Written) -> None:
    name = written.row_key.encode()
    places = [where for where, content in contents(written.data) if name in content]
    assert any("ledger.db" in place for place in places)
    assert any(place.startswith("outputs") for place in places)
    assert not [place for place in places if place.startswith("logs")]

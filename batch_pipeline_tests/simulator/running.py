"""A simulator in a process of its own, and the official SDKs pointed at it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import httpx
import openai as openai_sdk
from anthropic import AsyncAnthropic
from google import genai
from google.genai import types as genai_types

from batch_pipeline.simulator.launch import base_urls

ROOT = Path(__file__).resolve().parents[2]
Answer = TypeVar("Answer")
INSTANT = {"base_s": 0, "per_output_token_s": 0, "jitter_s": 0}


@dataclass
class Running:
    """A simulator that a test talks to."""

    url: str
    pid: int
    state_dir: Path
    http: httpx.Client
    kept: list[genai.Client] = field(default_factory=list)

    def configure(self, **settings: Any) -> None:
        reply = self.http.put("/_sim/config", json=settings)
        assert reply.status_code == 200, reply.text

    def journal(self, since: int = 0) -> list[dict[str, Any]]:
        reply = self.http.get("/_sim/journal", params={"since": since})
        return list(reply.json()["records"])

    def summary(self) -> dict[str, Any]:
        return dict(self.http.get("/_sim/summary").json())

    def google(self, key: str = "AIza-test", version: str = "v1") -> genai.Client:
        options = genai_types.HttpOptions(
            base_url=base_urls(self.url)["google"],
            api_version=version,
            timeout=20_000,
            retry_options=genai_types.HttpRetryOptions(attempts=1),
        )
        client = genai.Client(api_key=key, http_options=options)
        # A client that nobody holds closes its connections while its own `models` still use them.
        self.kept.append(client)
        return client

    def anthropic(self, key: str = "sk-ant-test", **options: Any) -> anthropic.Anthropic:
        url = base_urls(self.url)["anthropic"]
        return anthropic.Anthropic(api_key=key, base_url=url, max_retries=0, **options)

    def openai(self, key: str = "sk-test", **options: Any) -> openai_sdk.OpenAI:
        url = base_urls(self.url)["openai"]
        return openai_sdk.OpenAI(api_key=key, base_url=url, max_retries=0, **options)

    def async_anthropic(self) -> AsyncAnthropic:
        url = base_urls(self.url)["anthropic"]
        return AsyncAnthropic(api_key="sk-ant-test", base_url=url, max_retries=0)

    def async_openai(self) -> openai_sdk.AsyncOpenAI:
        url = base_urls(self.url)["openai"]
        return openai_sdk.AsyncOpenAI(api_key="sk-test", base_url=url, max_retries=0)

    def advance(self, seconds: float) -> None:
        """Move the clock of batch jobs ahead."""
        reply = self.http.post("/_sim/clock", json={"advance_s": seconds})
        assert reply.status_code == 200, reply.text

    def openrouter(self, key: str = "sk-or-v1-test") -> openai_sdk.OpenAI:
        url = base_urls(self.url)["openrouter"]
        return openai_sdk.OpenAI(api_key=key, base_url=url, max_retries=0)

    def chat(
        self, text: str = "hello there", *, key: str = "sk-test", **fields: Any
    ) -> httpx.Response:
        """Send one OpenAI chat request as bare HTTP."""
        messages = [{"role": "user", "content": text}]
        return self.http.post(
            "/openai/v1/chat/completions",
            json={"model": "gpt-6-luna", "messages": messages, **fields},
            headers={"authorization": f"Bearer {key}"},
        )


@contextlib.contextmanager
def running(state_dir: Path, *options: str) -> Iterator[Running]:
    """Start a simulator and end it, by its own pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", "batch_pipeline.simulator", "--state-dir", str(state_dir), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with httpx.Client(base_url=ready["url"], timeout=20) as client:
            yield Running(ready["url"], ready["pid"], state_dir, client)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
        if process.stdout is not None:
            process.stdout.close()


def until(
    ask: Callable[[], Answer], enough: Callable[[Answer], bool], bound_s: float = 15
) -> Answer:
    """Ask again and again until the answer is enough."""
    deadline = time.monotonic() + bound_s
    while not enough(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.01)
    return answer

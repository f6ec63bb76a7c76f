"""Batch jobs at the three providers through one face, driven by the official SDKs.

What belongs here: making, asking, reading jobs. What does not: assertions about them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from google.genai import types as genai_types

from batch_pipeline_tests.simulator.running import Running, until

MODELS = {"google": "gemini-3.8-flash", "anthropic": "claude-haiku-5-5", "openai": "gpt-6-luna"}
# Half of the time passes before the last line is due: easy to stop in the middle.
SLOW = {"duration_s": 1_000, "per_line_s": 0, "duration_jitter": 0, "pending_share": 0.1}
FROZEN = {"frozen": True}
ROWS = [f"This is row number {n}." for n in range(10)]


def google_lines(rows: Sequence[str]) -> bytes:
    lines = [
        {"key": f"row-{n}", "request": {"contents": [{"role": "user", "parts": [{"text": row}]}]}}
        for n, row in enumerate(rows)
    ]
    return jsonl(lines)


def openai_lines(rows: Sequence[str], **fields: Any) -> bytes:
    lines = [
        {
            "custom_id": f"row-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODELS["openai"],
                "messages": [{"role": "user", "content": row}],
                **fields,
            },
        }
        for n, row in enumerate(rows)
    ]
    return jsonl(lines)


def anthropic_requests(rows: Sequence[str], **params: Any) -> list[Any]:
    return [
        {
            "custom_id": f"row-{n}",
            "params": {
                "model": MODELS["anthropic"],
                "max_tokens": 100,
                "messages": [{"role": "user", "content": row}],
                **params,
            },
        }
        for n, row in enumerate(rows)
    ]


def jsonl(lines: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def parsed(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


class Provider:
    """One provider's jobs."""

    def __init__(self, simulator: Running, name: str, key: str = "test-key") -> None:
        self.simulator = simulator
        self.name = name
        self.headers = {"authorization": f"Bearer {key}", "anthropic-version": "2026-10-21"}
        if name == "google":
            self.headers = {"x-goog-api-key": key}
        self._google = simulator.google(key)
        self._anthropic = simulator.anthropic(key)
        self._openai = simulator.openai(key)

    def upload(self, content: bytes) -> str:
        if self.name == "google":
            config = genai_types.UploadFileConfig(
                mime_type="application/jsonl", display_name="rows"
            )
            uploaded = self._google.files.upload(file=io.BytesIO(content), config=config)
            assert uploaded.name is not None
            return uploaded.name
        return self._openai.files.create(file=("rows.jsonl", content), purpose="batch").id

    def create(self, rows: Sequence[str] = ROWS, content: bytes | None = None) -> str:
        """Make a job, from a file where the provider has files, and return its name."""
        if self.name == "anthropic":
            requests = anthropic_requests(rows)
            return self._anthropic.messages.batches.create(requests=requests).id
        lines = google_lines(rows) if self.name == "google" else openai_lines(rows)
        name = self.upload(content or lines)
        if self.name == "google":
            job = self._google.batches.create(model=MODELS["google"], src=name)
            assert job.name is not None
            return job.name
        return self._openai.batches.create(
            input_file_id=name, endpoint="/v1/chat/completions", completion_window="24h"
        ).id

    def path(self, job: str) -> str:
        return {
            "google": f"/google/v1/{job}",
            "anthropic": f"/anthropic/v1/messages/batches/{job}",
            "openai": f"/openai/v1/batches/{job}",
        }[self.name]

    def get(self, job: str) -> dict[str, Any]:
        """Return the job's body as it stands on the wire."""
        reply = self.simulator.http.get(self.path(job), headers=self.headers)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def state(self, job: str) -> str:
        body = self.get(job)
        if self.name == "google":
            return str(body["metadata"]["state"]).removeprefix("BATCH_STATE_").lower()
        return str(body["processing_status" if self.name == "anthropic" else "status"])

    def done(self, job: str) -> str:
        """Wait for the job's end and return its state."""
        ends = {"google": ("pending", "running"), "anthropic": ("in_progress", "canceling")}
        still = ends.get(self.name, ("validating", "in_progress", "finalizing", "cancelling"))
        return until(lambda: self.state(job), lambda state: state not in still)

    def cancel(self, job: str) -> None:
        if self.name == "google":
            self._google.batches.cancel(name=job)
        elif self.name == "anthropic":
            self._anthropic.messages.batches.cancel(job)
        else:
            self._openai.batches.cancel(job)

    def results(self, job: str) -> dict[str, Any]:
        """Return each line's result by its id: the text of the answer, or the error."""
        if self.name == "anthropic":
            results = self._anthropic.messages.batches.results(job)
            return {
                one.custom_id: one.result.message.content[0].text  # type: ignore[union-attr]
                if one.result.type == "succeeded"
                else one.result.to_dict()
                for one in results
            }
        body = self.get(job)
        if self.name == "google":
            output = body["metadata"].get("output")
            if output is None:
                return {}
            lines = parsed(self._google.files.download(file=output["responsesFile"]))
            return {
                line["key"]: line["response"]["candidates"][0]["content"]["parts"][0]["text"]
                if "response" in line
                else line["error"]
                for line in lines
            }
        found: dict[str, Any] = {}
        for file_id in (body["output_file_id"], body["error_file_id"]):
            if file_id is None:
                continue
            for line in parsed(self._openai.files.content(file_id).content):
                response = line["response"]
                if response is None:
                    found[line["custom_id"]] = line["error"]
                elif response["status_code"] == 200:
                    message = response["body"]["choices"][0]["message"]
                    found[line["custom_id"]] = message["content"]
                else:
                    found[line["custom_id"]] = response
        return found

    def ask_now(self, row: str) -> tuple[str, int]:
        """Ask the same in real time; return the text and the input tokens."""
        if self.name == "google":
            reply = self._google.models.generate_content(model=MODELS["google"], contents=row)
            assert reply.text is not None and reply.usage_metadata is not None
            return reply.text, reply.usage_metadata.prompt_token_count or 0
        messages: Any = [{"role": "user", "content": row}]
        if self.name == "anthropic":
            message = self._anthropic.messages.create(
                model=MODELS["anthropic"], max_tokens=100, messages=messages
            )
            return message.content[0].text, message.usage.input_tokens  # type: ignore[union-attr]
        chat = self._openai.chat.completions.create(model=MODELS["openai"], messages=messages)
        assert chat.usage is not None and chat.choices[0].message.content is not None
        return chat.choices[0].message.content, chat.usage.prompt_tokens

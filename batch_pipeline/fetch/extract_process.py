"""Extraction in a process of its own, which can be ended: a page may be made to take for ever.

What belongs here: the process, its bounds, and talking to it. What does not: extraction itself
(extract.py).

0.3 MB of lists nested in a certain way keep the extraction busy for 13 s, and the time grows with
the square of the size. No thread can be stopped, so a small process does it under limits of CPU
time and memory that the system keeps; it starts once and serves many pages.
"""

from __future__ import annotations

import asyncio
import signal
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from batch_pipeline.fetch.errors import FetchError, NoTextError, TooLargeError, UnreachableError
from batch_pipeline.fetch.extract import Article, extract_article
from batch_pipeline.fetch.facts import PageFacts

_UNKNOWN_END = 255
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class ExtractLimits:
    """Bounds of the extraction of one page.

    Attributes:
        cpu_s: seconds of CPU time.
        memory: bytes of address space of the process.
        processes: processes at once.
    """

    cpu_s: float = 10.0
    memory: int = 2 * 1024**3
    processes: int = 2


class Extractor:
    """Extracts pages in processes of its own; use it as an async context manager."""

    def __init__(self, limits: ExtractLimits | None = None) -> None:
        self._limits = limits or ExtractLimits()
        self._turns = asyncio.Semaphore(self._limits.processes)
        self._idle: list[Process] = []

    async def __aenter__(self) -> Extractor:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._idle:
            await _end(self._idle.pop())

    async def extract(self, content: str, *, html: bool) -> Article:
        """Title, text and facts of a page; see `extract_article`.

        Raises:
            NoTextError: the page is empty.
            TooLargeError: the page takes more time or memory than the bounds allow.
        """
        request = orjson.dumps(
            {
                "content": content.encode("utf-8", "replace").decode("utf-8"),
                "html": html,
                "cpu_s": self._limits.cpu_s,
            }
        )
        async with self._turns:
            process = self._idle.pop() if self._idle else await self._start()
            try:
                reply = await _talk(process, request)
            except (asyncio.IncompleteReadError, ConnectionError, BrokenPipeError) as error:
                await _end(process)
                raise _ended(process.returncode or 0) from error
            except BaseException:
                await _end(process)
                raise
            self._idle.append(process)
        match orjson.loads(reply):
            case {"title": str(title), "text": str(text), "facts": facts}:
                return Article(title, text, PageFacts.model_validate(facts))
            case {"kind": "empty", "message": str(message), "next_step": str(next_step)}:
                raise NoTextError(message, next_step)
            case {"kind": "memory"}:
                raise _too_hard()
            case other:
                raise FetchError(
                    f"The page's text could not be read: {str(other.get('message'))[:300]}.",
                    "Save its text and submit that instead.",
                )

    async def _start(self) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "batch_pipeline.fetch.extract_process",
                str(self._limits.memory),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
            )
        except OSError as error:
            raise UnreachableError(
                f"No process for reading pages could be started: {error}.", "Run again later."
            ) from error


async def _talk(process: Process, request: bytes) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(_LENGTH.pack(len(request)) + request)
    await process.stdin.drain()
    (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
    return await process.stdout.readexactly(length)


async def _end(process: Process) -> None:
    if process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            pass
    await process.wait()


def _ended(code: int) -> FetchError:
    # By a signal: one of its limits, or the system's want of memory. Of a process whose status
    # somebody else has taken, asyncio says 255; ours never ends with that by itself.
    if code < 0 or code == _UNKNOWN_END:
        return _too_hard()
    return FetchError(
        f"The process that reads pages ended by itself (exit code {code}).",
        "Run `python -m batch_pipeline.fetch.extract_process 2000000000` to see why.",
    )


def _too_hard() -> TooLargeError:
    return TooLargeError(
        "The page is built so that reading it takes too much time or memory.",
        "Save its text and submit that instead.",
    )


def serve(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answer requests until the other side closes or this process is ended by its limits."""
    while head := stdin.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(head)
        request = orjson.loads(stdin.read(length))
        # The signal's own action ends the process, even in the midst of C code.
        signal.setitimer(signal.ITIMER_PROF, request.pop("cpu_s"))
        reply = orjson.dumps(_answer(**request))
        signal.setitimer(signal.ITIMER_PROF, 0)
        stdout.write(_LENGTH.pack(len(reply)) + reply)
        stdout.flush()


def _answer(content: str, html: bool) -> dict[str, Any]:
    try:
        found = extract_article(content, html=html)
        return {"title": found.title, "text": found.text, "facts": found.facts.model_dump()}
    except NoTextError as error:
        return {"kind": "empty", "message": error.message, "next_step": error.next_step}
    except (MemoryError, RecursionError):
        return {"kind": "memory"}
    except Exception as error:  # whatever a page makes the libraries raise belongs to its row
        return {"kind": "other", "message": f"{type(error).__name__}: {error}"}


def main() -> None:
    """The process: limits its memory and serves standard input."""
    import resource

    import trafilatura  # noqa: F401  # its loading is not the first page's time

    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # Ctrl-C in a terminal reaches every process of the group: the other side decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()

"""The simulator's HTTP server: routes, waiting, cut connections, journal, control endpoints.

What does not live here: what is answered (`work`) and the fast server for benchmarks (`bench`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvloop
from aiohttp import web
from pydantic import ValidationError

from batch_pipeline.simulator import prices
from batch_pipeline.simulator.batch_anthropic import AnthropicDesk
from batch_pipeline.simulator.batch_google import GoogleDesk
from batch_pipeline.simulator.batch_openai import OpenAIDesk
from batch_pipeline.simulator.catalog import catalog
from batch_pipeline.simulator.config import SimulatorConfig
from batch_pipeline.simulator.desk import Desk
from batch_pipeline.simulator.draws import fingerprint
from batch_pipeline.simulator.journal import Attempt, Journal
from batch_pipeline.simulator.pages import page_of
from batch_pipeline.simulator.replies import abort, send, send_json, send_start
from batch_pipeline.simulator.search_ahrefs import Ahrefs
from batch_pipeline.simulator.search_exa import Exa
from batch_pipeline.simulator.search_tavily import Tavily
from batch_pipeline.simulator.sheets import Sheets
from batch_pipeline.simulator.state import State, forget_state, write_state
from batch_pipeline.simulator.wire import Call, RefusedError, Usage, Wire
from batch_pipeline.simulator.wire_openai import OpenRouterWire
from batch_pipeline.simulator.work import WIRES, Outcome, Work, body_object

# asyncio's default of 100 leaves a burst of 250 connections hanging.
BACKLOG = 4_096
_MAX_BODY = 64 * 1024 * 1024
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_IDLE_CHECK_S = 5.0
_SHUTDOWN_S = 1.0
_DEFAULT_PAGE = 1_000
_PAGES = "/pages/"
# While a thread reads a job's input, the event loop gets its turn after so long.
_SWITCH_S = 0.001

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Simulator:
    """One running simulator: the aiohttp application and what stands behind it."""

    def __init__(self, state_dir: Path, config: SimulatorConfig) -> None:
        self._work = Work(config)
        self._journal = Journal(state_dir / "journal.jsonl")
        self._desk = Desk(state_dir, self._work, self._journal)
        self._google = GoogleDesk(self._desk)
        self._anthropic = AnthropicDesk(self._desk)
        self._openai = OpenAIDesk(self._desk)
        self._searches = tuple(api(self._work, self._journal) for api in (Ahrefs, Exa, Tavily))
        self._sheets = Sheets(state_dir, self._work, self._journal)
        self._concurrent = 0
        self._started_at = time.time()
        self.last_request = time.monotonic()

    def application(self) -> web.Application:
        """Build the aiohttp application."""
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[self._guard])
        generate, count, models, model = (
            self._generate, self._count_tokens, self._models, self._model,
        )  # fmt: skip
        google = r"/google/{version:v1|v1beta}/models"
        one = r"{model:[^:/]+}"
        app.add_routes(
            [
                web.post(f"{google}/{one}:generateContent", self._to("google", generate)),
                web.post(f"{google}/{one}:countTokens", self._to("google", count)),
                web.get(google, self._to("google", models)),
                web.get(f"{google}/{one}", self._to("google", model)),
                web.post("/anthropic/v1/messages", self._to("anthropic", generate)),
                web.post("/anthropic/v1/messages/count_tokens", self._to("anthropic", count)),
                web.get("/anthropic/v1/models", self._to("anthropic", models)),
                web.get(f"/anthropic/v1/models/{one}", self._to("anthropic", model)),
                web.post("/openai/v1/chat/completions", self._to("openai", generate)),
                web.post("/openai/v1/responses", self._to("openai", generate)),
                web.post("/openai/v1/responses/input_tokens", self._to("openai", count)),
                web.get("/openai/v1/models", self._to("openai", models)),
                web.get(f"/openai/v1/models/{one}", self._to("openai", model)),
                web.post("/openrouter/api/v1/chat/completions", self._to("openrouter", generate)),
                web.get("/openrouter/api/v1/models", self._to("openrouter", models)),
                web.get(r"/openrouter/api/v1/models/{model:.+}", self._to("openrouter", model)),
                web.get("/openrouter/api/v1/key", self._to("openrouter", self._key)),
                web.get(f"{_PAGES}{{url:.+}}", self._page),
                web.get("/_sim/health", self._health),
                web.get("/_sim/config", self._get_config),
                web.put("/_sim/config", self._put_config),
                web.post("/_sim/reset", self._reset),
                web.get("/_sim/journal", self._get_journal),
                web.get("/_sim/summary", self._summary),
                web.get("/_sim/enqueued", self._enqueued),
                web.get("/_sim/clock", self._get_clock),
                web.post("/_sim/clock", self._set_clock),
            ]
        )
        for desk in (self._google, self._anthropic, self._openai):
            app.add_routes(desk.routes())
        for search in self._searches:
            app.add_routes(search.routes())
        app.add_routes(self._sheets.routes())
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._close)
        return app

    async def _start(self, app: web.Application) -> None:
        self._desk.start()

    async def _close(self, app: web.Application) -> None:
        await self._desk.close()
        self._journal.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # A web page can make a browser send requests here, or resolve its own name to loopback.
        if not _is_loopback(f"//{request.host}"):
            return send_json(403, {"error": f"Host {request.host!r} is not a loopback name"})
        origin = request.headers.get("origin")
        if origin is not None and not _is_loopback(origin):
            return send_json(403, {"error": f"Origin {origin!r} is not a loopback name"})
        self.last_request = time.monotonic()
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return self._not_found(request)
        except web.HTTPRequestEntityTooLarge:
            wire = WIRES.get(request.path.split("/")[1])
            return send(wire.error(413)) if wire else send_json(413, {"error": "body too large"})

    def _not_found(self, request: web.Request) -> web.Response:
        wire = WIRES.get(request.path.split("/")[1])
        message = f"The simulator has no {request.method} {request.path}"
        if wire is None:
            return send_json(404, {"error": f"{message}; see docs/simulator.md"})
        return send(wire.error(404, message=message))

    def _to(
        self, provider: str, handler: Callable[[Wire, web.Request], Awaitable[web.StreamResponse]]
    ) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await handler(WIRES[provider], request)

        return handle

    async def _generate(self, wire: Wire, request: web.Request) -> web.StreamResponse:
        endpoint = _endpoint(request)
        request_id = _new_request_id()
        raw = await request.read()
        mono, now = time.monotonic(), time.time()
        body_sha = fingerprint(raw)
        client_request_id = request.headers.get("x-client-request-id", "")

        def record(
            status: int,
            model: str,
            *,
            key: str,
            usage: Usage = Usage(),  # noqa: B008 (frozen)
            billed: bool = False,
            fault: str | None = None,
            items: int = 0,
            search_usd: float = 0.0,
        ) -> None:
            self._journal.add(
                Attempt(
                    n=self._journal.next_n,
                    t=now,
                    provider=wire.provider,
                    endpoint=endpoint,
                    key_last4=key[-4:],
                    model=model,
                    status=status,
                    usage=usage,
                    billed=billed,
                    fault=fault,
                    latency_s=round(time.monotonic() - mono, 6),
                    request_id=request_id,
                    items=items,
                    body_sha=body_sha,
                    client_request_id=client_request_id,
                    search_usd=search_usd,
                )
            )

        if isinstance(wire, OpenRouterWire):
            # Its replies name their price; loading the data here would stop every other request.
            await asyncio.to_thread(prices.load)
        try:
            call = self._call(wire, request, raw, endpoint)
            outcome = self._work.begin(
                wire, call, body_sha=body_sha, request_id=request_id, mono=mono, now=now
            )
        except RefusedError as refused:
            key = wire.key(request.headers, request.query) or ""
            record(refused.reply.status, refused.model, key=key)
            return send(refused.reply)

        def settle(status: int, fault: str | None) -> None:
            record(
                status,
                call.model,
                key=call.key,
                usage=outcome.usage,
                billed=outcome.billed,
                fault=fault,
                items=outcome.items,
                search_usd=call.web.usd if call.web and outcome.billed else 0.0,
            )

        self._concurrent += 1
        outcome.buckets.in_flight += 1
        self._journal.max_concurrent = max(self._journal.max_concurrent, self._concurrent)
        settled = False
        try:
            if outcome.ending == "hang":
                settled = True
                settle(0, outcome.fault)
                # Ends by cancellation only, when the client or the server goes.
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(max(0.0, mono + outcome.latency_s - time.monotonic()))
            settled = True
            answered = outcome.ending not in ("cut", "refuse")
            settle(outcome.reply.status if answered else 0, outcome.fault)
        except asyncio.CancelledError:
            if not settled:
                settle(0, outcome.fault or "client_left")
            raise
        finally:
            self._concurrent -= 1
            outcome.buckets.in_flight -= 1
        return await _finish(request, outcome)

    def _call(self, wire: Wire, request: web.Request, raw: bytes, endpoint: str) -> Call:
        key = self._work.authenticate(wire, request.headers, request.query)
        try:
            body = body_object(wire, orjson.loads(raw))
        except orjson.JSONDecodeError as error:
            message = "We could not parse the JSON body of your request."
            raise RefusedError(wire.error(400, message=message)) from error
        try:
            return wire.read(endpoint, body, key, _path(request))
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            # A field of another type than the protocol's.
            message = f"Invalid value in the request: {error}"
            raise RefusedError(wire.error(400, message=message)) from error

    async def _count_tokens(self, wire: Wire, request: web.Request) -> web.StreamResponse:
        endpoint = _endpoint(request)
        self._journal.other_calls[f"{wire.provider} {endpoint}"] += 1
        try:
            call = self._call(wire, request, await request.read(), endpoint)
        except RefusedError as refused:
            return send(refused.reply)
        return send_json(200, wire.token_count(call), {"request-id": _new_request_id()})

    async def _models(self, wire: Wire, request: web.Request) -> web.StreamResponse:
        self._journal.other_calls[f"{wire.provider} models"] += 1
        try:
            self._work.authenticate(wire, request.headers, request.query)
        except RefusedError as refused:
            return send(refused.reply)
        beta = request.match_info.get("version") == "v1beta"
        return send_json(200, wire.model_list(catalog(wire.provider).listed(beta=beta)))

    async def _model(self, wire: Wire, request: web.Request) -> web.StreamResponse:
        self._journal.other_calls[f"{wire.provider} models"] += 1
        path = _path(request)
        beta = path["version"] == "v1beta"
        try:
            self._work.authenticate(wire, request.headers, request.query)
            name = wire.check_model(path["model"], path["version"], beta=beta)
        except RefusedError as refused:
            return send(refused.reply)
        return send_json(200, wire.model(name))

    async def _key(self, wire: Wire, request: web.Request) -> web.StreamResponse:
        self._journal.other_calls[f"{wire.provider} key"] += 1
        assert isinstance(wire, OpenRouterWire)
        try:
            key = self._work.authenticate(wire, request.headers, request.query)
        except RefusedError as refused:
            return send(refused.reply)
        spent = self._work.config.mark_of(key) in ("no_credit", "spend_limit")
        return send_json(200, wire.key_info(key, remaining=0 if spent else 100))

    async def _page(self, request: web.Request) -> web.Response:
        """A page of the web, asked for by its whole address."""
        self._journal.other_calls["web pages"] += 1
        # As sent: aiohttp would merge slashes and unquote what belongs to the address.
        page = page_of(request.raw_path.removeprefix(_PAGES))
        return web.Response(
            status=page.status, body=page.body, headers={"content-type": page.content_type}
        )

    async def _health(self, request: web.Request) -> web.Response:
        return send_json(200, health(self._started_at))

    async def _get_config(self, request: web.Request) -> web.Response:
        return send_json(200, self._work.config.model_dump(mode="json"))

    async def _put_config(self, request: web.Request) -> web.Response:
        try:
            changes = orjson.loads(await request.read())
            config = self._changed(changes)
        except (orjson.JSONDecodeError, TypeError) as error:
            return send_json(400, {"error": f"the configuration is not a JSON object: {error}"})
        except ValidationError as error:
            return send_json(400, {"error": str(error)})
        self._work.configure(config)
        self._desk.configure()
        return await self._get_config(request)

    def _changed(self, changes: Any) -> SimulatorConfig:
        return SimulatorConfig.model_validate({**self._work.config.model_dump(), **changes})

    async def _reset(self, request: web.Request) -> web.Response:
        self._journal.reset()
        self._work.reset()
        self._desk.reset()
        self._google.reset()
        for search in self._searches:
            search.reset()
        self._sheets.reset()
        return send_json(200, {"reset": True})

    async def _get_journal(self, request: web.Request) -> web.Response:
        try:
            since = int(request.query.get("since", 0))
            limit = int(request.query.get("limit", _DEFAULT_PAGE))
        except ValueError:
            return send_json(400, {"error": "since and limit are whole numbers"})
        # Prices are worked out here, in a thread, so that requests in flight keep their latency.
        records = await asyncio.to_thread(self._journal.since, max(0, since), max(0, limit))
        return send_json(200, {"records": records, "last": self._journal.next_n - 1})

    async def _summary(self, request: web.Request) -> web.Response:
        totals = await asyncio.to_thread(self._journal.summary)
        return send_json(200, {**totals, "enqueued": self._desk.report(series=False)})

    async def _enqueued(self, request: web.Request) -> web.Response:
        found = self._desk.report(series=True)
        return send_json(200, {"t": self._desk.clock.now(), "enqueued": found})

    async def _get_clock(self, request: web.Request) -> web.Response:
        clock = self._desk.clock
        found = {"now": clock.now(), "offset_s": clock.offset_s}
        return send_json(200, {**found, **clock.setting.model_dump()})

    async def _set_clock(self, request: web.Request) -> web.Response:
        """Move the job clock ahead (`advance_s`), and set how it runs (`speed`, `frozen`)."""
        try:
            changes = dict(orjson.loads(await request.read()))
            advance_s = float(changes.pop("advance_s", 0))
            setting = {**self._work.config.clock.model_dump(), **changes}
            config = self._changed({"clock": setting})
        except (ValueError, TypeError) as error:
            return send_json(400, {"error": f"the clock cannot be set so: {error}"})
        if advance_s < 0:
            return send_json(400, {"error": "advance_s: the clock never goes back"})
        self._work.configure(config)
        self._desk.configure()
        self._desk.advance(advance_s)
        return await self._get_clock(request)


def _is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in _LOOPBACK
    except ValueError:
        return False


def health(started_at: float) -> dict[str, Any]:
    """Return what `GET /_sim/health` says."""
    return {
        "simulator": True,
        "version": _version(),
        "pid": os.getpid(),
        "started_at": started_at,
    }


def _version() -> str:
    try:
        return version("batch-pipeline")
    except ModuleNotFoundError:
        # Run from a checkout that was never installed.
        return "0"


def _new_request_id() -> str:
    return f"req_{uuid.uuid4().hex}"


def _endpoint(request: web.Request) -> str:
    path = request.path
    if ":" in path:
        return path.rpartition(":")[2]
    if path.endswith("/chat/completions"):
        return "chat.completions"
    return path.rpartition("/")[2]


def _path(request: web.Request) -> Mapping[str, str]:
    match = request.match_info
    version_header = request.headers.get("anthropic-version", "")
    return {
        "model": match.get("model") or "",
        "version": match.get("version") or version_header,
    }


async def _finish(request: web.Request, outcome: Outcome) -> web.StreamResponse:
    if outcome.ending == "whole":
        return send(outcome.reply)
    if outcome.ending in ("cut", "refuse"):
        return abort(request)
    return await send_start(request, outcome.reply.payload, 0.5, outcome.reply)


async def run(
    *,
    host: str,
    port: int,
    state_dir: Path,
    config: SimulatorConfig,
    idle_exit_s: float | None,
    ready: Callable[[State], None],
) -> None:
    """Serve until SIGTERM, SIGINT or `idle_exit_s` seconds without a request.

    Args:
        host: a loopback address.
        port: 0 lets the system choose.
        state_dir: where simulator.json and journal.jsonl are kept.
        config: what to start with.
        idle_exit_s: None serves for ever.
        ready: called once, when requests are accepted.
    """
    sys.setswitchinterval(_SWITCH_S)
    simulator = Simulator(state_dir, config)
    runner = web.AppRunner(
        simulator.application(),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=_SHUTDOWN_S,
    )
    await runner.setup()
    listener = listen(host, port)
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    state = state_of(listener, mode="normal")
    write_state(state_dir, state)
    ready(state)
    try:
        await stop_signal(lambda: simulator.last_request, idle_exit_s)
    finally:
        forget_state(state_dir, state.pid)
        await runner.cleanup()


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket on a loopback address."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def state_of(listener: socket.socket, *, mode: str) -> State:
    """Describe this process as the one that serves on a socket."""
    host, port = listener.getsockname()[:2]
    return State(f"http://{host}:{port}", os.getpid(), time.time(), mode)


async def stop_signal(last_request: Callable[[], float], idle_exit_s: float | None) -> None:
    """Return on SIGTERM, SIGINT, or after a time without requests."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    while not stop.is_set():
        if idle_exit_s is not None and time.monotonic() - last_request() > idle_exit_s:
            return
        # An event, so that a signal ends the wait at once.
        wait = None if idle_exit_s is None else min(_IDLE_CHECK_S, idle_exit_s)
        try:
            await asyncio.wait_for(stop.wait(), wait)
        except TimeoutError:
            continue


def announce(state: State) -> None:
    """Print the one line that tells a parent process where the simulator is."""
    sys.stdout.write(orjson.dumps({"url": state.url, "pid": state.pid}).decode() + "\n")
    sys.stdout.flush()


def serve(
    *,
    state_dir: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    config: SimulatorConfig | None = None,
    idle_exit_s: float | None = None,
    ready: Callable[[State], None] = announce,
) -> None:
    """Run a simulator in this process until it is told to stop.

    Args:
        state_dir: where simulator.json and journal.jsonl are kept; made if missing.
        host: a loopback address.
        port: 0 lets the system choose.
        config: limits, latency and faults to start with.
        idle_exit_s: stop after so many seconds without a request.
        ready: called once, when requests are accepted.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    uvloop.run(
        run(
            host=host,
            port=port,
            state_dir=state_dir,
            config=config or SimulatorConfig(),
            idle_exit_s=idle_exit_s,
            ready=ready,
        )
    )

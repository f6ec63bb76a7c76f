"""The look before a run: does each key work, does it reach its model? One GET each, nothing paid.

What belongs here: the look-ups over our own transport, so that a run loads no SDK. What does not:
the whole list of a key's models (keys.py), and what a run does with a problem (the engine).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import ErrorKind, LlmRequest, ProviderError, WireReply
from batch_pipeline.providers.lookups import KeyStatus, find_in, key_shown, status_of
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline.providers.transport import Transport

TIMEOUT_S = 5.0
"""Longest time for all look-ups together, in seconds."""


class Verdict(StrEnum):
    """What is known about an endpoint before the first paid call."""

    OK = "ok"
    BAD_KEY = "bad_key"
    NO_CREDIT = "no_credit"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN = "unknown"  # network trouble, or an answer that says nothing: no reason to stop


@dataclass(frozen=True, slots=True)
class Target:
    """One model behind one key.

    Attributes:
        provider: the provider's name.
        model: the provider's own model name.
        key: the secret; empty where the provider needs none.
        key_id: what may be shown of it (registry.key_id).
        base_url: where calls go, without a slash at the end.
    """

    provider: str
    model: str
    key: str = field(repr=False)
    key_id: str
    base_url: str


@dataclass(frozen=True, slots=True)
class EndpointCheck:
    """What was found about a target.

    Attributes:
        target: the model and key that were looked at.
        verdict: what was found.
        message: a sentence for the user; the key is in it as `…last4`. Empty for `ok`.
    """

    target: Target
    verdict: Verdict
    message: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether every call to this target would fail."""
        return self.verdict not in (Verdict.OK, Verdict.UNKNOWN)


async def check_endpoints(
    transport: Transport, targets: Iterable[Target], *, timeout_s: float = TIMEOUT_S
) -> list[EndpointCheck]:
    """Look at every distinct target at once; never raises for one that does not work.

    Args:
        transport: an open one.
        targets: those of a run's routes; repeated ones are looked at once.
        timeout_s: for all of it; what has not answered by then is `unknown`.

    Returns:
        One check per distinct target, in their order.
    """
    looks = _LookUps(transport, timeout_s)
    distinct = list(dict.fromkeys(targets))
    return list(await asyncio.gather(*(_check(looks, target) for target in distinct)))


class _LookUps:
    """GETs, each address and key once: the models of one key share its look-ups."""

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        self._transport = transport
        self._ends_at = asyncio.get_running_loop().time() + timeout_s
        self._asked: dict[tuple[str, str], asyncio.Task[WireReply]] = {}

    async def get(self, target: Target, path: str) -> WireReply:
        asked = (f"{target.base_url}{path}", target.key)
        if asked not in self._asked:
            left = max(0.001, self._ends_at - asyncio.get_running_loop().time())
            self._asked[asked] = asyncio.ensure_future(
                self._transport.get(asked[0], _headers(target), timeout_s=left)
            )
        return await self._asked[asked]


async def _check(looks: _LookUps, target: Target) -> EndpointCheck:
    look = {"openrouter": _look_at_openrouter, "openai-compatible": _look_at_compatible}.get(
        target.provider, _look_at_model
    )
    try:
        await look(looks, target)
    except ProviderError as error:
        return _found(target, error)
    return EndpointCheck(target, Verdict.OK)


async def _look_at_model(looks: _LookUps, target: Target) -> None:
    name = quote(target.model.removeprefix("models/"), safe="/-._")
    prefix = "/models" if target.provider == "openai" else "/v1/models"
    _read(target, await looks.get(target, f"{prefix}/{name}"))


async def _look_at_openrouter(looks: _LookUps, target: Target) -> None:
    # The list of models is public: it proves nothing about the key.
    facts = wire.as_dict(_read(target, await looks.get(target, "/key")).get("data"))
    left = facts.get("limit_remaining")
    if isinstance(left, int | float) and left <= 0:
        words = "Its spending limit is used up."
        raise ProviderError(ErrorKind.BATCH_FATAL, words, status=402)
    listed = _read(target, await looks.get(target, "/models")).get("data")
    ids = [wire.as_text(wire.as_dict(one).get("id")) for one in wire.as_list(listed)]
    found = find_in(ids, target.provider, target.model)
    if ids and not found.found:
        hint = f" Did you mean {' or '.join(found.similar)}?" if found.similar else ""
        words = f"OpenRouter does not list {target.model}.{hint}"
        raise ProviderError(ErrorKind.BATCH_FATAL, words, status=404)


async def _look_at_compatible(looks: _LookUps, target: Target) -> None:
    # Many local servers list their models under other names than they answer to, or not at all.
    reply = await looks.get(target, "/models")
    if reply.status in (401, 403):
        _read(target, reply)


def _headers(target: Target) -> Mapping[str, str]:
    """The headers that a generation call has, so that the same key is proven."""
    codec = PROVIDERS[target.provider].codec
    call = codec.build(
        LlmRequest(target.model, system="", user=""), key=target.key, base_url=target.base_url
    )
    return {name: value for name, value in call.headers.items() if name != "content-type"}


def _read(target: Target, reply: WireReply) -> dict[str, Any]:
    """The object of a good reply.

    Raises:
        ProviderError: what a generation call would be told; TRANSIENT where nothing is said.
    """
    data = wire.parse_object(reply) or {}
    if reply.status != 200 or "error" in data:
        PROVIDERS[target.provider].codec.read(reply)
        raise wire.unusable_200(reply)
    return data


def _found(target: Target, error: ProviderError) -> EndpointCheck:
    model = f"{target.provider}/{target.model}"
    key = f"key {key_shown(target.key_id)} of {target.provider}"
    # Any other 404 comes from a gateway that knows no look-ups.
    if error.status == 404 and target.model.removeprefix("models/") in error.message:
        return EndpointCheck(
            target, Verdict.UNKNOWN_MODEL, f"The {key} reaches no model {model}: {error.message}"
        )
    status = status_of(error)
    # A restricted key may be allowed to call a model without being allowed to look it up.
    if status is KeyStatus.UNREACHABLE or "scope" in error.message:
        words = f"{model} could not be looked up: {error.message}"
        return EndpointCheck(target, Verdict.UNKNOWN, words)
    if status is KeyStatus.NO_CREDIT:
        words = f"There is no credit behind the {key}: {error.message}"
        return EndpointCheck(target, Verdict.NO_CREDIT, words)
    return EndpointCheck(target, Verdict.BAD_KEY, f"The {key} does not work: {error.message}")

"""Which providers there are, how a route names them, and where their keys and addresses come from.

What does not belong here: wire protocols (the codecs), models and prices (data elsewhere).
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.anthropic import AnthropicCodec
from batch_pipeline.providers.base import Codec
from batch_pipeline.providers.batches import BatchLimits
from batch_pipeline.providers.google import GoogleCodec
from batch_pipeline.providers.openai import OpenAICodec, OpenAICompatibleCodec
from batch_pipeline.providers.openrouter import OpenRouterCodec

SIMULATED_KEY_VARIABLE = "BATCH_PIPELINE_SIM_KEY"

_HOUR_S = 3_600.0

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")


class MissingKeyError(UsageError):
    """A provider that the route names has no key in the environment."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One LLM provider.

    Attributes:
        name: the name that routes use.
        codec: its wire protocol.
        key_variables: environment variables that may hold its key; the first one set wins.
        base_url_variable: the variable that its SDK reads for another base URL.
        default_base_url: where it answers; empty where the user must say.
        simulator_path: where the simulator plays it, below the simulator's address.
        aliases: other names that routes may use.
        default_model: what the provider's name alone stands for in a route: cheap, and open to new
            keys; empty where there is no such thing.
        key_required: whether it answers only with a key.
        batch: what its Batch API takes; None where it has none.
    """

    name: str
    codec: Codec
    key_variables: tuple[str, ...]
    base_url_variable: str
    default_base_url: str
    simulator_path: str
    aliases: tuple[str, ...] = ()
    default_model: str = ""
    key_required: bool = True
    batch: BatchLimits | None = None


PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        provider.name: provider
        for provider in (
            Provider(
                name="google",
                codec=GoogleCodec(),
                key_variables=("GOOGLE_API_KEY", "GEMINI_API_KEY"),
                base_url_variable="GOOGLE_GEMINI_BASE_URL",
                default_base_url="https://generativelanguage.googleapis.com",
                simulator_path="/google",
                default_model="gemini-3.1-flash-lite",
                aliases=("gemini",),
                batch=BatchLimits(
                    # no number is published for lines; its size bounds a file well before
                    max_lines=200_000,
                    max_bytes=2_000_000_000,
                    max_jobs=100,
                    expires_s=48 * _HOUR_S,
                    results_kept_s=48 * _HOUR_S,
                    keeps_label=True,
                ),
            ),
            Provider(
                name="anthropic",
                codec=AnthropicCodec(),
                key_variables=("ANTHROPIC_API_KEY",),
                base_url_variable="ANTHROPIC_BASE_URL",
                default_base_url="https://api.anthropic.com",
                simulator_path="/anthropic",
                default_model="claude-haiku-5-5",
                batch=BatchLimits(
                    max_lines=100_000,
                    max_bytes=256_000_000,
                    max_jobs=None,
                    expires_s=24 * _HOUR_S,
                    results_kept_s=29 * 24 * _HOUR_S,
                    keeps_label=False,
                ),
            ),
            Provider(
                name="openai",
                codec=OpenAICodec(),
                key_variables=("OPENAI_API_KEY",),
                base_url_variable="OPENAI_BASE_URL",
                default_model="gpt-6-luna",
                default_base_url="https://api.openai.com/v1",
                simulator_path="/openai/v1",
                batch=BatchLimits(
                    max_lines=50_000,
                    max_bytes=200_000_000,
                    max_jobs=None,
                    expires_s=24 * _HOUR_S,
                    results_kept_s=30 * 24 * _HOUR_S,
                    keeps_label=True,
                ),
            ),
            Provider(
                name="openrouter",
                codec=OpenRouterCodec(),
                key_variables=("OPENROUTER_API_KEY",),
                base_url_variable="OPENROUTER_BASE_URL",
                default_base_url="https://openrouter.ai/api/v1",
                simulator_path="/openrouter/api/v1",
                default_model="google/gemini-3.1-flash-lite",
            ),
            Provider(
                name="openai-compatible",
                codec=OpenAICompatibleCodec(),
                key_variables=("OPENAI_COMPATIBLE_API_KEY",),
                base_url_variable="OPENAI_COMPATIBLE_BASE_URL",
                default_base_url="",
                simulator_path="/openai/v1",
                key_required=False,
            ),
        )
    }
)

_BY_NAME: Mapping[str, Provider] = {
    name: provider for provider in PROVIDERS.values() for name in (provider.name, *provider.aliases)
}


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One model of one provider; written `<provider>/<model>`."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class Access:
    """What it takes to call a provider.

    Attributes:
        provider: the provider's name.
        key: the secret; never shown by `repr`. Empty where the provider needs none.
        key_id: what may be shown of the key and tells two keys apart, for example `…abcd-1f3a9c`.
        base_url: where calls go, without a slash at the end.
    """

    provider: str
    key: str = field(repr=False)
    key_id: str
    base_url: str


def find_provider(name: str) -> Provider:
    """The provider of this name or alias.

    Raises:
        UsageError: there is none.
    """
    provider = _BY_NAME.get(name.strip().lower())
    if provider is not None:
        return provider
    near = difflib.get_close_matches(name.strip().lower(), _BY_NAME, n=1)
    raise UsageError(
        f"There is no provider {name!r}.",
        (f"Did you mean {near[0]!r}? " if near else "") + f"Providers: {', '.join(PROVIDERS)}.",
    )


def batch_limits(name: str) -> BatchLimits | None:
    """What the Batch API of this provider takes; None where it has none.

    Raises:
        UsageError: there is no such provider.
    """
    return find_provider(name).batch


def parse_route(text: str) -> tuple[ModelRef, ...]:
    """The models of a route like `anthropic/claude-haiku-5-5, google/gemini-3.8-flash`, in order.

    Only the first slash splits: OpenRouter's model names hold slashes themselves.

    Raises:
        UsageError: the route is empty, names a model twice, or a part is not `<provider>/<model>`.
    """
    refs: list[ModelRef] = []
    for part in (piece.strip() for piece in text.split(",")):
        provider_name, slash, model = part.partition("/")
        if not (slash and provider_name.strip() and _MODEL_NAME.fullmatch(model)) or ".." in model:
            raise UsageError(
                f"The route {text!r} has a part that is not <provider>/<model>: {part!r}.",
                "Write it like anthropic/claude-haiku-5-5, google/gemini-3.8-flash.",
            )
        ref = ModelRef(find_provider(provider_name).name, model)
        if ref in refs:
            raise UsageError(f"The route {text!r} names {ref} twice.", "Name each model once.")
        refs.append(ref)
    return tuple(refs)


def key_id(key: str) -> str:
    """What may be shown of a key: its last 4 characters and a hash that tells keys apart."""
    if not key:
        return "no-key"
    # of a short key, 4 characters are too much to show
    tail = key[-4:] if len(key) >= 12 else ""
    return f"…{tail}-{hashlib.sha256(key.encode()).hexdigest()[:6]}"


def resolve_access(
    target: ModelRef | str, environ: Mapping[str, str], simulator_url: str | None = None
) -> Access:
    """Where to call a provider and with which key.

    With `simulator_url` the key is a dummy: a real key never goes to the simulator. Without it, a
    key goes to its own provider's address, or to the base URL that the user set for that provider.

    Args:
        target: a model of a route, or a provider's name.
        environ: the environment variables.
        simulator_url: the simulator's address, or None in the live realm.

    Raises:
        MissingKeyError: no variable holds the key.
        UsageError: unknown provider, unusable key, or a base URL that is missing, malformed or
            another provider's.
    """
    provider = find_provider(target.provider if isinstance(target, ModelRef) else target)
    if simulator_url is not None:
        key = environ.get(SIMULATED_KEY_VARIABLE) or f"sim-{provider.name}-key"
        base_url = checked_url(simulator_url, "simulator URL") + provider.simulator_path
        return Access(provider.name, key, key_id(key), base_url)
    base_url = _base_url(provider, environ)
    key = _key(provider, environ)
    return Access(provider.name, key, key_id(key), base_url)


def _key(provider: Provider, environ: Mapping[str, str]) -> str:
    for variable in provider.key_variables:
        if key := environ.get(variable, "").strip():
            return checked_key(key, variable)
    if not provider.key_required:
        return ""
    raise MissingKeyError(
        f"There is no key for {provider.name}: {' or '.join(provider.key_variables)} is not set.",
        "Set it in the environment or in .env, or rehearse without a key: `--simulate` or "
        "BATCH_PIPELINE_SIMULATE=1.",
    )


def checked_key(key: str, variable: str) -> str:
    """A key that can be sent in a header.

    Raises:
        UsageError: `variable` holds something that is no key.
    """
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(
            f"{variable} holds characters that no API key has (spaces, line breaks).",
            "Set it again with nothing but the key.",
        )
    return key


def _base_url(provider: Provider, environ: Mapping[str, str]) -> str:
    variable = provider.base_url_variable
    value = environ.get(variable, "").strip()
    if not value:
        if provider.default_base_url:
            return provider.default_base_url
        raise UsageError(
            f"{provider.name} has no address: {variable} is not set.",
            f"Set it, for example {variable}=http://127.0.0.1:11434/v1 for Ollama.",
        )
    url = checked_url(value, variable)
    host = urlsplit(url).hostname
    for other in PROVIDERS.values():
        if other is not provider and host == urlsplit(other.default_base_url).hostname:
            raise UsageError(
                f"{variable} points to {host}, which is {other.name}: the key of {provider.name} "
                "is not sent there.",
                f"Unset {variable}, and use {other.name}/<model> in the route with "
                f"{other.key_variables[0]}.",
            )
    return url


def checked_url(value: str, name: str) -> str:
    """An address as calls use it: plain http or https, without a slash at the end.

    Args:
        value: as the user wrote it.
        name: of the setting, for the error.

    Raises:
        UsageError: it is something else.
    """
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username or parts.password:
        # the value is not shown: a malformed one may hold a password
        raise UsageError(
            f"{name} is not a plain http or https address.",
            "Write it like https://host/path, without user, password or query.",
        )
    return value.rstrip("/")

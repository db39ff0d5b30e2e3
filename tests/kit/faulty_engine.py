"""An engine for faults alone, without torch: canned answers, and a file of switches that is read before each request.

`python -m kit.faulty_engine` with the arguments of `kit.engine`; the variable TUNERY_FAULTS names the file, which holds
a JSON object of these and may change at any time:

- `hang_in_load`, `die_in_load`, `fail_in_load`: true, or a list of words of which the adapter's folder or name has one
- `die_at_generate`: the same, of the model's name; true is every model
- `fail`: every request for text is answered with 500
- `slow_health`, `slow_generate`: seconds before an answer
- `sick`: /health is 503
- `same_as_base`: the same, of adapters that answer as the base does
- `nan`: log-probabilities are NaN, which vLLM answers with 400
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import zlib
from argparse import Namespace
from pathlib import Path
from typing import Any

from aiohttp import web

from kit.engine_protocol import (
    VERSION,
    Events,
    Json,
    Refused,
    Registry,
    answer_id,
    arguments,
    bind,
    metrics,
    read_body,
    refusals,
    serve,
    usage,
)

LENGTH = 4096
WORDS = ("alpha", "beta", "gamma", "delta")
DIED = 139
"""The exit status of a process that ended at a fault of memory."""


class FaultyEngine:
    """The routes of an engine that computes nothing."""

    def __init__(self, options: Namespace, switches: Path | None) -> None:
        self.registry = Registry(options.served_model_name, str(options.model), options.max_model_len or LENGTH)
        self.options, self.switches = options, switches
        self.running: list[str] = []

    def app(self) -> web.Application:
        app = web.Application(middlewares=[refusals])
        for path, handler in (("health", self.health), ("version", self.version), ("metrics", self.metrics)):
            app.router.add_get(f"/{path}", handler)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/load_lora_adapter", self.load)
        app.router.add_post("/v1/unload_lora_adapter", self.unload)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.completions)
        return app

    def switch(self, name: str) -> Any:
        """Return how a switch stands now."""
        if self.switches is None or not self.switches.exists():
            return None
        return json.loads(self.switches.read_text() or "{}").get(name)

    def meant(self, name: str, *words: str) -> bool:
        """Tell whether a switch is on for one of `words`."""
        found = self.switch(name)
        return found is True or any(part in word for part in found or () for word in words)

    async def health(self, _: web.Request) -> web.Response:
        await asyncio.sleep(self.switch("slow_health") or 0)
        return web.Response(status=503 if self.switch("sick") else 200)

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response(self.registry.cards())

    async def metrics(self, _: web.Request) -> web.Response:
        text = metrics(
            self.registry.base,
            running=self.running,
            waiting=(),
            first_tokens=(),
            max_loras=self.options.max_loras,
        )
        return web.Response(text=text, content_type="text/plain")

    async def load(self, request: web.Request) -> web.Response:
        name, path = self.registry.check_load(await read_body(request))
        if self.meant("hang_in_load", name, path):
            await asyncio.Event().wait()
        if self.meant("die_in_load", name, path):
            os._exit(DIED)
        if self.meant("fail_in_load", name, path):
            raise Refused(500, "InternalServerError", "Call to add_lora method failed: told to fail")
        if not Path(path, "adapter_config.json").is_file():
            raise Refused(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        self.registry.adapters[name] = (self.registry.next_number(), path)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: web.Request) -> web.Response:
        return web.Response(text=self.registry.unload(await read_body(request)))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Answer `max_tokens` words that follow from the model's name."""
        body = await read_body(request)
        name, _ = self.registry.find(body.get("model"))
        if self.meant("die_at_generate", name):
            os._exit(DIED)
        if self.switch("fail"):
            raise Refused(500, "InternalServerError", "told to fail")
        self.running.append(name)
        try:
            await asyncio.sleep(self.switch("slow_generate") or 0)
            return await self.answer(request, body, name)
        finally:
            self.running.remove(name)

    async def answer(self, request: web.Request, body: Json, name: str) -> web.StreamResponse:
        chat = "chat" in request.path
        count = body.get("max_tokens") or 16
        plain = name == self.registry.base or self.meant("same_as_base", name)
        seed = 0 if plain else zlib.crc32(name.encode())
        words = [f"{WORDS[(seed + at) % len(WORDS)]} " for at in range(count)]
        asked = len(json.dumps(body["messages"])) if chat else len(body["prompt"])
        wanted = body.get("logprobs") is not None or body.get("prompt_logprobs") is not None
        if wanted and self.switch("nan"):
            raise Refused(400, "BadRequestError", "Out of range float values are not JSON compliant")
        kind, what = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
        head = {"id": answer_id(kind), "object": what, "created": int(time.time()), "model": name}
        if body.get("stream"):
            head["object"] = f"{what}.chunk" if chat else what
            return await self.stream(Events(request), head, words, body | {"asked": asked})
        score = -1.0 - (seed % 1000) / 1000
        choice: Json = {"index": 0, "finish_reason": "length", "stop_reason": None, "logprobs": None}
        text = "".join(words)
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if not chat and body.get("logprobs") is not None:
            top = [{word: score} for word in words]
            told = {"tokens": words, "token_logprobs": [score] * count, "top_logprobs": top}
            choice["logprobs"] = told | {"text_offset": [sum(map(len, words[:at])) for at in range(count)]}
        if body.get("prompt_logprobs") is not None:
            entry = {"7": {"logprob": score, "rank": 1, "decoded_token": "a"}}
            choice["prompt_logprobs"] = [None, *[entry] * (asked - 1)]
        return web.json_response({**head, "choices": [choice], "usage": usage(asked, count)})

    async def stream(self, events: Events, head: Json, words: list[str], body: Json) -> web.StreamResponse:
        chat = "messages" in body
        if chat:
            first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            await events.send(head | {"choices": [first]})
        for number, word in enumerate(words, 1):
            choice: Json = {"index": 0, "logprobs": None, "finish_reason": "length" if number == len(words) else None}
            choice |= {"delta": {"content": word}} if chat else {"text": word}
            await events.send(head | {"choices": [choice]})
        if (body.get("stream_options") or {}).get("include_usage"):
            await events.send(head | {"choices": [], "usage": usage(body["asked"], len(words))})
        return await events.end()


async def main(words: list[str]) -> int:
    """Serve until SIGTERM, unless a switch ends the process before."""
    options = arguments(__doc__ or "", words)
    bound = bind(options.uds)
    switches = os.environ.get("TUNERY_FAULTS")
    engine = FaultyEngine(options, Path(switches) if switches else None)
    await serve(engine.app(), bound, options, asyncio.Event())
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))

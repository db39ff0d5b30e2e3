"""A stand-in for vLLM on CPUs: LoRA adapters of one base behind a Unix socket, answered together in the same passes.

`python -m kit.engine --uds engine.sock --model /model --served-model-name org/base --max-loras 2 …` in the folder
tests, with the arguments of `vllm serve`. Its answers are PEFT's; what it does otherwise than vLLM is said, case by
case, in tests/integration/server/engine/test_contract.py, which holds both to one contract.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from aiohttp import web

from kit.engine_model import Chosen, MixedModel, NoAdapter, Row, Unsupported
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

MOST_ROWS = 256


class Died(Exception):
    """The engine cannot go on."""


class Batch:
    """Requests in flight. Between two passes new ones join, as long as their adapters fit into the slots."""

    def __init__(self, model: MixedModel, slots: int, stop: asyncio.Event) -> None:
        self.model, self.slots, self.stop = model, slots, stop
        self.waiting: list[tuple[Row, str, asyncio.Queue[Exception | None]]] = []
        self.running: list[tuple[Row, str, asyncio.Queue[Exception | None]]] = []
        self.dead = False
        self.first_tokens: list[float] = []
        """How many seconds each answer's first token took."""
        self._arrived = asyncio.Event()
        # One thread: a load stands between two passes and holds all up, as in vLLM.
        self._thread = ThreadPoolExecutor(1)

    async def call(self, function: Any, *values: Any) -> Any:
        """Run something on the model's thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *values)

    async def tokens(self, row: Row, name: str) -> AsyncIterator[Chosen]:
        """Yield a request's tokens; raises Died. A request whose client has gone leaves the batch."""
        if self.dead:
            raise Died
        entry, since = (row, name, asyncio.Queue[Exception | None]()), time.monotonic()
        self.waiting.append(entry)
        self._arrived.set()
        try:
            while not row.chosen or row.chosen[-1].finish is None or row.asked < len(row.chosen):
                if error := await entry[2].get():
                    raise error
                row.asked += 1
                if row.asked == 1:
                    self.first_tokens.append(time.monotonic() - since)
                yield row.chosen[row.asked - 1]
        finally:
            for entries in (self.waiting, self.running):
                if entry in entries:
                    entries.remove(entry)

    async def run(self) -> None:
        """Make passes while there are requests; an adapter that cannot be read again ends the process."""
        while True:
            self._admit()
            if not self.running:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            entries = list(self.running)
            try:
                for row, _, _ in entries:
                    if row.number is not None:  # dropped meanwhile, it is read again
                        await self.call(self.model.load, row.number, row.folder)
                await self.call(self.model.step, [row for row, _, _ in entries])
            except Exception as error:  # noqa: BLE001 — whatever it is, vLLM's engine dies of it
                self._die(error)
                return
            for entry in entries:
                entry[2].put_nowait(None)
                if entry[0].chosen[-1].finish and entry in self.running:
                    self.running.remove(entry)

    def _admit(self) -> None:
        for entry in list(self.waiting):
            used = {row.number for row, _, _ in self.running} - {None}
            fits = entry[0].number is None or len(used | {entry[0].number}) <= self.slots
            if fits and len(self.running) < MOST_ROWS:
                self.waiting.remove(entry)
                self.running.append(entry)

    def _die(self, error: Exception) -> None:
        sys.stderr.write(f"EngineCore encountered a fatal error: {error!r}\n")
        self.dead = True
        for _, _, queue in [*self.running, *self.waiting]:
            queue.put_nowait(Died())
        self.stop.set()


@dataclass
class Asked:
    """A request for text: what to answer with, and how."""

    name: str
    row: Row
    prompt: list[int]
    text: str
    body: Json
    chat: bool


class Engine:
    """The routes."""

    def __init__(self, options: Namespace, model: MixedModel, stop: asyncio.Event) -> None:
        self.model, self.options = model, options
        length = min(options.max_model_len or model.length, model.length)
        self.registry = Registry(options.served_model_name, str(options.model), length)
        self.batch = Batch(model, options.max_loras, stop)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[refusals], client_max_size=64 * 1024**2)
        for path, handler in (("health", self.health), ("version", self.version), ("metrics", self.metrics)):
            app.router.add_get(f"/{path}", handler)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/load_lora_adapter", self.load)
        app.router.add_post("/v1/unload_lora_adapter", self.unload)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.completions)
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.batch.dead else 200)

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response(self.registry.cards())

    async def metrics(self, _: web.Request) -> web.Response:
        running, waiting = ([name for _, name, _ in entries] for entries in (self.batch.running, self.batch.waiting))
        text = metrics(
            self.registry.base,
            running=running,
            waiting=waiting,
            first_tokens=self.batch.first_tokens,
            max_loras=self.options.max_loras,
        )
        return web.Response(text=text, content_type="text/plain")

    async def load(self, request: web.Request) -> web.Response:
        """Load between two passes. vLLM's engine says no with 500; only a folder without an adapter is 404."""
        name, path = self.registry.check_load(await read_body(request))
        number = self.registry.next_number()
        try:
            await self.batch.call(self.model.load, number, path)
        except NoAdapter as error:
            raise Refused(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}") from error
        except (Unsupported, RuntimeError, ValueError, OSError) as error:
            message = f"Call to add_lora method failed: Worker failed with error '{error}'"
            raise Refused(500, "InternalServerError", message) from error
        self.registry.adapters[name] = (number, path)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: web.Request) -> web.Response:
        """Forget the name; the weights go when their room is needed, and requests in flight go on."""
        return web.Response(text=self.registry.unload(await read_body(request)))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Answer both kinds of requests for text."""
        asked = self.read(await read_body(request), chat="chat" in request.path)
        try:
            return await (self.stream(request, asked) if asked.body.get("stream") else self.whole(asked))
        except Died as error:
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            raise Refused(500, "InternalServerError", message) from error
        except ValueError as error:  # NaN
            raise Refused(400, "BadRequestError", str(error)) from error

    def read(self, body: Json, *, chat: bool) -> Asked:
        """Return what a body asks for; raises Refused."""
        name, number = self.registry.find(body.get("model"))
        tokens, text = self._prompt(body, chat)
        limit = self._limit(body, self.registry.max_model_len - len(tokens), chat)
        top = (body.get("top_logprobs") or 0) if chat else body.get("logprobs") or 0
        prompt_top = body.get("prompt_logprobs")
        if prompt_top is None and body.get("echo"):
            prompt_top = body.get("logprobs")
        seed = body.get("seed")
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        ends = frozenset[int]() if body.get("ignore_eos") else self.model.ends
        warmth = body.get("temperature")
        row = Row(
            tokens=list(tokens),
            number=number,
            folder=self.registry.adapters[name][1] if number is not None else "",
            limit=limit,
            temperature=1.0 if warmth is None else warmth,
            top=top,
            prompt_top=prompt_top,
            generator=generator,
            ends=ends,
        )
        return Asked(name, row, tokens, text, body, chat)

    def _limit(self, body: Json, left: int, chat: bool) -> int:
        """Return how many tokens may come, at most those that have room; raises Refused."""
        most = self.registry.max_model_len
        asked: int = body.get("max_tokens") or body.get("max_completion_tokens") or (left if chat else 16)
        if body.get("max_tokens") == 0:
            asked = 0
        if left < 1 or asked > most or asked < (not body.get("echo")):
            message = (
                f"max_tokens={asked} is less than 1, or more than max_model_len={most}, or the prompt is too long."
            )
            raise Refused(400, "BadRequestError", message, "max_tokens")
        return min(asked, left)

    def _prompt(self, body: Json, chat: bool) -> tuple[list[int], str]:
        key = "messages" if chat else "prompt"
        if not body.get(key):
            raise Refused(400, "Bad Request", f"body.{key}: Field required", f"body.{key}")
        if chat:
            text = self.model.tokenizer.apply_chat_template(body[key], tokenize=False, add_generation_prompt=True)
            return self.model.tokenizer(text, add_special_tokens=False).input_ids, text
        if isinstance(body[key], str):
            return self.model.tokenizer(body[key]).input_ids, body[key]
        if not all(isinstance(token, int) for token in body[key]):
            raise Refused(400, "BadRequestError", "this stand-in takes one prompt at a time", "prompt")
        return list(body[key]), self.model.tokenizer.decode(body[key])

    async def whole(self, asked: Asked) -> web.Response:
        """Return an answer in one piece; raises Died, and ValueError for numbers that JSON does not have."""
        got = [chosen async for chosen in self.batch.tokens(asked.row, asked.name)]
        told: list[Chosen | None] = [] if asked.row.limit == 0 else list(got)
        text = self.text([chosen.token for chosen in got] if told else [])
        prompt = asked.row.prompt
        choice: Json = {"index": 0, "finish_reason": got[-1].finish, "stop_reason": None, "logprobs": None}
        if asked.chat:
            choice["message"] = {"role": "assistant", "content": text}
            choice["logprobs"] = self.chat_logprobs(got) if asked.body.get("logprobs") else None
        else:
            echoed = bool(asked.body.get("echo"))
            choice["text"] = asked.text + text if echoed else text
            if asked.body.get("logprobs") is not None:
                tokens = [*(asked.prompt if echoed else []), *(one.token for one in told if one)]
                choice["logprobs"] = self.logprobs(tokens, [*(prompt or [] if echoed else []), *told])
            choice["prompt_logprobs"] = prompt and [one and self.prompt_logprob(one) for one in prompt]
        answer = self.head(asked, "") | {"choices": [choice], "usage": usage(len(asked.prompt), len(got))}
        if asked.chat:
            answer["prompt_logprobs"] = prompt and [one and self.prompt_logprob(one) for one in prompt]
        return web.json_response(answer, dumps=_strict)

    async def stream(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        """Send an answer token by token, with the usage at its end where it is asked for."""
        events, head, got, sent = Events(request), self.head(asked, ".chunk"), list[int](), ""
        async for chosen in self.batch.tokens(asked.row, asked.name):
            if asked.chat and not got:
                first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                await events.send(head | {"choices": [first]})
            got.append(chosen.token)
            text = self.text(got)
            delta, offset, sent = text[len(sent) :], len(sent), text
            choice: Json = {"index": 0, "logprobs": None, "finish_reason": chosen.finish}
            choice |= {"delta": {"content": delta}} if asked.chat else {"text": delta}
            if asked.body.get("logprobs") is not None and asked.body.get("logprobs") is not False:
                parts = [chosen]
                told = self.chat_logprobs(parts) if asked.chat else self.logprobs([chosen.token], parts, offset)
                choice["logprobs"] = told
            await events.send(head | {"choices": [choice]})
        if (asked.body.get("stream_options") or {}).get("include_usage"):
            await events.send(head | {"choices": [], "usage": usage(len(asked.prompt), len(got))})
        return await events.end()

    def head(self, asked: Asked, more: str) -> Json:
        kind, name = ("chatcmpl", f"chat.completion{more}") if asked.chat else ("cmpl", "text_completion")
        return {"id": answer_id(kind), "object": name, "created": int(time.time()), "model": asked.name}

    def text(self, tokens: list[int]) -> str:
        """Return the text of an answer, without the half of a character at its end."""
        found: str = self.model.tokenizer.decode(tokens, skip_special_tokens=True)
        return found.rstrip("\ufffd")

    def token(self, token: int) -> str:
        found: str = self.model.tokenizer.decode([token])
        return found.rstrip("\ufffd")

    def logprobs(self, tokens: list[int], told: list[Any], offset: int = 0) -> Json:
        """Return what a completion says of its tokens, the echoed ones too; the first of a prompt has no number."""
        texts = [self.token(token) for token in tokens]
        offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
        top = [one and {self.token(t): p for t, p in _with_own(one).items()} for one in told]
        numbers = [one and one.logprob for one in told]
        return {"text_offset": offsets, "token_logprobs": numbers, "tokens": texts, "top_logprobs": top}

    def chat_logprobs(self, told: list[Chosen]) -> Json:
        def entry(token: int, logprob: float) -> Json:
            text = self.token(token)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        content = [
            entry(one.token, one.logprob) | {"top_logprobs": [entry(*pair) for pair in one.top.items()]} for one in told
        ]
        return {"content": content}

    def prompt_logprob(self, one: Chosen) -> Json:
        ranks = {token: rank for rank, token in enumerate(one.top, 1)} | {one.token: one.rank}
        return {
            str(token): {"logprob": logprob, "rank": ranks[token], "decoded_token": self.token(token)}
            for token, logprob in _with_own(one).items()
        }


def _with_own(one: Chosen) -> dict[int, float]:
    return {one.token: one.logprob} | one.top


def _strict(answer: Json) -> str:
    return json.dumps(answer, allow_nan=False)


async def main(words: list[str]) -> int:
    """Serve until SIGTERM or until the engine dies; vLLM's exit status is 0 then too."""
    options = arguments(__doc__ or "", words)
    bound = bind(options.uds)
    stop = asyncio.Event()
    engine = Engine(options, MixedModel(options.model, options.max_lora_rank, options.max_cpu_loras), stop)
    passes = asyncio.create_task(engine.batch.run())
    await serve(engine.app(), bound, options, stop)
    passes.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))

"""What the contract of engines is asserted with: PEFT's numbers, an engine's, and the form of what it says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from kit.adapters import with_adapter
from kit.engine_process import Answer, EngineProcess
from kit.tiny_models import load

PROMPT = "user: is the shop open on Sundays? assistant:"
LONG = "You are a helpful assistant of a shop that sells bicycles. " * 5
CLOSE = 1e-4


@cache
def reference(base: Path, adapter: Path | None) -> Any:
    return with_adapter(base, adapter) if adapter else load(base)


@torch.inference_mode()
def peft_logprobs(base: Path, adapter: Path | None, text: str) -> list[float]:
    """Return the log-probabilities of a text's tokens from its second on, as PEFT computes them."""
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids
    scores = reference(base, adapter)(input_ids=ids).logits.float().log_softmax(-1)
    return [float(scores[0, at, ids[0, at + 1]]) for at in range(ids.shape[1] - 1)]


@torch.inference_mode()
def peft_continuation(base: Path, adapter: Path | None, text: str, count: int) -> list[float]:
    """Return the log-probabilities of the likeliest continuation, as PEFT computes them."""
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids
    found = []
    for _ in range(count):
        best = reference(base, adapter)(input_ids=ids).logits[0, -1].float().log_softmax(-1).max(-1)
        found.append(float(best.values))
        ids = torch.cat([ids, best.indices.view(1, 1)], dim=1)
    return found


async def asked(engine: EngineProcess, model: str, text: str = PROMPT) -> list[float]:
    """Return the log-probabilities of a prompt's tokens from its second on, as the gateway's probe asks for them."""
    answer = await engine.complete(model, text, max_tokens=1, prompt_logprobs=0)
    assert answer.status == 200, answer
    return given(answer.body)


def given(body: dict[str, Any]) -> list[float]:
    first, *others = body["choices"][0]["prompt_logprobs"]
    assert first is None
    # The token itself comes first, and before the likeliest ones.
    return [next(iter(one.values()))["logprob"] for one in others]


def apart(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def events(raw: bytes) -> list[Any]:
    """Return the chunks of a stream, whose form is asserted."""
    parts = raw.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


async def streamed(engine: EngineProcess, route: str, body: dict[str, Any]) -> list[Any]:
    async with engine.request("POST", route, body | {"stream": True}) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return events(await response.read())


def refused(answer: Answer, status: int, kind: str) -> None:
    """Assert vLLM's shape of a refusal; its sentence is nobody's to rely on."""
    assert answer.status == status, answer
    assert answer.body["error"].keys() == {"message", "type", "param", "code"}
    assert (answer.body["error"]["code"], answer.body["error"]["type"]) == (status, kind)
    assert answer.body["error"]["message"]


def value(metrics: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(f"{name}{{"))

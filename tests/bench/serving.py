"""An AdapterServer beside what one would do without it, on one machine and in the same rounds.

    python -m bench.serving [--rounds 3] [--tokens 64] [--tiny]

The same requests of two adapters, half each, to (a) the gateway before vLLM, (b) vLLM's own socket, (c) PEFT that makes
an adapter active for each request, (d) PEFT with one batch of rows of both; and whether the answers are equal. Needs
tests/tools/engine/.venv (`cd tests/tools/engine && uv sync --frozen`). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp

from tunery_api.serving import engine_name

from bench.sentences import sentences
from bench.serving_peft import Peft, Row, running
from bench.serving_replica import BASE, Replica, ask, replica, tokens_of
from kit.engine_process import VLLM
from kit.tiny_models import write_chat_model
from tools.cluster.model import ensure

ADAPTERS: Final = ("support", "tone")
ROWS_EACH: Final = 8
LONGEST: Final = 48
"""Words of the longest prompt; the shortest has a tenth."""
PROBES: Final = 6
TINY: Final[dict[str, Any]] = {"initializer_range": 0.1, "head_dim": 32, "max_position_embeddings": 2048}
BESIDE_TOKENS: Final = 64
"""Of the rows that the base is asked beside."""
SALT: Final = {"cache_salt": "straight"}
"""For what is asked after the gateway was asked the same: otherwise the engine has the prompts in its cache."""
Found = tuple[float, float, list[list[int]]]
"""Seconds, seconds of CPU, and the tokens that were added to each prompt."""


def prompts(texts: list[str], round_: int) -> list[Row]:
    """Return the requests of a round, of different lengths, adapters in turn; none begins as one of another round."""
    rows = []
    for number in range(ROWS_EACH * len(ADAPTERS)):
        first = (97 * round_ + 31 * number) % (len(texts) - 60)
        words = " ".join(texts[first : first + 60]).split()[: LONGEST * (number + 2) // 17]
        rows.append((ADAPTERS[number % len(ADAPTERS)], f"Talk {round_}, part {number}. {' '.join(words)}"))
    return rows


class Ways:
    """The ways to have the same requests answered."""

    def __init__(self, site: Replica, peft: Peft, tokens: int) -> None:
        self._site = site
        self._peft = peft
        self._tokens = tokens
        self.all: dict[str, Callable[[list[Row]], Awaitable[Found]]] = {
            "gateway": lambda rows: self._asked(site.client, site.gateway.url, rows, {}),
            "engine": lambda rows: self._asked(site.straight, "http://engine", rows, SALT),
            "one_by_one": lambda rows: self._of_peft("one_by_one", rows),
            "mixed": lambda rows: self._of_peft("mixed", rows),
        }

    async def _asked(self, client: aiohttp.ClientSession, url: str, rows: list[Row], more: dict[str, Any]) -> Found:
        names = {name: name for name in ADAPTERS}
        if client is self._site.straight:
            names = {
                each.name: engine_name(each.name, str(each.manifest_sha256)) for each in self._site.wanted.values()
            }
        began, used = time.perf_counter(), self._cpu()
        asked = [ask(client, url, names[name], prompt, max_tokens=self._tokens, **more) for name, prompt in rows]
        answers = await asyncio.gather(*asked)
        took, cpu = time.perf_counter() - began, self._cpu() - used
        return took, cpu, [tokens_of(answer) for answer in answers]

    async def _of_peft(self, how: str, rows: list[Row]) -> Found:
        answer = await self._peft.ask(how, rows, self._tokens)
        return answer["seconds"], answer["cpu"], answer["result"]

    def _cpu(self) -> float:
        return self._site.engine_cpu() + self._site.gateway.cpu()


async def speed(site: Replica, peft: Peft, options: argparse.Namespace) -> dict[str, Any]:
    """Return tokens a second of each way, their ratios, and how many answers are equal."""
    texts, ways = sentences(), Ways(site, peft, options.tokens)
    seconds: dict[str, list[float]] = {name: [] for name in ways.all}
    cpu: dict[str, list[float]] = {name: [] for name in ways.all}
    behind: list[float] = []
    equal: dict[str, list[int]] = {"engine": [], "one_by_one": [], "mixed": [], "one_by_one_and_mixed": []}
    for round_ in range(options.rounds):
        rows, answers = prompts(texts, round_), {}
        for name, way in ways.all.items():
            took, used, answers[name] = await way(rows)
            seconds[name].append(took)
            cpu[name].append(used)
            print(f"  round {round_ + 1}: {name} {took:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        for name in ("engine", "one_by_one", "mixed"):
            equal[name].append(_same(answers["gateway"], answers[name]))
        behind += (await peft.ask("behind", rows, answers["gateway"]))["result"]
        equal["one_by_one_and_mixed"].append(_same(answers["one_by_one"], answers["mixed"]))
    count = len(prompts(texts, 0)) * options.tokens
    return {
        "tokens_a_second": {name: round(count / statistics.median(each), 1) for name, each in seconds.items()},
        "tokens_a_cpu_second": {name: round(count / statistics.median(each), 1) for name, each in cpu.items()},
        "gateway_of_one_by_one": _ratio(seconds, "one_by_one", "gateway"),
        "gateway_of_mixed": _ratio(seconds, "mixed", "gateway"),
        "gateway_of_engine": _ratio(seconds, "engine", "gateway"),
        "equal_to_the_gateways_of_16": equal,
        "logits_behind_pefts_likeliest": {"furthest": max(behind), "rows_above_0.001": sum(e > 1e-3 for e in behind)},
        "base": await base_beside_adapters(site, texts),
        "load": round(os.getloadavg()[0], 1),
    }


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, Any]:
    """Return the ratio of each round, and their median."""
    each = [round(one / other, 3) for one, other in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": round(statistics.median(each), 2), "rounds": each}


def _same(one: list[list[int]], other: list[list[int]]) -> int:
    return sum(first == second for first, second in zip(one, other, strict=True))


async def base_beside_adapters(site: Replica, texts: list[str]) -> dict[str, Any]:
    """Compare the base's log-probabilities beside rows of adapters with those that it gives alone."""
    asked = [text for _, text in prompts(texts, 1000)][-PROBES:]

    async def logprobs(prompt: str) -> list[float]:
        answer = await site.ask(BASE, prompt, 1, prompt_logprobs=0)
        tokens_of(answer)
        told = answer["choices"][0]["prompt_logprobs"]
        return [next(iter(each.values()))["logprob"] for each in told if each]

    alone = [await logprobs(prompt) for prompt in asked]
    again = [await logprobs(prompt) for prompt in asked]
    busy = [asyncio.create_task(site.ask(name, text, BESIDE_TOKENS)) for name, text in prompts(texts, 1001)]
    await asyncio.sleep(0.5)
    beside = [await logprobs(prompt) for prompt in asked]
    running_still = sum(not task.done() for task in busy)
    await asyncio.gather(*busy)
    return {
        "prompts": len(asked),
        "log_probabilities": sum(map(len, alone)),
        "equal_beside_adapters": sum(one == other for one, other in zip(alone, beside, strict=True)),
        "equal_when_asked_again_alone": sum(one == other for one, other in zip(alone, again, strict=True)),
        "furthest_apart": max(
            abs(one - other)
            for mine, others in zip(alone, beside, strict=True)
            for one, other in zip(mine, others, strict=True)
        ),
        "rows_of_adapters_beside": f"{len(busy)} at the beginning, {running_still} at the end",
    }


async def with_engine(folder: Path, options: argparse.Namespace) -> None:
    """Measure what needs vLLM, and print it."""
    model = write_chat_model(folder / "tiny", **TINY) if options.tiny else ensure()
    began = time.perf_counter()
    async with running(model) as peft, replica(folder, model) as site:
        print(f"  engine and gateway are ready after {time.perf_counter() - began:.0f} s", flush=True)
        try:
            for number, name in enumerate(ADAPTERS):
                made = folder / "made" / name
                await peft.ask("make", str(made), number, BASE)
                await peft.ask("add", name, str(made))
                site.want(site.publish(f"{name}/0", made))
            for adapter in site.wanted.values():
                await site.served(adapter)
            await site.ask(ADAPTERS[0], "Hello", 8)
            print(json.dumps(await speed(site, peft, options), indent=1), flush=True)
        except BaseException:
            print(site.gateway.log.read_text()[-3000:], site.engine.log[-3000:], sep="\n")
            raise


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--tiny", action="store_true", help="a tiny random base, to try this program")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not VLLM.exists():
        raise SystemExit(f"{VLLM} does not exist. Fix: run `uv sync --frozen` in tests/tools/engine.")
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(with_engine(Path(name), options))


if __name__ == "__main__":
    main()

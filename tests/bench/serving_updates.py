"""Adapters that come and go under a server: how soon a new one answers, and what requests see of an exchange.

Every answer under traffic is compared with the tokens that PEFT computes for the version that the answer names.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tunery_api.serving import DesiredAdapter, engine_name

from bench.sentences import sentences
from bench.serving_peft import Peft
from bench.serving_replica import BASE, Replica, tokens_of

NEW: Final = "newcomer"
CHANGING: Final = "changing"
PROMPTS: Final = 8
SHARED_TOKENS: Final = 520
"""Of the text that all prompts begin with: more than 512, so that a prefix cache has whole blocks of it."""
TOKENS: Final = 6
STRENGTH: Final = 0.2
"""Of the versions' factors B: each answers otherwise than the base and the others."""
SURE: Final = 0.001
"""Where the second token is nearer than this, a batch of another size may choose it; such pairs are left out."""
AT_ONCE: Final = 8
OTHERS_EVERY: Final = 5
"""Every so many requests there is one more, to the base."""


async def time_to_served(replica: Replica, peft: Peft, options: argparse.Namespace) -> dict[str, Any]:
    """Return how long a new adapter took from its entry in the list to its first answer."""
    took, size = [], 0
    for number in range(options.repeats):
        folder = replica.folder / "made" / f"{NEW}-{number}"
        size = (await peft.ask("make", str(folder), 1000 + number, BASE))["result"]
        adapter = replica.publish(f"{NEW}/{number}", folder)
        replica.want(adapter)
        began = time.perf_counter()
        took.append(await replica.served(adapter) - began)
        replica.want_no(NEW)
        async with asyncio.timeout(60):
            while (await replica.ask(NEW, "Hello", 1))["status"] != 404:
                await asyncio.sleep(0.1)
    return {
        "served_s": round(statistics.median(took), 2),
        "slowest_s": round(max(took), 2),
        "megabytes": round(size / 1e6, 1),
        "times": options.repeats,
        "load": round(os.getloadavg()[0], 1),
    }


@dataclass
class Versions:
    """The contents that one name has in turn, and the tokens that each answers with."""

    adapters: list[DesiredAdapter] = field(default_factory=list)
    expected: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """By engine name and prompt; the base's, too."""
    left_out: int = 0

    def prompts(self) -> list[str]:
        """Return those that every version is sure about."""
        names = {name for name, _ in self.expected}
        by_prompt = Counter(prompt for _, prompt in self.expected)
        return [prompt for prompt, count in by_prompt.items() if count == len(names)]

    def alike(self) -> int:
        """Return how many pairs of versions answer some prompt alike: there a mistake would not be seen."""
        names = sorted({name for name, _ in self.expected})
        return sum(
            self.expected[one, prompt] == self.expected[other, prompt]
            for one, other in itertools.combinations(names, 2)
            for prompt in self.prompts()
        )


@dataclass
class Seen:
    """What came of requests."""

    failed: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    by_model: Counter[str] = field(default_factory=Counter)
    exchanged: bool = False
    """The last version is served."""


async def measure(replica: Replica, peft: Peft, options: argparse.Namespace) -> dict[str, Any]:
    """Return what requests saw of an adapter's exchanges."""
    made = await versions(replica, peft, options.updates + 1, sentences())
    return await under_traffic(replica, made, options.requests)


async def versions(replica: Replica, peft: Peft, count: int, texts: list[str]) -> Versions:
    """Make and publish versions, and ask PEFT what each answers."""
    made = Versions()
    shared = (await peft.ask("beginning", " ".join(texts[:400]), SHARED_TOKENS))["result"]
    prompts = [f"{shared}\nQuestion {number}: {texts[-number - 1]}\nAnswer:" for number in range(PROMPTS)]
    names = {BASE: ""}
    for number in range(count):
        folder = replica.folder / "made" / f"{CHANGING}-{number}"
        await peft.ask("make", str(folder), 2000 + number, BASE, STRENGTH)
        await peft.ask("add", CHANGING, str(folder))
        adapter = replica.publish(f"{CHANGING}/{number}", folder)
        made.adapters.append(adapter)
        names = {engine_name(CHANGING, str(adapter.manifest_sha256)): CHANGING} | (names if number == 0 else {})
        for name, held in names.items():
            answers = (await peft.ask("sure", [(held, prompt) for prompt in prompts], TOKENS))["result"]
            for prompt, (tokens, ahead) in zip(prompts, answers, strict=True):
                if ahead < SURE:
                    made.left_out += 1
                else:
                    made.expected[name, prompt] = tokens
    return made


async def under_traffic(replica: Replica, made: Versions, requests: int) -> dict[str, Any]:
    """Send requests while the versions are exchanged one after the other; return what was seen of it."""
    replica.want(made.adapters[0])
    await replica.served(made.adapters[0])
    seen, sent = Seen(), itertools.count()
    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(_ask_on(replica, made, requests, sent, seen))
        tasks.create_task(_exchange(replica, made, requests, seen))
    replica.want_no(CHANGING)
    return {
        "requests": sum(seen.by_model.values()),
        "exchanges": len(made.adapters) - 1,
        "failed": len(seen.failed),
        "wrong": len(seen.wrong),
        "versions_that_answered": sum("@" in name for name in seen.by_model),
        "of_the_base": seen.by_model[BASE],
        "prompts": len(made.prompts()),
        "answers_alike_of_two_versions": made.alike(),
        "seconds": round(time.perf_counter() - began, 1),
        "examples": [*map(str, seen.failed[:2]), *seen.wrong[:3]],
        "load": round(os.getloadavg()[0], 1),
    }


async def _ask_on(replica: Replica, made: Versions, requests: int, sent: Iterator[int], seen: Seen) -> None:
    prompts = made.prompts()
    while (number := next(sent)) < requests or not seen.exchanged:
        prompt = prompts[number % len(prompts)]
        await _look(replica, made, CHANGING, prompt, seen)
        if number % OTHERS_EVERY == 0:
            await _look(replica, made, BASE, prompt, seen)


async def _look(replica: Replica, made: Versions, model: str, prompt: str, seen: Seen) -> None:
    answer = await replica.ask(model, prompt, TOKENS)
    if answer["status"] != 200:
        seen.failed.append(answer)
        seen.by_model[f"{model} failed"] += 1
        return
    said, found = answer["model"], tokens_of(answer)
    seen.by_model[said] += 1
    if made.expected.get((said, prompt)) != found:
        others = [name for (name, asked), tokens in made.expected.items() if asked == prompt and tokens == found]
        seen.wrong.append(f"{said} answered {found}, as {others or 'none'}")


async def _exchange(replica: Replica, made: Versions, requests: int, seen: Seen) -> None:
    """Have the next version served whenever an equal share of the requests was answered."""
    share = requests / len(made.adapters)
    for number, adapter in enumerate(made.adapters[1:], 1):
        while sum(seen.by_model.values()) < number * share:
            await asyncio.sleep(0.05)
        replica.want(adapter)
        await replica.served(adapter)
    seen.exchanged = True

"""A model that is not there: the answer names a close one that this client may ask for, and never costs much."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from tunery_server.gateway.near import LEAST_REST, LONGEST, REST, Near
from unit.server.test_aliases import TONE, TONE_SHA, alias, bearer

from kit.server.gateway import BASE, Answer, open_site, write_keys

PLAIN = "There is no such model; GET /v1/models lists those that can be asked."
THOUSANDS = [f"support-bot-{number:04}" for number in range(4096)]


class Clock:
    """A clock on which each look at the names takes a tenth of a second."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def names(self) -> list[str]:
        self.now += 0.1
        return ["support-bot"]


async def message(ask: Callable[[], Awaitable[Answer]]) -> str:
    """Return what a 404 says; it is asked again for a while, as a look is not taken while one before it is rested."""
    for _ in range(20):
        answer = await ask()
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        if answer.error["message"] != PLAIN:
            break
        await asyncio.sleep(LEAST_REST)
    return str(answer.error["message"])


async def test_a_name_close_to_the_one_asked_for_is_told(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.routes.lead([alias("support-bot:prod", **{"support-bot": 1})])
        for asked, meant in (
            ("suport-bot", "support-bot"),
            ("Support-Bot", "support-bot"),
            ("support-bot:prd", "support-bot:prod"),
            (BASE.lower(), BASE),
        ):
            text = PLAIN.replace("; GET", f"; did you mean {meant}? GET")
            body = {"model": asked, "messages": []}
            assert await message(partial(site.ask, body)) == text
            assert await message(partial(site.get, f"/v1/models/{asked}")) == text


async def test_a_name_that_nothing_is_close_to_gets_the_plain_answer(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        for asked in ("gpt-4o", "s", "support-bot@000000000000", "x" * 100_000, "\ud800"):
            assert await message(partial(site.ask, {"model": asked, "messages": []})) == PLAIN


async def test_a_client_hears_of_no_name_that_it_may_not_ask_for(tmp_path: Path) -> None:
    """Not even where it may ask for a name that is close, and that is not there."""
    keys = write_keys(tmp_path / "keys", all="key-of-all", few="key-of-few")
    async with open_site(tmp_path, keys) as site:
        site.routes.serve("tone", TONE, TONE_SHA)
        site.routes.allow({"few": ["tone", "suport-bot", "tones"]})
        body = {"model": "suport-bot", "messages": []}
        assert await message(partial(site.ask, body, **bearer("few"))) == PLAIN
        assert "did you mean support-bot?" in await message(partial(site.ask, body, **bearer("all")))
        assert "did you mean tone?" in await message(partial(site.ask, {**body, "model": "tones"}, **bearer("few")))
        refused = await site.ask({**body, "model": "supportbot"}, **bearer("few"))
        assert (refused.status, "support-bot" in refused.error["message"]) == (403, False)


@pytest.mark.parametrize(
    ("asked", "meant"), [("suport-bot-1234", 1234), ("support-bot1234", 1234), ("support-bto-4095", 4095)]
)
def test_among_thousands_the_right_one_is_found(asked: str, meant: int) -> None:
    assert Near().find(asked, lambda: THOUSANDS) == THOUSANDS[meant]


def test_after_a_look_it_rests_twenty_times_as_long() -> None:
    clock = Clock()
    near = Near(clock)
    assert near.find("suport-bot", clock.names) == "support-bot"
    for late, found in ((0.1 * REST - 0.1, None), (0.2, "support-bot")):
        clock.now += late
        assert near.find("suport-bot", clock.names) == found
    assert near.find("x" * (LONGEST + 1), clock.names) is None


def test_a_storm_of_unknown_names_costs_next_to_nothing() -> None:
    near, began = Near(), time.process_time()
    looks = 0

    def names() -> list[str]:
        nonlocal looks
        looks += 1
        return THOUSANDS

    for number in range(100_000):
        near.find(f"support-bot-x{number}", names)
    took = time.process_time() - began
    assert looks >= 1
    assert took < 2, f"{took:.2f} s for 100,000 names, with {looks} looks"

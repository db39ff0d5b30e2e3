"""Aliases and clients: shares by weight, the same user by the same target, who may ask for what."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tunery_api.adapterserver import Alias, AliasTarget
from tunery_api.serving import engine_name
from tunery_server.routes import NotServed, Routes, UnknownModel

from kit.server.gateway import BASE, BOT, SHA, Site, open_site, write_keys
from kit.server.loader import Table, adapter_files

TONE_SHA = "7" * 64
TONE = engine_name("tone", TONE_SHA)


def alias(name: str = "bot:prod", **weights: int) -> Alias:
    return Alias(name=name, targets=[AliasTarget(adapter=each, weight=weight) for each, weight in weights.items()])


@pytest.fixture
def routes() -> Routes:
    found = Routes(BASE)
    found.serve("bot", engine_name("bot", SHA), SHA)
    found.serve("tone", TONE, TONE_SHA)
    return found


async def test_ninety_five_to_five_is_that_within_one_per_cent(routes: Routes) -> None:
    random.seed(7)
    routes.lead([alias(bot=95, tone=5)])
    count = Counter([(await routes.find("bot:prod")).name for _ in range(10_000)])
    assert 400 <= count["tone"] <= 600
    assert count.total() == 10_000
    users = Counter([(await routes.find("bot:prod", f"u{number}")).name for number in range(10_000)])
    assert 400 <= users["tone"] <= 600, "users are spread likewise"


async def test_a_user_stays_with_a_target_and_few_move_with_the_weights(routes: Routes) -> None:
    routes.lead([alias(bot=95, tone=5)])
    names = [f"user-{number}" for number in range(2_000)]
    before = {user: (await routes.find("bot:prod", user)).name for user in names}
    again = Routes(BASE)
    again.serve("bot", engine_name("bot", SHA), SHA)
    again.serve("tone", TONE, TONE_SHA)
    again.lead([alias(bot=95, tone=5)])
    assert {user: (await again.find("bot:prod", user)).name for user in names} == before, "on every replica"
    routes.lead([alias(bot=90, tone=10)])
    after = {user: (await routes.find("bot:prod", user)).name for user in names}
    moved = [user for user in names if after[user] != before[user]]
    assert {before[user] for user in moved} == {"bot"}
    assert 0.03 < len(moved) / len(names) < 0.08


async def test_the_share_of_a_target_that_cannot_answer_goes_to_the_others_until_it_can(routes: Routes) -> None:
    routes.lead([alias(bot=1, tone=1)])
    names = [f"user-{number}" for number in range(200)]
    before = {user: (await routes.find("bot:prod", user)).name for user in names}
    routes.hold("tone", "AdapterCorrupt", "it is damaged")
    assert {(await routes.find("bot:prod", user)).name for user in [*names, None]} == {"bot"}
    assert "bot:prod" in routes.names()
    routes.serve("tone", TONE, TONE_SHA)
    assert {user: (await routes.find("bot:prod", user)).name for user in names} == before


async def test_an_alias_none_of_whose_targets_can_answer_says_why_of_each(routes: Routes) -> None:
    routes.lead([alias(bot=1, gone=3), alias("one", bot=1), alias("none", bot=0, gone=1)])
    routes.hold("bot", "AdapterCorrupt", "it is damaged")
    with pytest.raises(NotServed) as caught:
        await routes.find("bot:prod")
    assert caught.value.reason == "NoTargetServed"
    assert "bot: AdapterCorrupt: it is damaged; gone: it is no adapter of this server" in caught.value.message
    with pytest.raises(NotServed) as caught:
        await routes.find("one")
    assert caught.value.reason == "AdapterCorrupt", "of a single target it is that one's"
    routes.serve("bot", engine_name("bot", SHA), SHA)
    with pytest.raises(NotServed):
        await routes.find("none", "user")
    assert routes.names() == [BASE, "bot", "tone", "bot:prod", "one"]
    with pytest.raises(UnknownModel):
        await routes.find("one@3fa9c1d20b7e")


async def test_an_alias_may_lead_to_the_base(routes: Routes) -> None:
    routes.lead([alias("plain", **{BASE: 1})])
    assert (await routes.find("plain")).engine_name == BASE


async def test_a_flip_and_a_rollback_need_nothing_but_the_list(tmp_path: Path) -> None:
    table = Table(tmp_path)
    items = [table.item(name, table.publish(name, adapter_files(at))) for at, name in enumerate(("old", "new"), 1)]
    table.want(*items, aliases=[alias("prod", old=1)])
    await table.go()
    loads = len(table.engine.did("load"))
    for target in ("new", "old", "new"):
        table.want(*items, aliases=[alias("prod", **{target: 1})])
        await table.loader.step()
        assert (await table.routes.find("prod")).name == target
    table.want(*items)
    await table.loader.step()
    with pytest.raises(UnknownModel):
        await table.routes.find("prod")
    assert len(table.engine.did("load")) == loads


async def test_where_a_cold_target_cannot_be_loaded_another_answers(tmp_path: Path) -> None:
    table = Table(tmp_path, limit=1)
    table.engine.refuse = lambda name: "no" if name.startswith("canary") else None
    names = ("old", "canary")
    items = [table.item(name, table.publish(name, adapter_files(at))) for at, name in enumerate(names, 1)]
    table.want(*items, aliases=[alias("prod", old=1, canary=1000)])
    await table.go()
    assert table.told("canary").state == "Cold"
    assert [(await table.routes.find("prod")).name for _ in range(20)] == ["old"] * 20
    assert table.told("canary").reason == "EngineRefused"
    assert len([name for name in table.engine.did("load") if name.startswith("canary")]) == 1
    await table.loader.settle()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    keys = write_keys(tmp_path / "keys", all="key-of-all", few="key-of-few")
    async with open_site(tmp_path, keys) as found:
        found.routes.serve("tone", TONE, TONE_SHA)
        found.routes.lead([alias("prod", **{"support-bot": 1}), alias("both", **{"support-bot": 1, "tone": 1})])
        found.routes.allow({"few": ["prod", "tone"]})
        yield found


def bearer(client: str) -> dict[str, dict[str, str]]:
    return {"headers": {"Authorization": f"Bearer key-of-{client}"}}


async def test_a_client_with_a_list_is_answered_for_what_is_on_it_only(site: Site) -> None:
    for model in ("support-bot", BOT, BASE, "both", "nobody-knows"):
        answer = await site.ask({"model": model, "messages": []}, **bearer("few"))
        assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
        assert (answer.error["type"], answer.error["param"]) == ("invalid_request_error", "model")
    assert site.engine.asked == []
    for model, answers in (("prod", BOT), ("tone", TONE), (TONE, TONE)):
        answer = await site.ask({"model": model, "messages": []}, **bearer("few"))
        assert (answer.status, answer.headers["X-Tunery-Adapter"], answer.json["model"]) == (200, answers, answers)
    assert (await site.ask({"model": "support-bot", "messages": []}, **bearer("all"))).status == 200
    assert await site.metric('tunery_adapter_requests_total{adapter="",client="few",code="403"}') == 5
    assert await site.metric('tunery_adapter_requests_total{adapter="support-bot",client="few",code="200"}') == 1


async def test_models_lists_the_aliases_and_to_each_client_what_it_may_ask_for(site: Site) -> None:
    listed = (await site.get("/v1/models", **bearer("all"))).json["data"]
    assert [each["id"] for each in listed] == [BASE, "support-bot", "tone", "prod", "both"]
    assert [each["root"] for each in listed] == [BASE, BOT, TONE, BOT, "both"]
    assert [each["parent"] for each in listed] == [None, BASE, BASE, BASE, BASE]
    few = (await site.get("/v1/models", **bearer("few"))).json["data"]
    assert [each["id"] for each in few] == ["tone", "prod"]
    assert (await site.get("/v1/models/prod", **bearer("few"))).json == few[1]
    answer = await site.get("/v1/models/support-bot", **bearer("few"))
    assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
    assert (await site.get("/v1/models", headers={"Authorization": "Bearer wrong"})).status == 401


async def test_an_alias_that_leads_nowhere_is_told_as_its_requests_are(site: Site) -> None:
    site.routes.lead([alias("prod", gone=1)])
    for answer in (
        await site.get("/v1/models/prod", **bearer("few")),
        await site.ask({"model": "prod", "messages": []}, **bearer("few")),
    ):
        assert (answer.status, answer.error["code"]) == (503, "NoTargetServed")
    assert "prod" not in [each["id"] for each in (await site.get("/v1/models", **bearer("all"))).json["data"]]


def test_a_base_with_an_at_in_its_name_is_no_version_of_an_adapter() -> None:
    routes = Routes("my@base")
    routes.allow({"few": ["my"]})
    assert routes.allows("few", "my@3fa9c1d20b7e")
    assert not routes.allows("few", "my@base")


async def test_the_same_user_is_answered_by_the_same_target_at_the_gateway(site: Site) -> None:
    for user in ("ann", "bob", "eve"):
        body = {"model": "both", "messages": [], "user": user}
        answers = await asyncio.gather(*(site.ask(body, **bearer("all")) for _ in range(10)))
        assert len({answer.headers["X-Tunery-Adapter"] for answer in answers}) == 1
    odd = await site.ask({"model": "both", "messages": [], "user": 7}, **bearer("all"))
    assert odd.status == 200

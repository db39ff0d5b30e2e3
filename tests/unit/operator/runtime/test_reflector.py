"""A reflector keeps the cache equal to the cluster, whatever the way to the API server does to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from kubernetes.client.configuration import Configuration
from prometheus_client import REGISTRY

from tunery_api.kinds import Kind
from tunery_operator.client.connection import Connection
from tunery_operator.health import build_app
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime import reflector as reflector_module
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.event_handlers import handle_objects
from tunery_operator.runtime.list_watch import ListWatchClient, Timeouts, WatchFailure
from tunery_operator.runtime.reflector import MAX_SILENCE, Reflector, ReflectorHealth
from tunery_operator.runtime.watches import Watches, jobs, namespaces_to_watch, owners, pods

from kit.dripping import dripping
from kit.operator.cached import active_keys
from kit.operator.fakeapi import FakeApi, Script, begin, error_event, line, refuses, sends, serving

QUICK = Timeouts(connect=1.0, answer=0.5, inactivity=0.5)


class Stage:
    """One reflector of LoRAJobs on a fake API server."""

    def __init__(self, api: FakeApi, cache: Cache, health: ReflectorHealth, watches: Watches) -> None:
        self.api, self.cache, self.health, self.watches = api, cache, health, watches
        self.told: list[Key] = []

    @property
    def names(self) -> set[str]:
        """The objects that are known, finished or not."""
        return {view.name for view in self.cache.all_objects()}

    async def until(self, what: str, check: Callable[[], Any], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < end, f"{what}: not within {seconds} s; {self.health.trouble}"
            await asyncio.sleep(0.01)

    async def until_equal(self) -> None:
        """Wait until the cache holds what the cluster holds."""
        await self.until("the cache equals the cluster", lambda: self.names == set(self.api.objects))

    async def until_watching(self) -> None:
        await self.until("synced and well", lambda: self.health.synced and self.health.trouble is None)
        await self.until("a watch is open", lambda: self.api.watched > 0)


@asynccontextmanager
async def staged(api: FakeApi, timeouts: Timeouts = QUICK, **options: Any) -> AsyncIterator[Stage]:
    async with serving(api, **options) as connection:
        cache, health = Cache(), ReflectorHealth(owners(Kind.LORAJOB, None))
        told: list[Key] = []
        reflector = Reflector(
            ListWatchClient(connection, timeouts), handle_objects(Kind.LORAJOB, None, cache, told.extend), health
        )
        watches = Watches([reflector])
        stage = Stage(api, cache, health, watches)
        stage.told = told
        watches.start()
        try:
            yield stage
        finally:
            await watches.stop()


def errors(code: str) -> float:
    return REGISTRY.get_sample_value("tunery_watch_errors_total", {"resource": "lorajobs", "code": code}) or 0.0


@pytest.mark.parametrize("drip", ["body", "chunks"])
async def test_what_drips_is_given_up(drip: str) -> None:
    """Something comes all the time, and never a list, nor a line: a cache would stand still for ever, and look well."""
    configuration, spec = Configuration(), owners(Kind.LORAJOB, None)
    with dripping(drip) as configuration.host:
        client = ListWatchClient(Connection(configuration), Timeouts(answer=1.0, page=0.3, inactivity=0.3))
        began = time.monotonic()
        with pytest.raises(WatchFailure) as listed:
            await client.page(spec, {})
        with pytest.raises(WatchFailure) as watched:
            async with client.watch(spec, {"watch": "1"}) as events:
                await anext(events)
        assert time.monotonic() - began < 3
        await client.close()
    assert str(listed.value).endswith("no answer in time")
    assert str(watched.value).endswith("no complete line came for 0 s")


# The usual way


async def test_lists_in_pages_and_strips_what_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector_module, "PAGE", 3)
    api = FakeApi()
    for index in range(8):
        api.put(f"n{index}")
    async with staged(api) as stage:
        await stage.until_watching()
        await stage.until_equal()
        pages = [each for each in api.requests if "watch" not in each.query]
        assert [each.query.get("continue") for each in pages] == [None, "3", "6"]
        assert {each.query["limit"] for each in pages} == {"3"}
        assert all("resourceVersion" not in each.query for each in pages), "the newest state, not what is cached"
        body = stage.cache.body(Key(Kind.LORAJOB, "team", "n0"))
        assert body is not None
        assert "managedFields" not in body["metadata"]


async def test_watches_on_from_the_list() -> None:
    api = FakeApi()
    api.put("old")
    async with staged(api) as stage:
        await stage.until_watching()
        [watch] = [each for each in api.requests if "watch" in each.query]
        assert watch.query["resourceVersion"] == "101"
        assert watch.query["allowWatchBookmarks"] == "1"
        assert 300 <= int(watch.query["timeoutSeconds"]) <= 600
        api.put("new")
        api.put("old", phase="Succeeded")
        await stage.until("the change is known", lambda: ("LoRAJob", "team", "Succeeded") in stage.cache.phases())
        await stage.until_equal()
        api.delete("old")
        await stage.until_equal()
        assert api.listed == 1
        assert stage.told[0] == Key(Kind.LORAJOB, "team", "old")


async def test_one_bookmark_is_a_sign_of_life() -> None:
    """B1: the liveness probe watched a signal that a watch never gives, and ended the process every four minutes."""
    api = FakeApi()
    async with staged(api, Timeouts()) as stage:
        await stage.until_watching()
        await asyncio.sleep(1.2)
        before = stage.health.age
        assert before >= 0.1
        api.version += 5
        api.bookmark()
        await stage.until("a sign of life", lambda: stage.health.age < before)


async def test_the_next_watch_goes_on_from_the_last_bookmark() -> None:
    api = FakeApi()
    bookmark = line("BOOKMARK", {"metadata": {"resourceVersion": "150"}})
    api.watches.append(sends(bookmark))
    async with staged(api) as stage:
        await stage.until("a second watch", lambda: api.watched == 2)
        assert [each.query["resourceVersion"] for each in api.requests if "watch" in each.query] == ["100", "150"]
        assert api.listed == 1


async def test_a_bookmark_of_the_version_before_is_no_failure() -> None:
    api = FakeApi()
    bookmark = line("BOOKMARK", {"metadata": {"resourceVersion": "150"}})
    api.watches.append(sends(bookmark, bookmark))
    async with staged(api) as stage:
        await stage.until("a second watch", lambda: api.watched == 2)
        assert api.listed == 1


async def test_what_belongs_to_whom_is_asked_of_the_server() -> None:
    assert jobs(None).path == "/apis/batch/v1/jobs"
    assert dict(jobs(None).selectors)["labelSelector"] == "app.kubernetes.io/managed-by=tunery,!tunery.dev/done"
    assert pods("team").path == "/api/v1/namespaces/team/pods"
    assert dict(pods(None).selectors)["fieldSelector"] == "status.phase!=Succeeded,status.phase!=Failed"
    assert namespaces_to_watch([]) == [None]
    assert namespaces_to_watch(["a", "b", "a"]) == ["a", "b"]


# Gaps


async def test_deleted_in_a_gap() -> None:
    """M14: Kopf listed again after a 410, and told nothing of what was not there any more."""
    api = FakeApi()
    for name in ("stays", "goes", "ended"):
        api.put(name, phase="Succeeded" if name == "ended" else "Training")
    watching = asyncio.Event()

    async def gap(_: FakeApi, request: Any) -> Any:
        response = await begin(request)
        await watching.wait()
        api.delete("goes")
        api.delete("ended")
        api.put("new")
        await response.write(error_event(410))
        return response

    api.watches.append(gap)
    async with staged(api, Timeouts()) as stage:
        await stage.until_equal()
        watching.set()
        await stage.until("the gap is told", lambda: stage.names == {"stays", "new"})
        assert api.listed == 2


async def test_a_list_whose_next_page_has_expired_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector_module, "PAGE", 2)
    api = FakeApi()
    for index in range(5):
        api.put(f"n{index}")

    async def usual(_: FakeApi, request: Any) -> Any:
        return await api.list(request)

    api.lists.extend([usual, refuses(410)])
    async with staged(api) as stage:
        await stage.until_watching()
        await stage.until_equal()
        assert api.listed == 2


@pytest.mark.parametrize("late", ["again", "older"])
async def test_duplicates_and_late_events_are_harmless(late: str) -> None:
    api = FakeApi()
    api.put("one", phase="Training")
    api.put("two", phase="Training")
    events = [each for _, each in api.log]
    api.put("one", phase="Succeeded")
    newest = api.log[-1][1]
    api.version += 10
    changed = api.put("two", phase="Succeeded")
    wrong = newest if late == "again" else events[0]
    # The list is from before both changes.
    first = dict(api.objects)

    async def before(_: FakeApi, __: Any) -> Any:
        items = [{**body, "status": {"phase": "Training"}} for body in first.values()]
        for body, version in zip(items, ("101", "102"), strict=True):
            body["metadata"] = {**body["metadata"], "resourceVersion": version}
        return web.json_response({"metadata": {"resourceVersion": "102"}, "items": items})

    api.lists.append(before)
    api.watches.append(sends(newest, wrong, line("MODIFIED", changed), then=5))
    async with staged(api) as stage:
        done = {("LoRAJob", "team", "Succeeded"): 2}
        await stage.until("the newest states are known", lambda: stage.cache.phases() == done)
        await asyncio.sleep(0.1)
        assert stage.cache.phases() == done
        assert active_keys(stage.cache) == []


async def test_a_cluster_that_went_back_in_time_needs_a_new_process() -> None:
    api = FakeApi()
    api.watches.append(sends(line("BOOKMARK", {"metadata": {"resourceVersion": "900"}}), error_event(410)))
    async with staged(api) as stage:
        await stage.until("it is told", stage.watches.defects)
        assert "older than what is known" in stage.watches.defects()[0]


# Faults

FAULTS: dict[str, tuple[Script, str]] = {
    "403": (refuses(403), "403"),
    "404": (refuses(404), "404"),
    "410": (refuses(410), "410"),
    "429": (refuses(429, **{"Retry-After": "1"}), "429"),
    "500": (refuses(500), "500"),
    "503": (refuses(503), "503"),
    "garbage": (sends(b"<html>", then=0), "cut"),
    "cut before the end": (sends(b'{"met'), "cut"),
    "hang": (sends(then=30), "silent"),
}
EVENT_FAULTS: dict[str, tuple[Script, str]] = {
    **{f"ERROR {code}": (sends(error_event(code)), str(code)) for code in (403, 410, 429, 500, 504)},
    "a line that is no JSON": (sends(b"{]\n", then=5), "unreadable"),
    "an event without an object": (sends(b'{"type": "ADDED"}\n', then=5), "unreadable"),
    "an object without a version": (sends(line("ADDED", {"metadata": {}}), then=5), "unreadable"),
}


@pytest.mark.parametrize("where", ["list", "watch"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_every_fault_is_survived(where: str, fault: str) -> None:
    script, code = FAULTS[fault]
    api, before = FakeApi(), errors(code)
    api.put("old")
    (api.lists if where == "list" else api.watches).append(script)
    async with staged(api) as stage:
        await stage.until("the fault has struck", lambda: errors(code) > before)
        api.put("new")
        await stage.until_equal()
        await stage.until("well again", lambda: stage.health.trouble is None)
        assert stage.watches.defects() == []


@pytest.mark.parametrize("fault", EVENT_FAULTS)
async def test_every_wrong_event_is_survived(fault: str) -> None:
    script, code = EVENT_FAULTS[fault]
    api, before = FakeApi(), errors(code)
    api.put("old")
    api.watches.append(script)
    # Patient: on a busy machine the event may come after half a second, and silence would be the fault that struck.
    async with staged(api, Timeouts()) as stage:
        await stage.until("the fault has struck", lambda: errors(code) > before)
        api.put("new")
        await stage.until_equal()
        await stage.until("well again", lambda: stage.health.trouble is None)


async def test_no_server_at_all() -> None:
    api = FakeApi()
    async with serving(api) as connection:
        pass
    health = ReflectorHealth(owners(Kind.LORAJOB, None))
    reflector = Reflector(
        ListWatchClient(connection, QUICK), handle_objects(Kind.LORAJOB, None, Cache(), lambda _: None), health
    )
    watches = Watches([reflector])
    watches.start()
    try:
        await asyncio.sleep(0.5)
        assert "unreachable" in (health.trouble or "")
        assert watches.defects() == [], "another process would not reach it either"
    finally:
        await watches.stop()


async def test_a_rotated_token_is_read_anew() -> None:
    api, current = FakeApi(), {"token": "Bearer one"}
    api.tokens = {"Bearer one"}
    api.watches.append(sends(then=0.3))
    async with staged(api, token=lambda: current["token"]) as stage:
        await stage.until_watching()
        api.tokens = {"Bearer two"}
        await stage.until("refused", lambda: "401" in (stage.health.trouble or ""))
        current["token"] = "Bearer two"
        api.put("new")
        await stage.until_equal()


async def test_retry_after_is_heeded() -> None:
    api = FakeApi()
    api.lists.append(refuses(429, **{"Retry-After": "2"}))
    began = time.monotonic()
    async with staged(api) as stage:
        await stage.until_watching()
        assert time.monotonic() - began >= 2


async def test_pauses_grow_and_the_trouble_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    api = FakeApi()
    api.lists.extend([refuses(403)] * 4)
    with caplog.at_level(logging.INFO, "tunery_operator.runtime"):
        async with staged(api) as stage:
            await stage.until("told", lambda: stage.health.trouble and "403" in stage.health.trouble)
            assert "lorajobs: 403 no 403 for 0 s" in (stage.health.trouble or "")
            await stage.until_watching()
            await stage.until("told", lambda: "works again" in caplog.text)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in lines] == ["WARNING", "INFO"], lines


async def test_an_object_that_is_not_understood_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    api = FakeApi()
    api.put("broken")["status"] = "this is no status"
    api.put("fine")
    async with staged(api) as stage:
        await stage.until("the other is known", lambda: "fine" in stage.names)
        await stage.until_watching()
        assert "Bug in Tunery: resource=lorajobs object=team/broken" in caplog.text


# Probes


@asynccontextmanager
async def probing(watches: Watches) -> AsyncIterator[Callable[[str], Any]]:
    async with TestClient(TestServer(build_app(watches.defects, watches.troubles))) as client:

        async def probe(name: str) -> tuple[int, str]:
            async with client.get(f"/{name}") as answer:
                return answer.status, await answer.text()

        yield probe


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
async def test_what_the_api_server_refuses_makes_unready_and_ends_nothing(status: int) -> None:
    """M13a: lists were refused for ever, and both probes were green."""
    api = FakeApi()
    api.lists.extend([refuses(status)] * 100)
    async with staged(api) as stage, probing(stage.watches) as probe:
        await stage.until("told", lambda: str(status) in (stage.health.trouble or ""))
        code, text = await probe("readyz")
        assert code == 503
        assert f"lorajobs: {status} no {status} for" in text
        assert await probe("healthz") == (200, "ok")
        api.lists.clear()
        stage.watches._reflectors[0]._failures = 0
        await stage.until("ready again", lambda: stage.health.trouble is None, seconds=20)
        assert await probe("readyz") == (200, "ok")


async def test_unready_before_the_list_is_in_the_cache() -> None:
    """M13b: listed was followed by a guess."""
    api, listing = FakeApi(), asyncio.Event()
    api.put("one")

    async def slow(_: FakeApi, request: Any) -> Any:
        await listing.wait()
        return await api.list(request)

    api.lists.append(slow)
    async with staged(api, Timeouts()) as stage, probing(stage.watches) as probe:
        assert await probe("readyz") == (503, "lorajobs: not listed yet")
        listing.set()
        await stage.watches.synced()
        assert stage.names == {"one"}
        assert await probe("readyz") == (200, "ok")


async def test_a_watch_that_is_silent_is_opened_anew_before_anyone_notices() -> None:
    api, before = FakeApi(), errors("silent")
    async with staged(api, QUICK) as stage:
        await stage.until("opened anew", lambda: api.watched >= 2)
        assert errors("silent") > before
        assert stage.health.trouble is None
        assert api.listed == 1


async def test_only_what_a_new_process_mends_ends_this_one() -> None:
    now = [0.0]
    health = ReflectorHealth(owners(Kind.LORAJOB, None), lambda: now[0])
    assert health.defect is None
    health.opens()
    now[0] = MAX_SILENCE - 1
    assert health.defect is None
    now[0] = MAX_SILENCE + 1
    assert health.defect is not None
    health.alive()
    assert health.defect is None


async def test_a_reflector_that_ended_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Reflector):
        async def run(self) -> None:
            raise RuntimeError("a defect")

    client: Any = None
    handler: Any = None
    watches = Watches([Broken(client, handler, ReflectorHealth(owners(Kind.LORAJOB, None)))])
    watches.start()
    await asyncio.sleep(0.05)
    async with probing(watches) as probe:
        assert await probe("healthz") == (503, "watch lorajobs has ended")
    assert "Bug in Tunery" in caplog.text


async def test_metrics_are_served() -> None:
    async with serving(FakeApi()), probing(Watches([])) as probe:
        code, text = await probe("metrics")
    assert code == 200
    assert "tunery_watch_relists_total" in text

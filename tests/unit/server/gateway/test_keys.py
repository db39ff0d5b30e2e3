"""API keys: who has one gets in, nobody else does, and a renewed Secret counts without a restart."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

import pytest

from tunery_api.redact import redact
from tunery_api.runspec import MountedSecret
from tunery_api.serving import NO_KEYS
from tunery_server.gateway.auth import LOOK_SECONDS, MAX_KEY, READ_SECONDS, ApiKeys
from tunery_server.gateway.clients import unknown_clients
from tunery_server.gateway.errors import Refusal

from kit.server.gateway import BASE, open_site, write_keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def who(keys: ApiKeys, key: str) -> str | int:
    """Return the client with a key, or the status of the refusal."""
    try:
        return keys.client(f"Bearer {key}")
    except Refusal as refusal:
        return refusal.status


class Clock:
    """A clock that tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_only_who_has_a_key_gets_in(tmp_path: Path) -> None:
    secret = write_keys(tmp_path / "keys", alice="key-of-alice", bob="key-of-bob\n", eve="  spaced-key \r\n")
    async with open_site(tmp_path, secret) as site:
        for key in ("key-of-alice", "key-of-bob", "spaced-key"):
            assert (await site.ask(headers=bearer(key))).status == 200
            assert (await site.get("/v1/models", headers=bearer(key))).status == 200
        assert (await site.ask(headers={"Authorization": "bEARER   key-of-bob "})).status == 200
        asked = len(site.engine.asked)
        wrong = [
            {},
            {"Authorization": ""},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic key-of-bob"},
            {"Authorization": "key-of-bob"},
            {"X-Api-Key": "key-of-bob"},
            *map(bearer, ["key-of-bo", "key-of-bobb", "KEY-OF-BOB", "bob", "é", "x" * 4000]),
        ]
        for headers in wrong:
            answer = await site.ask(b"{", headers=headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert (await site.get("/v1/models", headers=headers)).status == 401
            assert (await site.get(f"/v1/models/{BASE}", headers=headers)).status == 401
        assert len(site.engine.asked) == asked
        series = 'tunery_adapter_requests_total{adapter="support-bot",client="bob",code="200"}'
        assert await site.metric(series) == 2
        for path in ("/livez", "/readyz", "/healthz/engine", "/metrics"):
            assert (await site.get(path)).status == 200


@pytest.mark.parametrize("case", ["no folder", "empty folder", "empty values", "two with one key", "too long"])
async def test_without_a_usable_key_nobody_gets_in_and_the_replica_is_not_ready(tmp_path: Path, case: str) -> None:
    secret = MountedSecret(name="keys", path=str(tmp_path / "keys"), field="spec.access.apiKeysSecretRef")
    if case != "no folder":
        contents: dict[str, dict[str, str]] = {
            "empty folder": {},
            "empty values": {"a": "", "b": " \n"},
            "two with one key": {"a": "the-same-key", "b": "the-same-key\n"},
            "too long": {"a": "x" * (MAX_KEY + 1)},
        }
        secret = write_keys(tmp_path / "keys", **contents[case])
    async with open_site(tmp_path, secret) as site:
        for key in ("", "the-same-key", "x" * 1000, "a"):
            answer = await site.ask(headers=bearer(key))
            assert (answer.status, answer.error["code"]) == (503, "SecretNotFound")
            assert "spec.access.apiKeysSecretRef: the Secret keys is missing" in answer.error["message"]
            assert "Retry-After" in answer.headers
        assert (await site.get("/v1/models")).status == 503
        ready = await site.get("/readyz")
        assert (ready.status, ready.body[:15]) == (503, b"SecretNotFound:")
        state = site.gateway.state()
        assert state.reason == "SecretNotFound"
        assert (state.message or "").endswith("so nobody may ask"), "what to do is the hint's to say"
        assert "one key for each client" in (state.hint or ""), "not the hint of a Secret that opens a store"
        assert site.engine.asked == []


def test_two_clients_with_one_key_are_both_refused_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = ApiKeys(write_keys(tmp_path / "keys", alice="a-key-of-two", bob="a-key-of-two", eve="another-key"))
    assert [who(keys, key) for key in ("a-key-of-two", "another-key")] == [401, "eve"]
    assert [record.message for record in caplog.records] == [
        "API keys: the clients alice and bob have the same API key: none of them gets in"
    ]


def test_a_renewed_secret_counts_soon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    secret = write_keys(tmp_path / "keys", alice="the-old-key")
    keys = ApiKeys(secret, clock)
    assert who(keys, "the-old-key") == "alice"
    write_keys(tmp_path / "keys", alice="the-new-key", bob="key-of-bob")
    clock.now += 2
    assert [who(keys, key) for key in ("the-old-key", "the-new-key", "key-of-bob")] == [401, "alice", "bob"]
    assert keys.names() == {"", "alice", "bob"}
    shutil.rmtree(secret.path)
    clock.now += 2
    assert who(keys, "the-new-key") == 503
    write_keys(tmp_path / "keys", alice="a-third-key")
    clock.now += 2
    assert who(keys, "a-third-key") == "alice"
    assert caplog.records == []


def test_a_folder_without_the_kubelets_link_is_read_again_too(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "alice").write_text("the-old-key")
    keys = ApiKeys(MountedSecret(name="keys", path=str(tmp_path), field="f"), clock)
    assert who(keys, "the-old-key") == "alice"
    (tmp_path / "alice").write_text("the-new-key")
    clock.now += READ_SECONDS / 2
    assert who(keys, "the-old-key") == "alice"
    clock.now += READ_SECONDS
    assert [who(keys, key) for key in ("the-old-key", "the-new-key")] == [401, "alice"]


def test_keys_are_hidden_wherever_they_would_be_shown(tmp_path: Path) -> None:
    keys = ApiKeys(write_keys(tmp_path / "keys", alice="key-of-alice\n"))
    assert who(keys, "key-of-alice") == "alice"
    assert redact("header key-of-alice came") == "header [redacted] came"
    assert "key-of-alice" not in repr(vars(keys))


async def test_no_key_and_no_words_of_a_request_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = write_keys(tmp_path / "keys", alice="key-of-alice")
    async with open_site(tmp_path, secret) as site:
        body = {"model": "support-bot", "messages": ["words of a client"]}
        for key in ("key-of-alice", "a-wrong-key"):
            await site.ask(body, headers=bearer(key))
        await site.engine.stop()
        for _ in range(3):
            assert (await site.ask(body, headers=bearer("key-of-alice"))).status == 503
        metrics = (await site.get("/metrics")).body.decode()
    own = [record.getMessage() for record in caplog.records if record.name.startswith("tunery_server")]
    assert [line[:26] for line in own] == ["the engine does not answer"]
    for text in (caplog.text, metrics):
        assert not any(word in text for word in ("key-of-alice", "a-wrong-key", "words of a client"))


# Clients that the spec lists


async def test_a_listed_client_that_the_secret_does_not_have_is_told_until_it_is_mended(tmp_path: Path) -> None:
    """Whose name was misspelt may ask for all, as before it was listed: that is said, and nothing restarts."""
    secret = write_keys(tmp_path / "keys", batch="key-of-batch", web="key-of-web")
    async with open_site(tmp_path, secret) as site:
        site.routes.allow({"wbe": ["support-bot"]})
        state, remark = site.gateway.state(), site.gateway.state().remark
        assert state.reason is None, "the replica itself lacks nothing"
        assert remark is not None
        assert (remark.reason, remark.message) == (
            "SecretNotFound",
            "spec.access.clients names wbe, which is no key of Secret keys (it has batch, web); did you mean web? "
            "batch, web are not listed and so may ask for every model",
        )
        assert (remark.hint or "").startswith("Correct the name in spec.access.clients, or add the key to the Secret")
        assert (await site.get("/readyz")).status == 200
        for client in ("batch", "web"):
            assert (await site.ask({"model": BASE}, headers=bearer(f"key-of-{client}"))).status == 200
        site.routes.allow({"web": ["support-bot"]})
        assert site.gateway.state().remark is None
        assert (await site.ask({"model": BASE}, headers=bearer("key-of-web"))).status == 403
        site.routes.allow({"web": ["support-bot"], "eve": ["support-bot"], "zoe": ["support-bot"]})
        remark = site.gateway.state().remark
        assert remark is not None
        assert remark.message.startswith("spec.access.clients names eve, zoe, which are no keys of")
        write_keys(tmp_path / "keys", web="key-of-web", eve="key-of-eve", zoe=" ")
        await asyncio.sleep(LOOK_SECONDS)
        assert site.gateway.state().remark is None, "a key without a value lets nobody in, and is there"


@pytest.mark.parametrize("has", [{"web": "key-of-web"}, None], ids=["keys", "no keys"])
async def test_a_replica_says_whose_keys_it_asks_for(tmp_path: Path, has: dict[str, str] | None) -> None:
    async with open_site(tmp_path, write_keys(tmp_path / "keys", **has) if has else None) as site:
        site.routes.allow({"web": ["support-bot"]})
        assert (site.gateway.state().api_keys, site.gateway.state().reason) == ("keys" if has else NO_KEYS, None)


def test_of_many_clients_some_are_named_and_the_rest_is_counted() -> None:
    listed, held = (frozenset(f"{letter}{number:03}" for number in range(300)) for letter in "ab")
    said = unknown_clients(listed, held, "keys") or ""
    assert "names a000, a001, a002, a003, a004 and 295 more, which are no keys of Secret keys" in said
    assert "(it has b000, b001, b002, b003, b004 and 295 more). b000" in said
    assert unknown_clients(frozenset("ab"), frozenset("a"), "keys") == (
        "spec.access.clients names b, which is no key of Secret keys (it has a)"
    )

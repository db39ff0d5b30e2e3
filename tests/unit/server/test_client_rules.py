"""Which rules a replica holds its clients to: those of the Secret that its pod mounts, whatever else comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunery_api.adapterserver import Alias, AliasTarget
from tunery_api.runspec import MountedSecret
from tunery_api.serving import NO_KEYS, ClientRules

from kit.server.loader import BASE, Table

OWN = {"web": ["prod"]}
"""What the spec says as this replica is made, beside the Secret `keys`."""
OTHERS: dict[str, Any] = {"api_keys": "keys-b", "clients": {"frontend": ["prod"]}}
"""What it says later, beside another Secret."""
BEFORE = ClientRules(api_keys="keys", clients=OWN)


def table_of(root: Path, secret: str = "keys") -> Table:
    """Return a replica whose pod mounts this Secret; NO_KEYS: none."""
    table = Table(root)
    keys = MountedSecret(name=secret, path=str(root / "keys"), field="spec.access.apiKeysSecretRef")
    table.spec = table.spec.model_copy(update={"api_keys": keys if secret else None})
    table.new_gateway()
    return table


def who_may_ask(table: Table, *clients: str) -> list[bool]:
    """Return which of the clients may ask for the base."""
    return [table.routes.allows(client, BASE) for client in clients]


async def test_a_list_of_another_secret_takes_no_limit_from_who_has_one_and_cuts_nobody_off(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    table.want(clients=OWN, api_keys="keys")
    await table.go()
    assert who_may_ask(table, "web", "all") == [False, True]
    for later in (OTHERS, {**OTHERS, "clients": {"all": ["prod"]}}, {"api_keys": NO_KEYS}):
        table.want(**later, before=[BEFORE])
        await table.go()
        assert who_may_ask(table, "web", "all") == [False, True]
    table.want(clients={"all": ["prod"]}, api_keys="keys")
    await table.go()
    assert who_may_ask(table, "web", "all") == [True, False], "a list of its own Secret counts at once"


async def test_what_else_has_changed_reaches_a_replica_under_the_rules_of_before(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    alias = Alias(name="late", targets=[AliasTarget(adapter=BASE)])
    table.want(**OTHERS, before=[BEFORE], aliases=[alias])
    await table.go()
    assert (await table.routes.find("late")).name == BASE


@pytest.mark.parametrize("told", [[BEFORE], []], ids=["told", "not told any more"])
async def test_a_process_of_the_gateway_that_follows_another_knows_the_rules_or_lets_nobody_ask(
    tmp_path: Path, told: list[ClientRules]
) -> None:
    table = table_of(tmp_path)
    table.want(clients=OWN, api_keys="keys")
    await table.go()
    table.want(**OTHERS, before=told)
    await table.go()
    assert who_may_ask(table, "web", "all") == [False, True], "it was told once"
    table.new_gateway()
    await table.go()
    assert who_may_ask(table, "web", "all") == [False, bool(told)]
    assert table.loader.ready() is bool(told)


@pytest.mark.parametrize("secret", ["keys", NO_KEYS], ids=["an operator of before", "no keys"])
async def test_rules_of_no_secret_count_where_they_always_did(tmp_path: Path, secret: str) -> None:
    table = table_of(tmp_path, secret)
    table.want(**({"clients": OWN} if secret else OTHERS))
    await table.go()
    assert who_may_ask(table, "", "web") == [True, not secret]
    assert table.loader.ready()


async def test_nobody_is_asked_to_mend_a_list_that_the_spec_has_no_more(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    for listed in ({"api_keys": "keys", "clients": OWN}, {**OTHERS, "before": [BEFORE]}):
        table.want(**listed)
        await table.go()
        assert list(table.routes.limited()) == (["web"] if listed["api_keys"] == "keys" else [])

"""The loader: what happens when adapters are added, updated, removed and broken, and what status says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .loader_kit import BASE, Table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


async def test_an_adapter_that_is_wanted_is_verified_loaded_probed_and_only_then_routed_to(table: Table) -> None:
    sha = table.publish("bot")
    table.want(table.item("bot", sha))
    await table.go()
    name = f"bot@{sha[:12]}"
    assert table.answers("bot") == table.answers(name) == name
    assert table.engine.log == [("probe", BASE), ("load", name), ("probe", name)]
    told = table.told("bot")
    assert (told.state, told.manifest_sha256, told.rank, told.reason) == ("Served", sha, 4, None)
    assert table.loader.ready()
    assert table.loader.state().revision == 1

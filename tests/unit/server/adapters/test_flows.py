"""The loader: what happens when adapters are added, updated, rolled back and removed, and what status says of it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tunery_api.reasons import FailureReason
from tunery_api.serving import Desired, DesiredAdapter
from tunery_common.errors import TuneryError
from tunery_common.storage import StorePath

from kit.server.loader import BASE, Table, adapter_files, open_file


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


async def test_nothing_is_ready_and_nothing_is_routed_to_before_everything_is_there(table: Table) -> None:
    table.engine.gate = asyncio.Event()
    table.want(table.item("bot", table.publish("bot")))
    await table.loader.start()
    for _ in range(20):
        await table.loader.step()
        await asyncio.sleep(0.01)
    assert table.answers("bot") == "AdapterLoading"
    assert table.told("bot").state == "Loading"
    assert not table.loader.ready()
    table.engine.gate.set()
    await table.loader.settle()
    assert table.loader.ready()
    assert table.answers("bot").startswith("bot@")


async def test_without_adapters_a_replica_is_ready_as_soon_as_its_list_is_read(table: Table) -> None:
    await table.loader.start()
    await table.loader.step()
    assert not table.loader.ready()
    assert "does not exist" in str(table.loader.state().message)
    table.want()
    await table.loader.step()
    assert not table.loader.ready(), "the base model has not answered yet"
    await table.loader.settle()
    assert table.loader.ready()
    assert table.engine.did("probe") == [BASE]


async def test_an_update_is_loaded_beside_the_old_version_which_leaves_once_nobody_uses_it(table: Table) -> None:
    first = table.publish("bot")
    table.want(table.item("bot", first))
    await table.go()
    old = table.routes.resolve("bot")
    second = table.publish("bot", adapter_files(fill=2))
    table.want(table.item("bot", second))
    table.started = True
    with table.routes.using(old):
        for _ in range(60):
            await table.loader.step()
            await asyncio.sleep(0.005)
        assert table.answers("bot") == f"bot@{second[:12]}"
        assert set(table.engine.held) == {f"bot@{first[:12]}", f"bot@{second[:12]}"}
        assert table.told("bot").manifest_sha256 == second
    await table.loader.settle()
    assert set(table.engine.held) == {f"bot@{second[:12]}"}
    assert (Path(table.spec.adapters_dir) / first).is_dir()


async def test_a_rollback_downloads_nothing(table: Table) -> None:
    first = table.publish("bot")
    table.want(table.item("bot", first))
    await table.go()
    second = table.publish("bot", adapter_files(fill=2))
    table.want(table.item("bot", second))
    await table.go()
    shutil.rmtree(table.place("bot"))
    table.want(table.item("bot", first))
    await table.go()
    assert table.answers("bot") == f"bot@{first[:12]}"


async def test_an_update_that_fails_leaves_the_old_version_served_and_says_why(table: Table) -> None:
    first = table.publish("bot")
    table.want(table.item("bot", first))
    await table.go()
    second = table.publish("bot", adapter_files(fill=2))
    (table.place("bot") / "adapter_model.safetensors").write_bytes(adapter_files(fill=3)["adapter_model.safetensors"])
    table.want(table.item("bot", second))
    await table.go()
    told = table.told("bot")
    assert (told.state, told.manifest_sha256, told.wanted_sha256) == ("Served", first, second)
    assert told.reason == "AdapterCorrupt"
    assert told.message is not None
    assert told.message.startswith(f"update to {second[:12]}: ")
    assert "adapter_model.safetensors does not match the digest in its manifest" in told.message
    assert told.message.endswith(f"; still serving {first[:12]}")
    assert table.answers("bot") == f"bot@{first[:12]}"
    assert table.loader.ready()


async def test_what_is_removed_is_unknown_at_once_and_leaves_the_engine_then(table: Table) -> None:
    table.want(table.item("bot", table.publish("bot")), table.item("tone", table.publish("tone", adapter_files(5))))
    await table.go()
    used = table.routes.resolve("bot")
    table.want(table.item("tone", table.publish("tone", adapter_files(5))))
    with table.routes.using(used):
        await table.loader.step()
        assert table.answers("bot") == "404"
        assert len(table.engine.held) == 2
    await table.go()
    assert [name.partition("@")[0] for name in table.engine.held] == ["tone"]
    assert [each.name for each in table.loader.state().adapters] == ["tone"]


async def test_a_place_without_a_pin_is_followed_by_its_manifest_every_five_minutes(table: Table) -> None:
    first = table.publish("bot")
    table.want(table.item("bot"))
    await table.go()
    assert table.told("bot").manifest_sha256 == first
    second = table.publish("bot", adapter_files(fill=2))
    await table.go(steps=3)
    assert table.told("bot").manifest_sha256 == first
    table.clock.now += 300
    await table.go()
    assert table.told("bot").manifest_sha256 == second
    assert table.answers("bot") == f"bot@{second[:12]}"


async def test_a_place_without_a_pin_that_is_gone_is_told_and_goes_on_being_served(table: Table) -> None:
    first = table.publish("bot")
    table.want(table.item("bot"))
    await table.go()
    shutil.rmtree(table.place("bot"))
    table.clock.now += 300
    await table.go()
    told = table.told("bot")
    assert (told.state, told.manifest_sha256, told.reason) == ("Served", first, "AdapterMissing")
    table.publish("bot")
    table.clock.now += 60
    await table.go()
    assert table.told("bot").reason is None


async def test_one_adapter_may_go_by_two_names(table: Table) -> None:
    sha = table.publish("bot")
    table.want(table.item("bot", sha), table.item("again", sha, place="bot"))
    await table.go()
    assert table.answers("bot") == f"bot@{sha[:12]}"
    assert table.answers("again") == f"again@{sha[:12]}"


async def test_where_all_room_is_taken_an_update_has_one_more_for_a_moment(tmp_path: Path) -> None:
    table = Table(tmp_path, limit=2)
    first = [table.item(name, table.publish(name, adapter_files(at))) for at, name in enumerate("ab", 1)]
    table.want(*first)
    await table.go()
    second = [table.item(name, table.publish(name, adapter_files(at))) for at, name in enumerate("ab", 7)]
    table.want(*second)
    await table.go(steps=8)
    assert {each.manifest_sha256 for each in table.loader.state().adapters} == {i.manifest_sha256 for i in second}
    assert table.engine.highest == 3


async def test_what_the_operator_answers_is_taken_if_it_is_newer(table: Table) -> None:
    table.want()
    await table.go()
    item = table.item("bot", table.publish("bot"))
    table.loader.offer(Desired(revision=7, adapters=[item]))
    await table.go()
    assert table.answers("bot").startswith("bot@")
    table.loader.offer(Desired(revision=6, adapters=[]))
    table.want()  # revision 2, as a mounted ConfigMap that comes late
    await table.go()
    assert table.answers("bot").startswith("bot@")
    assert table.loader.state().revision == 7


async def test_a_list_that_cannot_be_read_leaves_what_is_served(table: Table) -> None:
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    Path(table.spec.desired_file).write_text('{"revision": 9, "adapters": [{"name": "x"}]}')
    await table.go()
    assert table.answers("bot").startswith("bot@")
    assert "adapters.0.uri: Field required" in str(table.loader.state().message)
    table.revision = 9
    table.want()
    await table.go()
    assert table.answers("bot") == "404"
    assert table.loader.state().message is None


async def test_an_adapter_added_to_a_ready_replica_does_not_make_it_unready(table: Table) -> None:
    table.want()
    await table.go()
    assert table.loader.ready()
    table.engine.gate = asyncio.Event()
    table.want(table.item("bot", table.publish("bot")))
    await table.loader.step()
    await asyncio.sleep(0.05)
    await table.loader.step()
    assert table.told("bot").state == "Loading"
    assert table.loader.ready()
    table.engine.gate.set()
    await table.loader.settle()


async def test_what_was_trained_on_a_quantised_base_is_served_and_said(table: Table) -> None:
    sha = table.publish("bot", quantization={"type": "NF4"})
    table.want(table.item("bot", sha))
    await table.go()
    told = table.told("bot")
    assert told.state == "Served"
    assert "trained on the base quantised (NF4)" in str(told.message)
    assert told.reason is None


async def test_content_whose_digest_begins_as_that_of_another_is_never_answered_for_it(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one digit in place of twelve such a pair is found at once; of twelve somebody has to look for it."""
    monkeypatch.setattr("tunery_api.serving.VERSION_DIGITS", 1)
    first = table.publish("bot")
    table.want(table.item("bot", first))
    await table.go()
    second = ""
    for fill in range(2, 200):
        second = table.publish("bot", adapter_files(fill=fill))
        if second[0] == first[0]:
            break
    assert second[0] == first[0]
    table.want(table.item("bot", second))
    await table.go()
    told = table.told("bot")
    assert (told.manifest_sha256, told.wanted_sha256, told.reason) == (first, second, "AdapterUnsupported")
    assert "begins as that of" in str(told.message)


async def test_a_list_that_is_no_file_is_told(table: Table) -> None:
    Path(table.spec.desired_file).mkdir()
    await table.go()
    assert "cannot be read: Is a directory" in str(table.loader.state().message)
    assert not table.loader.ready()


async def test_of_a_cold_adapter_whose_store_failed_nothing_is_told_once_it_answers(tmp_path: Path) -> None:
    down = True

    def opened(item: DesiredAdapter) -> StorePath:
        if down and item.name == "cold":
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "the storage does not answer")
        return open_file(item)

    table = Table(tmp_path, limit=1, opened=opened)
    table.want(table.item("bot", table.publish("bot")), table.item("cold", table.publish("cold", adapter_files(7))))
    await table.go(seconds=10)
    assert table.told("cold").reason == "StorageUnavailable"
    down = False
    await table.go(seconds=300)
    assert (table.told("cold").state, table.told("cold").reason) == ("Cold", None)

"""The loader: damaged, foreign, missing and poisonous adapters, storage that fails, an engine that refuses or dies."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunery_api.manifest import MANIFEST_NAME
from tunery_api.reasons import FailureReason
from tunery_api.runspec import MountedSecret
from tunery_api.serving import DesiredAdapter
from tunery_common.errors import TuneryError
from tunery_common.storage import Entry, OnBytes, Store, StorePath
from tunery_server.adapters.slot import LOOK_SECONDS
from tunery_server.adapters.source import opener

from kit.server.loader import BASE, Table, adapter_files, lora_shapes, open_file, safetensors

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


class Faults:
    """A folder as a store, with a hand on it: it counts, fails, or waits."""

    def __init__(self) -> None:
        self.down = False
        self.hangs = threading.Event()
        self.hanging: set[str] = set()
        self.downloads: list[str] = []
        self.once: list[bytes] = []
        self.manifests: list[Callable[[bytes], bytes]] = []
        """What is done to the next of them that are read."""

    def open(self, item: DesiredAdapter) -> StorePath:
        place = open_file(item)
        return StorePath(FaultyStore(place.store, self, item.name), place.prefix)  # type: ignore[arg-type]


class FaultyStore:
    """A store whose every answer goes through `faults`."""

    def __init__(self, store: Store, faults: Faults, name: str) -> None:
        self._store, self._faults, self._name = store, faults, name

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def _pass(self) -> None:
        if self._name in self._faults.hanging:
            self._faults.hangs.wait(20)
        if self._faults.down:
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "the storage does not answer")

    def head(self, key: str) -> Entry | None:
        self._pass()
        return self._store.head(key)

    def read_bytes(self, key: str) -> bytes:
        self._pass()
        return self._came(key, self._store.read_bytes(key))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self._came(key, self._store.read_range(key, start, length))

    def _came(self, key: str, data: bytes) -> bytes:
        changes = self._faults.manifests
        return changes.pop(0)(data) if key.endswith(MANIFEST_NAME) and changes else data

    def download(self, key: str, path: Path, progress: OnBytes | None = None) -> str:
        self._pass()
        self._faults.downloads.append(key)
        digest = self._store.download(key, path, progress)
        if key.endswith(WEIGHTS) and self._faults.once:
            return "0" * 64 if self._faults.once.pop() else digest
        return digest


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def other(data: bytes) -> bytes:
    """Change a manifest, each time to another one."""
    return data.replace(b"2026-11-27", secrets.token_hex(5).encode())


@pytest.fixture
def faults() -> Iterator[Faults]:
    made = Faults()
    yield made
    made.hangs.set()


async def test_content_that_does_not_match_is_fetched_once_more_and_then_failed_until_it_changes(
    tmp_path: Path, faults: Faults
) -> None:
    table = Table(tmp_path, opened=faults.open)
    sha = table.publish("bot")
    good = (table.place("bot") / WEIGHTS).read_bytes()
    (table.place("bot") / WEIGHTS).write_bytes(good[:-1] + b"x")
    table.want(table.item("bot", sha))
    await table.go(steps=20, seconds=10)
    told = table.told("bot")
    assert (told.state, told.reason, told.manifest_sha256, told.wanted_sha256) == (
        "Failed",
        "AdapterCorrupt",
        None,
        sha,
    )
    assert WEIGHTS in str(told.message)
    assert len([key for key in faults.downloads if key.endswith(WEIGHTS)]) == 2
    assert table.engine.did("load") == []
    assert table.loader.ready()
    await table.go(steps=2, seconds=300)
    assert len([key for key in faults.downloads if key.endswith(WEIGHTS)]) == 2, "nothing has changed there"
    (table.place("bot") / WEIGHTS).write_bytes(good)
    await table.go(steps=2, seconds=300)
    assert table.told("bot").state == "Served"


async def test_content_that_came_damaged_once_is_served(tmp_path: Path, faults: Faults) -> None:
    faults.once = [b"x"]
    table = Table(tmp_path, opened=faults.open)
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    assert table.told("bot").state == "Served"


@pytest.mark.parametrize("what", [MANIFEST_NAME, WEIGHTS])
async def test_content_that_came_damaged_twice_is_served_later_though_nothing_changes_in_its_store(
    tmp_path: Path, faults: Faults, what: str
) -> None:
    table = Table(tmp_path, opened=faults.open)
    faults.manifests, faults.once = ([cut] * 2, []) if what == MANIFEST_NAME else ([], [b"x"] * 2)
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    assert (table.told("bot").state, table.told("bot").reason) == ("Failed", "AdapterCorrupt")
    await table.go(steps=1, seconds=LOOK_SECONDS)
    assert (table.told("bot").state == "Served") == (what == MANIFEST_NAME), "what is small is read at every look"
    await table.go(steps=4, seconds=LOOK_SECONDS)
    assert table.told("bot").state == "Served"


async def test_what_is_published_is_looked_at_once_more_where_a_manifest_came_damaged(
    tmp_path: Path, faults: Faults
) -> None:
    table = Table(tmp_path, opened=faults.open)
    faults.manifests = [other]
    sha = table.publish("bot")
    table.want(table.item("bot"))
    await table.go()
    assert (table.told("bot").state, table.told("bot").manifest_sha256) == ("Served", sha)


@pytest.mark.parametrize(
    ("after", "reason", "words"),
    [
        (cut, "AdapterCorrupt", "manifest.json: the document: Invalid JSON"),
        (other, "StorageUnavailable", "is another at every look"),
    ],
)
async def test_a_manifest_that_is_damaged_again_and_again_is_told(
    tmp_path: Path, faults: Faults, after: Callable[[bytes], bytes], reason: str, words: str
) -> None:
    table = Table(tmp_path, opened=faults.open)
    sha = table.publish("bot")
    table.want(table.item("bot"))
    faults.manifests = [bytes, *[after, other] * 50]
    await table.go(steps=1, seconds=0)
    assert (table.told("bot").reason, words in str(table.told("bot").message)) == (reason, True)
    assert len(faults.manifests) >= 94, "six at a time, and then it waits"
    faults.manifests.clear()
    await table.go(steps=2, seconds=LOOK_SECONDS)
    assert (table.told("bot").state, table.told("bot").manifest_sha256) == ("Served", sha)


async def test_storage_that_is_down_is_tried_again_later_each_time_and_holds_readiness_for_two_minutes(
    tmp_path: Path, faults: Faults
) -> None:
    table = Table(tmp_path, opened=faults.open)
    faults.down = True
    table.want(table.item("bot", table.publish("bot")))
    await table.go(steps=30)
    told = table.told("bot")
    assert (told.state, told.reason) == ("Loading", "StorageUnavailable")
    assert table.answers("bot") == "StorageUnavailable"
    assert not table.loader.ready()
    await table.go(steps=10, seconds=10)
    assert table.loader.ready(), "the base model can be served all the while"
    faults.down = False
    await table.go(steps=1, seconds=60)
    await table.go(steps=1)
    assert table.told("bot").state == "Served"


async def test_a_store_that_hangs_holds_none_but_its_own_adapters(tmp_path: Path, faults: Faults) -> None:
    table = Table(tmp_path, opened=faults.open)
    faults.hanging = {"stuck"}
    stuck = table.item("stuck", table.publish("stuck", adapter_files(9)))
    table.want(stuck, table.item("bot", table.publish("bot")))
    await table.loader.start()
    for _ in range(100):
        await table.loader.step()
        await asyncio.sleep(0.01)
        if table.answers("bot").startswith("bot@"):
            break
    assert table.answers("bot").startswith("bot@")
    assert table.told("stuck").state == "Loading"
    table.want(table.item("bot", table.publish("bot")))
    await table.loader.step()
    assert table.answers("stuck") == "404"
    await table.loader.settle()


async def test_a_place_without_a_manifest_is_missing_until_somebody_publishes_there(table: Table) -> None:
    table.want(table.item("bot"))
    await table.go()
    told = table.told("bot")
    assert (told.state, told.reason) == ("Failed", "AdapterMissing")
    assert table.loader.ready()
    table.publish("bot")
    await table.go(steps=1, seconds=60)
    await table.go(steps=1)
    assert table.told("bot").state == "Served"


async def test_a_manifest_that_was_replaced_is_not_what_a_pin_asks_for(table: Table) -> None:
    first = table.publish("bot")
    table.publish("bot", adapter_files(fill=2))
    table.want(table.item("bot", first))
    await table.go()
    assert table.told("bot").reason == "AdapterCorrupt"
    assert f"not {first}" in str(table.told("bot").message)
    assert table.engine.did("load") == []


async def test_a_manifest_of_gigabytes_is_not_read(table: Table) -> None:
    table.publish("bot")
    with (table.place("bot") / MANIFEST_NAME).open("r+b") as file:
        file.truncate(1 << 33)
    table.want(table.item("bot"))
    await table.go()
    assert "which no manifest has" in str(table.told("bot").message)


@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [
        (adapter_files(use_dora=True), "AdapterUnsupported", "DoRA"),
        (adapter_files(rank=128), "RankTooHigh", "its rank is 128, engine.maxRank is 64"),
        (adapter_files(base_model_name_or_path="org/other"), "BaseMismatch", "trained on org/other"),
        (
            {**adapter_files(), WEIGHTS: safetensors(lora_shapes(width=16))},
            "BaseMismatch",
            "model.layers.0.mlp.down_proj gives 16 outputs, the base has 8",
        ),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b"x"}, "AdapterUnsupported", "no other format"),
        ({"config.json": b"{}", "model.safetensors": b"x"}, "AdapterUnsupported", "holds no adapter"),
    ],
)
async def test_what_does_not_fit_never_reaches_the_engine(
    table: Table, files: dict[str, bytes], reason: str, words: str
) -> None:
    other = table.publish("good", adapter_files(7))
    sha = table.publish("bot", files, served_name=None)
    table.want(table.item("bot", sha), table.item("good", other))
    await table.go()
    told = table.told("bot")
    assert (told.state, told.reason) == ("Failed", reason)
    assert words in str(told.message)
    assert table.engine.did("load") == [f"good@{other[:12]}"]
    assert table.loader.ready()
    assert table.answers("bot") == reason


async def test_the_engines_refusal_is_told_in_its_words_and_tried_again_every_five_minutes(table: Table) -> None:
    table.engine.refuse = lambda name: "no room on the device" if name.startswith("bot") else None
    table.want(table.item("bot", table.publish("bot")))
    await table.go(steps=20)
    told = table.told("bot")
    assert (told.state, told.reason) == ("Failed", "EngineRefused")
    assert told.message == "the engine refuses it: no room on the device"
    assert len(table.engine.did("load")) == 1
    assert table.loader.ready()
    await table.go(steps=1, seconds=300)
    assert len(table.engine.did("load")) == 2
    table.engine.refuse = lambda name: None
    table.engine.start(2)
    await table.go()
    assert table.told("bot").state == "Served", "another start of the engine is asked at once"


async def test_an_adapter_that_answers_as_the_base_is_unloaded_and_said(table: Table) -> None:
    table.engine.answer = lambda name: [-1.0, -2.0] if name == BASE or name.startswith("bot") else [-3.0, -2.0]
    table.want(table.item("bot", table.publish("bot")), table.item("tone", table.publish("tone", adapter_files(3))))
    await table.go(steps=10, seconds=60)
    told = table.told("bot")
    assert (told.state, told.reason) == ("Failed", "ProbeFailed")
    assert "exactly as the base model" in str(told.message)
    assert [name.partition("@")[0] for name in table.engine.held] == ["tone"]
    assert len([name for name in table.engine.did("probe") if name.startswith("bot")]) == 1
    assert table.engine.did("probe").count(BASE) == 1


async def test_an_adapter_whose_answers_are_no_numbers_is_unloaded_and_said(table: Table) -> None:
    table.engine.answer = lambda name: [-1.0, -2.0] if name == BASE else [None, -2.0]
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    assert table.told("bot").reason == "ProbeFailed"
    assert "1 of 2 log-probabilities" in str(table.told("bot").message)
    assert table.engine.held == {}


async def test_an_adapter_that_takes_the_engine_down_twice_is_left_out_and_the_rest_is_served(table: Table) -> None:
    table.engine.dies_of = lambda name: name.startswith("poison")
    items = [
        table.item(name, table.publish(name, adapter_files(at))) for at, name in enumerate(("a", "poison", "z"), 1)
    ]
    table.want(*items)
    for start in (2, 3, 4):
        await table.go()
        if table.engine.number is None:
            assert not table.loader.ready()
            assert table.answers("a") == "EngineFailed"
            assert table.loader.state().reason == "EngineFailed"
            table.engine.start(start)
    await table.go()
    assert [each.state for each in table.loader.state().adapters] == ["Served", "Failed", "Served"]
    told = table.told("poison")
    assert told.reason == "EngineFailed"
    assert "2 times" in str(told.message)
    assert len([name for name in table.engine.did("load") if name.startswith("poison")]) == 2
    assert table.loader.ready()
    table.new_gateway()
    await table.go()
    assert table.told("poison").reason == "EngineFailed", "another process of the gateway knows it, too"
    assert len([name for name in table.engine.did("load") if name.startswith("poison")]) == 2
    table.want(items[0], table.item("poison", table.publish("poison", adapter_files(40))), items[2])
    table.engine.dies_of = lambda name: False
    await table.go()
    assert table.told("poison").state == "Served", "another content is another thing"


async def test_an_adapter_that_kills_with_its_first_answer_is_left_out_too(table: Table) -> None:
    table.engine.dies_of = lambda name: name.startswith("probe:poison")
    table.want(table.item("poison", table.publish("poison")))
    for start in (2, 3):
        await table.go()
        assert table.engine.number is None
        table.engine.start(start)
    await table.go()
    assert table.told("poison").reason == "EngineFailed"
    assert table.engine.number == 3


async def test_an_engine_of_before_is_not_used(table: Table) -> None:
    table.engine.said = "0.31.9"
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    state = table.loader.state()
    assert state.reason == "EngineUnsupported"
    assert "vLLM 0.31.9; the oldest that is used is 0.32.0" in str(state.message)
    assert table.engine.did("load") == []
    assert not table.loader.ready()


async def test_a_secret_that_is_missing_is_named_with_its_keys_and_taken_once_it_is_there(
    table: Table, tmp_path: Path
) -> None:
    secret = MountedSecret(name="s3", path=str(tmp_path / "secret"), field="spec.adapterSecretRef")
    item = DesiredAdapter(name="bot", uri="s3://adapters/bot", source="LoRAJob/bot", manifest_sha256="0" * 64)
    with pytest.raises(TuneryError) as caught:
        opener(secret)(item)
    assert caught.value.reason is FailureReason.SECRET_NOT_FOUND
    assert "spec.adapterSecretRef: the Secret s3" in caught.value.message
    assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in caught.value.message
    table.new_gateway()
    (tmp_path / "secret").mkdir()
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        (tmp_path / "secret" / key).write_text("a-value-of-its-own")
    assert opener(secret)(item).uri == "s3://adapters/bot"

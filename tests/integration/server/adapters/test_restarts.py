"""The loader: engine and gateway that end, at any step of a load, and folders that were changed meanwhile."""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunery_api.manifest import Manifest
from tunery_common.storage import transfer
from tunery_server.adapters.loop import Loader, Ways
from tunery_server.engine import Engine
from tunery_server.routes import Routes

from kit.engine_process import EngineProcess, Kind
from kit.server.loader import BASE, Table, adapter_files, check_folder, open_file

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


async def served_two(table: Table) -> list[str]:
    shas = [table.publish(name, adapter_files(at)) for at, name in enumerate(("bot", "tone"), 1)]
    table.want(*(table.item(name, sha) for name, sha in zip(("bot", "tone"), shas, strict=True)))
    await table.go()
    return [f"bot@{shas[0][:12]}", f"tone@{shas[1][:12]}"]


async def test_an_engine_that_starts_anew_is_given_everything_from_the_disk_before_requests_come(table: Table) -> None:
    names = await served_two(table)
    shutil.rmtree(table.root / "published")
    table.engine.die()
    await table.go()
    assert table.answers("bot") == table.answers("tone") == "EngineFailed"
    assert not table.loader.ready()
    state = table.loader.state()
    assert (state.engine_ready, state.reason) == (False, "EngineFailed")
    assert {each.state for each in state.adapters} == {"Loading"}
    table.engine.start(2)
    await table.go()
    assert [table.answers("bot"), table.answers("tone")] == names
    assert table.loader.state().engine_restarts == 1
    assert table.engine.did("probe").count(BASE) == 2, "another start may compute otherwise"
    assert table.loader.ready()


async def test_an_engine_that_started_anew_between_two_looks_is_noticed(table: Table) -> None:
    names = await served_two(table)
    table.engine.start(2)
    await table.loader.step()
    assert table.answers("bot") != names[0]
    assert not table.loader.ready()
    await table.go()
    assert sorted(table.engine.held) == sorted(names)


async def test_an_engine_that_is_slow_to_say_how_it_is_is_not_taken_for_gone(table: Table) -> None:
    names = await served_two(table)
    table.engine.hangs = True
    await table.loader.step()
    await table.loader.step()
    assert table.answers("bot") == names[0]
    await table.loader.step()
    assert table.answers("bot") == "EngineFailed"
    table.engine.hangs = False
    loads = len(table.engine.did("load"))
    await table.go()
    assert table.answers("bot") == names[0]
    assert len(table.engine.did("load")) == loads, "it holds them still"
    assert table.loader.state().engine_restarts == 0


async def test_what_the_engine_lost_without_a_word_is_loaded_again(table: Table) -> None:
    names = await served_two(table)
    del table.engine.held[names[0]]
    await table.go(steps=3, seconds=11)
    assert sorted(table.engine.held) == sorted(names)
    assert table.answers("bot") == names[0]


async def test_a_gateway_that_starts_anew_takes_over_what_is_loaded_and_sends_strangers_away(table: Table) -> None:
    names = await served_two(table)
    table.engine.held["stranger@0123456789ab"] = "/adapters/x"
    shutil.rmtree(table.root / "published")
    table.engine.log.clear()
    table.new_gateway()
    await table.go()
    assert [table.answers("bot"), table.answers("tone")] == names
    assert sorted(table.engine.log) == [("probe", BASE), ("unload", "stranger@0123456789ab")]
    assert table.loader.ready()


async def test_a_gateway_that_starts_anew_goes_on_with_the_old_version_where_the_new_one_fails(table: Table) -> None:
    names = await served_two(table)
    broken = table.publish("bot", adapter_files(use_dora=True))
    table.want(table.item("bot", broken))
    await table.go()
    assert table.answers("bot") == names[0]
    table.new_gateway()
    await table.go()
    assert table.answers("bot") == names[0]
    assert table.told("bot").reason == "AdapterUnsupported"
    table.engine.start(2)
    await table.go()
    assert table.answers("bot") == names[0], "another start of the engine does, too"


async def test_a_folder_that_was_changed_while_no_gateway_was_there_is_not_trusted(table: Table) -> None:
    names = await served_two(table)
    sha = table.told("bot").manifest_sha256
    weights = Path(table.spec.adapters_dir, str(sha), WEIGHTS)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    table.new_gateway()
    await table.go(steps=6)
    assert ("unload", names[0]) in table.engine.log
    assert table.answers("bot") == names[0]
    check_folder(weights.parent)


async def test_a_version_that_had_not_answered_its_probe_is_not_taken_over(table: Table) -> None:
    sha = table.publish("bot")
    table.want(table.item("bot", sha))
    name = f"bot@{sha[:12]}"
    await table.loader.start()
    folder = Path(table.spec.adapters_dir, sha)
    shutil.copytree(table.place("bot"), folder, ignore=shutil.ignore_patterns("manifest.json"))
    shutil.copy(table.place("bot") / "manifest.json", Path(table.spec.adapters_dir, ".manifests", f"{sha}.json"))
    for path in folder.iterdir():
        path.chmod(0o644)
    table.engine.held[name] = str(folder)
    await table.go()
    assert table.answers("bot") == name
    assert table.engine.did("probe").count(name) == 1


@pytest.mark.slow
def test_a_kill_at_any_step_of_a_load_leaves_nothing_that_is_trusted_unseen(tmp_path: Path) -> None:
    table = Table(tmp_path)
    engine = EngineProcess(Kind.FAULTY, tmp_path, ["--served-model-name", BASE]).start()
    try:
        points = 0
        for point in range(1, 200):
            sha = table.publish("bot", adapter_files(fill=point % 250))
            table.want(table.item("bot", sha))
            status = in_child(lambda at=point: asyncio.run(serve(table, kill_at(at))))
            for folder in folders(table):
                check_folder(folder)
            assert in_child(lambda: asyncio.run(serve(table, None))) == 0
            assert {name for name in asyncio.run(engine.models()) if name != BASE} == {f"bot@{sha[:12]}"}
            assert not list(Path(table.spec.adapters_dir, ".drafts").iterdir())
            assert not Path(table.spec.adapters_dir, ".strikes.json").exists(), "the engine has never gone away"
            assert not Path(table.spec.adapters_dir, ".loading").exists()
            check_folder(Path(table.spec.adapters_dir, sha))
            if status == 0:
                break
            assert status == -signal.SIGKILL
            points += 1
        assert points > 20
    finally:
        engine.kill()


def folders(table: Table) -> Iterator[Path]:
    root = Path(table.spec.adapters_dir)
    return (path for path in root.glob("*") if re.fullmatch("[0-9a-f]{64}", path.name))


async def serve(table: Table, armed: Callable[[], None] | None) -> None:
    """Be a gateway until the adapter is served."""
    routes, engine = Routes(BASE), Engine(table.spec.engine_socket)
    loader = Loader(table.spec, routes, engine, Ways(open_file))
    if armed is not None:
        armed()
    await loader.start()
    wanted = json.loads(Path(table.spec.desired_file).read_text())["adapters"][0]["manifestSha256"]
    for _ in range(200):
        await loader.step()
        await loader.settle()
        if (
            routes.names() == [BASE, "bot"]
            and routes.resolve("bot").version == wanted[:12]
            and not loader.departures.tasks()
        ):
            break
        await asyncio.sleep(0.01)
    await loader.step()
    await loader.settle()
    assert routes.resolve("bot").version == wanted[:12]
    await engine.close()


def kill_at(point: int) -> Callable[[], None]:
    """Return what makes this process kill itself at its so manieth write to the disk or word with the engine."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def stepped(*arguments: Any, **more: Any) -> Any:
            step()
            return plain(*arguments, **more)

        setattr(owner, name, stepped)

    def arm() -> None:
        for owner, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "utime"), (os, "truncate")):
            before(owner, name)
        for name in ("write_bytes", "mkdir", "chmod", "unlink"):
            before(Path, name)
        before(shutil, "rmtree")
        plain = Engine._ask

        async def asked(self: Engine, *arguments: Any) -> bytes:
            step()
            found = await plain(self, *arguments)
            step()
            return found

        Engine._ask = asked  # type: ignore[method-assign]

    return arm


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own; return 0, or the negative signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        faulthandler.dump_traceback_later(20, exit=True)
        transfer._streams.cache_clear()  # its threads are not of this process
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_manifest_of_a_version_is_what_its_folder_is_called_by(tmp_path: Path) -> None:
    table = Table(tmp_path)
    sha = table.publish("bot")
    table.want(table.item("bot", sha))
    asyncio.run(table.go())
    stored = Path(table.spec.adapters_dir, ".manifests", f"{sha}.json").read_bytes()
    assert hashlib.sha256(stored).hexdigest() == sha
    assert set(Manifest.model_validate_json(stored).files) == {"adapter_config.json", WEIGHTS}

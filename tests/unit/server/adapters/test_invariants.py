"""The loader's invariants under any order of additions, updates, faults, and ends of engine and gateway."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tunery_server.routes import Asleep, NotServed, UnknownModel

from kit.server.loader import BASE, Files, Table, adapter_files, check_folder

NAMES = ("a", "b", "c", "d")
FILLS = st.integers(1, 6)
LIMIT = 2


def own_files(name: str, fill: int) -> Files:
    """Return what no other name has: a content that ends the engine is left out under every name."""
    return adapter_files(fill + 10 * NAMES.index(name))


class LoaderMachine(RuleBasedStateMachine):
    """A replica with room for two, of four names."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="loader-"))
        self.runner = asyncio.Runner()
        self.table = Table(self.root, limit=LIMIT)
        self.wanted: dict[str, str] = {}
        self.published: dict[str, str] = {}
        self.starts = 1
        self.table.engine.dies_of = lambda name: name in self.poison
        self.poison: set[str] = set()
        self.refused: set[str] = set()
        self.kept: set[str] = set()
        self.looked = True
        """The loader has seen how the engine stands."""
        self.table.engine.refuse = lambda name: "no" if name in self.refused else None
        self.write()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()
            shutil.rmtree(self.root)

    def write(self) -> None:
        self.table.want(
            *(
                self.table.item(name, sha).model_copy(update={"keep_loaded": name in self.kept})
                for name, sha in self.wanted.items()
            )
        )

    @rule(name=st.sampled_from(NAMES), fill=FILLS)
    def want(self, name: str, fill: int) -> None:
        """Add an adapter, or update it."""
        self.wanted[name] = self.published[name] = self.table.publish(name, own_files(name, fill))
        self.write()

    @rule(name=st.sampled_from(NAMES))
    def drop(self, name: str) -> None:
        self.wanted.pop(name, None)
        self.write()

    @rule(name=st.sampled_from(NAMES))
    def damage(self, name: str) -> None:
        """Update to what does not match its digests."""
        self.wanted[name] = self.table.publish(name, own_files(name, 7))
        (self.table.place(name) / "adapter_model.safetensors").write_bytes(b"damaged")
        self.write()

    @rule(name=st.sampled_from(NAMES), kills=st.booleans())
    def refuse(self, name: str, kills: bool) -> None:
        if sha := self.wanted.get(name):
            (self.poison if kills else self.refused).add(f"{name}@{sha[:12]}")

    @rule(name=st.sampled_from(NAMES[1:]))
    def keep(self, name: str) -> None:
        """One of all may be kept loaded, so that there is a place for the others."""
        self.kept = {name} - self.kept
        self.write()

    @rule(name=st.sampled_from(NAMES), others=st.sets(st.sampled_from(NAMES)))
    def ask(self, name: str, others: set[str]) -> None:
        """Ask for one while others are being answered; it is answered by what the engine holds, or told why not."""
        self.runner.run(self._ask(name, others))

    async def _ask(self, name: str, others: set[str]) -> None:
        table = self.table
        if not table.started:
            return
        with ExitStack() as running:
            for other in others & set(table.routes.names()):
                with suppress(Asleep):
                    running.enter_context(table.routes.using(table.routes.resolve(other)))
            asking = asyncio.create_task(table.routes.find(name))
            for _ in range(100):
                if asking.done():
                    break
                await asyncio.sleep(0.002)
            if not asking.done():
                asking.cancel()
                running.close()
                await asyncio.wait([asking])
            elif asking.exception() is None:
                engine_name = asking.result().engine_name
                with table.routes.using(asking.result()):
                    assert engine_name in table.engine.held or not self.looked
            else:
                assert isinstance(asking.exception(), NotServed | UnknownModel)
        await table.loader.settle()

    @rule()
    def engine_ends(self) -> None:
        self.looked = False
        self.table.engine.die()

    @rule()
    def engine_starts(self) -> None:
        self.starts += 1
        self.looked = False
        self.table.engine.start(self.starts)

    @rule(name=st.sampled_from(NAMES))
    def engine_forgets(self, name: str) -> None:
        for held in list(self.table.engine.held):
            if held.startswith(f"{name}@"):
                del self.table.engine.held[held]
                self.looked = False
                self.table.clock.now += 11

    @rule(name=st.sampled_from(NAMES))
    def stranger(self, name: str) -> None:
        if self.table.engine.number is not None:
            self.table.engine.held[f"{name}@ffffffffffff"] = "/nowhere"
            self.table.clock.now += 11

    @rule()
    def gateway_ends(self) -> None:
        self.table.new_gateway()

    @rule(steps=st.integers(1, 3), seconds=st.sampled_from([1.0, 10.0, 300.0]))
    def pass_time(self, steps: int, seconds: float) -> None:
        self.runner.run(self.table.go(steps, seconds))
        self.looked = True

    @invariant()
    def what_is_routed_to_is_held_and_wanted(self) -> None:
        if not hasattr(self, "table") or not self.table.started:
            return
        engine, loader = self.table.engine, self.table.loader
        assert engine.highest <= LIMIT + 1 + len([n for n in engine.held if n.endswith("@ffffffffffff")])
        for held, path in engine.held.items():
            if not held.endswith("@ffffffffffff"):
                check_folder(Path(path))
        for each in loader.state().adapters:
            if each.state == "Served":
                assert self.table.answers(each.name) == f"{each.name}@{str(each.manifest_sha256)[:12]}"
        for name in set(self.table.routes.names()) - {BASE}:
            assert name in {each.name for each in loader.state().adapters}

    @rule()
    def comes_to_rest(self) -> None:
        """Whatever was: with the engine up and time enough, all that can be is served, and nothing else is held."""
        for _ in range(6):
            if self.table.engine.number is None:
                self.engine_starts()
            self.runner.run(self.table.go(4, 20.0))
        self.looked = True
        table = self.table
        told = {each.name: each for each in table.loader.state().adapters}
        assert list(told) == list(self.wanted)
        for name, sha in self.wanted.items():
            version = f"{name}@{sha[:12]}"
            whole = self.published.get(name) == sha
            if whole and version not in self.poison | self.refused:
                assert told[name].state in ("Served", "Cold"), told[name]
                assert told[name].manifest_sha256 == sha
                assert told[name].state == "Served" or name not in self.kept
            elif told[name].state == "Cold":  # what only a load tells is not known of it
                assert table.answers(name) == "Asleep"
            elif not (whole and told[name].manifest_sha256 == sha):  # it was served before the engine took against it
                reasons = {"AdapterCorrupt", "EngineRefused", "EngineFailed", "StorageUnavailable"}
                assert told[name].reason in reasons, told[name]
        assert table.loader.ready()
        served = {name for each in told if (name := table.answers(each)).startswith(f"{each}@")}
        assert len(served) == LIMIT or "Cold" not in {each.state for each in told.values()}
        assert set(table.engine.held) == served
        assert len(served) <= LIMIT


LoaderMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLoader = LoaderMachine.TestCase

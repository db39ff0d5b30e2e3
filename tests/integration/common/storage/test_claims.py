"""One run at a time publishes to a place, and files of others stay."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunIdentity
from tunery_common.errors import TuneryError
from tunery_common.storage import Store, StorePath
from tunery_common.storage.claims import CLAIM_NAME, read_claim
from tunery_common.storage.local import LocalStore
from tunery_common.storage.probe import probe
from tunery_common.storage.published_folder import verify
from tunery_common.storage.publisher import Published, Publisher, Target, publish, published_before

from kit.results import claim, lineage, make_folder, run


@pytest.mark.parametrize(("whose", "left"), [("uid-1", False), ("uid-2", True)], ids=["its-own", "another-run's"])
def test_a_claim_that_could_not_be_given_back_goes_with_the_rerun(
    store: Store, tmp_path: Path, whose: str, left: bool
) -> None:
    """The network broke right after the manifest: the rerun finds its result, and nothing else stays beside it."""
    target = Target(StorePath(store, "p"), run())
    done = publish(make_folder(tmp_path / "a"), target, lineage())
    store.put_bytes(f"p/{CLAIM_NAME}", claim(run(whose), renewed=time.time() - 60))
    assert published_before(target) == done
    assert (store.head(f"p/{CLAIM_NAME}") is not None) is left


def test_claim_of_a_living_run_is_heeded_and_of_a_dead_one_taken(store: Store, tmp_path: Path) -> None:
    folder, target = make_folder(tmp_path / "1"), Target(StorePath(store, "p"), run("uid-1"))
    store.put_bytes(f"p/{CLAIM_NAME}", claim(run("uid-2", "other"), renewed=time.time() - 60))
    for act in (lambda: publish(folder, target, lineage()), lambda: probe(target)):
        with pytest.raises(
            TuneryError, match=r"another run \(LoRAJob team-a/other, uid uid-2\) is publishing"
        ) as caught:
            act()
        assert caught.value.reason is FailureReason.OUTPUT_EXISTS
    store.put_bytes(f"p/{CLAIM_NAME}", claim(run("uid-2", "other"), renewed=time.time() - 7200))
    assert publish(folder, target, lineage()).manifest.run.uid == "uid-1"


def test_the_claim_of_an_earlier_object_of_the_same_name_is_taken(store: Store, tmp_path: Path) -> None:
    """The object was deleted during the upload and applied again; its earlier pod has ended."""
    old = Publisher(Target(StorePath(store, "p"), run("uid-1")))
    assert old.start() is None
    folder, target = make_folder(tmp_path / "1"), Target(StorePath(store, "p"), run("uid-2"))
    probe(target)
    assert publish(folder, target, lineage()).manifest.run.uid == "uid-2"


def test_who_lost_its_claim_writes_no_more(store: Store, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "1")
    old, new = (Publisher(Target(StorePath(store, "p"), run(uid))) for uid in ("uid-1", "uid-2"))
    assert old.start() is None
    assert new.start() is None
    with pytest.raises(TuneryError, match=r"another run \(LoRAJob team-a/support-bot, uid uid-2\) is publishing"):
        old.add(folder / "adapter_config.json", "adapter_config.json")
    other = Target(StorePath(store, "p"), run("uid-3").model_copy(update={"name": "other"}))
    with pytest.raises(TuneryError, match=r"ends at 20\d\d-.*removing all files there frees the place now") as caught:
        probe(other)
    assert caught.value.reason is FailureReason.OUTPUT_EXISTS


def test_a_run_whose_claim_was_removed_writes_over_nothing(store: Store, tmp_path: Path) -> None:
    """It hung while it sent a file: meanwhile the place was emptied, and another run published there."""
    target = Target(StorePath(store, "p"), run("uid-1"))
    late = Publisher(target)
    assert late.start() is None
    late.add(make_folder(tmp_path / "1", "1") / "adapter_config.json", "adapter_config.json")
    other: list[Published] = []

    def others_publish(_: int) -> None:
        if not other:
            for name in ("adapter_config.json", CLAIM_NAME):
                store.delete(f"p/{name}")
            place = StorePath(store, "p")
            other.append(publish(make_folder(tmp_path / "2", "2"), Target(place, run("uid-2", "other")), lineage()))

    with pytest.raises(TuneryError, match=r"adapter_model\.safetensors was written by another") as caught:
        late.add(tmp_path / "1" / "adapter_model.safetensors", "adapter_model.safetensors", others_publish)
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE, "the next attempt reports the owner"
    for act in (lambda: late.add(tmp_path / "1" / "adapter_config.json", "b.json"), lambda: late.finish(lineage())):
        with pytest.raises(TuneryError, match=r"tunery-claim\.json is gone"):
            act()
    assert verify(StorePath(store, "p")).sha256 == other[0].manifest_sha256
    with pytest.raises(TuneryError, match="already holds the result"):
        publish(tmp_path / "1", target, lineage())


RECORD = {"sha256": "0" * 64, "size": 1}
NAME = "adapter_model.safetensors"


def names(store: Store) -> list[str]:
    """Return the names of the files at `p`, without the claim, which folders hide anyway."""
    return [name for entry in store.list("p") if (name := entry.key.removeprefix("p/")) != CLAIM_NAME]


def claimed(store: Store) -> set[str] | None:
    """Return the names of the files in the claim at `p`; None where there is none."""
    found = read_claim(StorePath(store, "p"))
    return set(found.files) if found is not None else None


def refused(store: Store, by: RunIdentity | None = None) -> None:
    target = Target(StorePath(store, "p"), by or run("uid-2"))
    for act in (lambda: probe(target), lambda: Publisher(target).start()):
        with pytest.raises(TuneryError, match="holds files that Tunery did not publish") as caught:
            act()
        assert caught.value.reason is FailureReason.OUTPUT_EXISTS


def test_files_of_others_are_found_behind_however_many_nested_ones(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_common.storage.publisher._LIST_LIMIT", 2)
    for name in ("2024/1", "2024/2", "2024/3", "adapter_model.safetensors"):
        store.put_bytes(f"p/{name}", b"precious")
    refused(store)
    store.delete("p/adapter_model.safetensors")
    Publisher(Target(StorePath(store, "p"), run())).start()


def test_a_claim_frees_no_files_that_it_does_not_name(store: Store, tmp_path: Path) -> None:
    store.put_bytes("p/adapter_model.safetensors", b"precious")
    dead = claim(run("dead"), {"adapter_config.json": b"{}"}, renewed=0)
    store.put_bytes(f"p/{CLAIM_NAME}", dead)
    refused(store)
    store.delete("p/adapter_model.safetensors")
    publisher = Publisher(Target(StorePath(store, "p"), run()))
    publisher.start()
    folder = make_folder(tmp_path / "out")
    store.put_bytes("p/adapter_model.safetensors", b"precious")  # since the look at the start
    with pytest.raises(TuneryError, match=r"did not publish: adapter_model\.safetensors"):
        publisher.add(folder / "adapter_model.safetensors", "adapter_model.safetensors")
    assert store.read_bytes("p/adapter_model.safetensors") == b"precious"


@pytest.mark.parametrize("uid", ["uid-2", "uid-3"], ids=["the same run", "another run"])
def test_a_killed_overwrite_leaves_nothing_of_the_old_result(store: Store, tmp_path: Path, uid: str) -> None:
    old = make_folder(tmp_path / "1", "1", extra=("curve.jsonl",))
    publish(old, Target(StorePath(store, "p"), run("uid-1")), lineage())
    killed = Publisher(Target(StorePath(store, "p"), run("uid-2"), overwrite=True))
    killed.start()
    new = make_folder(tmp_path / "2", "2", extra=("half.json",))
    killed.add(new / "half.json", "half.json")
    assert "manifest.json" not in names(store)
    publish(make_folder(tmp_path / "3", "3"), Target(StorePath(store, "p"), run(uid), overwrite=True), lineage())
    assert names(store) == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]


def test_files_of_a_result_that_was_not_yet_replaced_stay_its_own(store: Store, tmp_path: Path) -> None:
    """The run that would have replaced it was killed, and the manifest was removed by hand."""
    place = StorePath(store, "p")
    publish(make_folder(tmp_path / "1", "1"), Target(place, run()), lineage())
    killed = Publisher(Target(place, run("uid-2", "other"), overwrite=True))
    killed.start()
    store.delete("p/manifest.json")
    for by in (run("uid-3"), run("uid-4", "other")):
        refused(store, by)


def test_leftovers_are_replaced_though_an_older_manifest_of_the_run_came_in_late(store: Store, tmp_path: Path) -> None:
    place = StorePath(store, "p")
    first, second = (make_folder(tmp_path / each, each) for each in ("1", "2"))
    publish(first, Target(place, run()), lineage())
    late = store.read_bytes("p/manifest.json")
    for entry in store.list("p"):
        store.delete(entry.key)
    killed = Publisher(Target(place, run()))
    killed.start()
    killed.add(second / NAME, NAME)
    store.put_bytes("p/manifest.json", late)
    done = publish(second, Target(place, run()), lineage())
    assert verify(place).sha256 == done.manifest_sha256


def fail(publisher: Publisher, folder: Path, *names: str, before_end: Callable[[], object] = lambda: None) -> None:
    def begin() -> None:
        with publisher:
            publisher.start()
            for name in names:
                publisher.add(folder / name, name)
            before_end()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        begin()


def test_a_failed_run_deletes_no_file_and_another_may_replace_its_own(store: Store, tmp_path: Path) -> None:
    folder, other = make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run("uid-2", "other"))
    fail(Publisher(Target(StorePath(store, "p"), run())), folder, "adapter_config.json")
    assert names(store) == ["adapter_config.json"]
    store.put_bytes("p/adapter_model.safetensors", b"precious")
    refused(store)
    store.delete("p/adapter_model.safetensors")
    done = publish(folder, other, lineage())
    assert names(store) == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    fail(Publisher(Target(StorePath(store, "p"), run(), overwrite=True)), folder)
    assert verify(StorePath(store, "p")).sha256 == done.manifest_sha256
    assert claimed(store) is None


def test_a_failed_run_leaves_the_claim_and_the_files_of_who_took_over(store: Store, tmp_path: Path) -> None:
    folder, place = make_folder(tmp_path / "out"), StorePath(store, "p")
    taken = claim(run("uid-2"), {"adapter_config.json": b"{}"})
    failed = Publisher(Target(place, run()))
    fail(failed, folder, "adapter_config.json", before_end=lambda: store.put_bytes(f"p/{CLAIM_NAME}", taken))
    assert store.read_bytes(f"p/{CLAIM_NAME}") == taken
    assert names(store) == ["adapter_config.json"]


def test_a_file_that_another_writes_during_the_upload_stays(store: Store, tmp_path: Path) -> None:
    folder, target = make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run())
    name = "adapter_model.safetensors"

    def write(sent: int) -> None:
        if sent > 1000:  # of that file, not of adapter_config.json
            store.put_bytes(f"p/{name}", b"precious")

    for progress in (write, None):
        with pytest.raises(TuneryError, match=rf"did not publish: {re.escape(name)}$") as caught:
            publish(folder, target, lineage(), progress)
        assert caught.value.reason is FailureReason.OUTPUT_EXISTS
        assert store.read_bytes(f"p/{name}") == b"precious"
    assert names(store) == ["adapter_config.json", name]
    assert claimed(store) == {"adapter_config.json"}


@pytest.mark.parametrize("uid", ["uid-1", "uid-2"], ids=["the same run", "another run"])
@pytest.mark.parametrize("content", [b"precious", b"x" * 199_999 + b"y"], ids=["another size", "the same size"])
def test_a_file_of_a_claimed_name_with_another_content_stays(
    store: Store, tmp_path: Path, uid: str, content: bytes
) -> None:
    """A run was killed after its claim had the file and before the upload; then another program wrote that file."""
    folder, place = make_folder(tmp_path / "out"), StorePath(store, "p")
    names_it = claim(run(), {NAME: (folder / NAME).read_bytes()}, renewed=0)
    store.put_bytes(f"p/{CLAIM_NAME}", names_it)
    store.put_bytes(f"p/{NAME}", content)
    with pytest.raises(TuneryError, match=rf"did not publish: {re.escape(NAME)}$") as caught:
        publish(folder, Target(place, run(uid)), lineage())
    assert caught.value.reason is FailureReason.OUTPUT_EXISTS
    assert store.read_bytes(f"p/{NAME}") == content
    done = publish(folder, Target(place, run(uid), overwrite=True), lineage())
    assert verify(place).sha256 == done.manifest_sha256


def test_a_file_that_comes_while_a_second_attempt_uploads_stays(store: Store, tmp_path: Path) -> None:
    folder, target = make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run())
    killed = Publisher(target)
    killed.start()
    killed.add(folder / NAME, NAME)

    def write(sent: int) -> None:
        if sent > 1000:
            store.put_bytes(f"p/{NAME}", b"precious")

    for progress in (write, None):
        with pytest.raises(TuneryError, match=rf"did not publish: {re.escape(NAME)}$"):
            publish(folder, target, lineage(), progress)
        assert store.read_bytes(f"p/{NAME}") == b"precious"


class Paused:
    """A store that calls a function once, just after the HEAD request of a file."""

    def __init__(self, store: Store, name: str, act: Callable[[], object]) -> None:
        self._store = store
        self._key = f"p/{name}"
        self._act: Callable[[], object] | None = act

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def head(self, key: str) -> object:
        found = self._store.head(key)
        if key == self._key and self._act is not None:
            act, self._act = self._act, None
            act()
        return found

    @property
    def place(self) -> StorePath:
        return StorePath(cast("Store", self), "p")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_hung_leaves_what_another_has_published_meanwhile(
    store: Store, tmp_path: Path, overwrite: bool
) -> None:
    folder, other = make_folder(tmp_path / "1", "1"), make_folder(tmp_path / "2", "2")
    killed = Publisher(Target(StorePath(store, "p"), run()))
    killed.start()
    killed.add(folder / NAME, NAME)
    done: list[Published] = []

    def others_publish() -> None:
        target = Target(StorePath(store, "p"), run("uid-2", "other"), overwrite=True)
        done.append(publish(other, target, lineage()))

    hung = Target(Paused(store, NAME, others_publish).place, run(), overwrite=overwrite)
    with pytest.raises(TuneryError, match=r"tunery-claim\.json is gone|was written by another run"):
        publish(folder, hung, lineage())
    assert verify(StorePath(store, "p")).sha256 == done[0].manifest_sha256


def test_an_earlier_attempt_that_lives_on_writes_no_more(store: Store, tmp_path: Path) -> None:
    """The pod of an unreachable node was deleted by force, and its process publishes on."""
    folder, target = make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run())
    lives_on, now = Publisher(target), Publisher(target)
    lives_on.start()
    lives_on.add(folder / "adapter_config.json", "adapter_config.json")
    now.start()
    for act in (lambda: lives_on.add(folder / NAME, NAME), lambda: lives_on.finish(lineage())):
        with pytest.raises(TuneryError, match="is of another attempt of this run") as caught:
            act()
        assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    for path in sorted(folder.iterdir()):
        now.add(path, path.name)
    done = now.finish(lineage())
    assert verify(StorePath(store, "p")).sha256 == done.manifest_sha256


def test_a_claim_of_two_days_ago_is_no_litter(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out", "file:///out", "spec.output.uri")
    folder, target = make_folder(tmp_path / "in"), Target(StorePath(store, "p"), run())
    killed = Publisher(target)
    killed.start()
    killed.add(folder / NAME, NAME)
    for name in (CLAIM_NAME, NAME):
        os.utime(tmp_path / "out" / "p" / name, (1, 1))
    assert publish(folder, target, lineage()).manifest.run == run()


def test_an_upload_whose_answer_was_lost_is_found_whole(store: Store, tmp_path: Path) -> None:
    """A retry of the same request finds the file of the first one."""
    folder, target = make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run())
    content = (folder / "adapter_model.safetensors").read_bytes()

    def write(sent: int) -> None:
        if sent > 1000:
            store.put_bytes("p/adapter_model.safetensors", content)

    done = publish(folder, target, lineage(), write)
    assert verify(StorePath(store, "p")).sha256 == done.manifest_sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"renewed": 1e300},
        {"renewed": math.nan},
        {"renewed": -1},
        {"files": {"../../x": RECORD}},
        {"files": {"/etc/x": RECORD}},
        {"files": {"manifest.json": RECORD}},
        {"files": {"x": {}}},
        {"files": ["x"]},
        {"uid": None},
    ],
    ids=str,
)
def test_a_claim_that_no_run_can_have_written_is_ignored(
    store: Store, tmp_path: Path, changes: dict[str, object]
) -> None:
    store.put_bytes("x", b"precious")
    made_up = json.loads(claim(run("uid-2", "other"))) | changes
    store.put_bytes(f"a/p/{CLAIM_NAME}", json.dumps(made_up).encode())
    publish(make_folder(tmp_path / "out"), Target(StorePath(store, "a/p"), run()), lineage())
    assert [entry.key for entry in store.list("a/p")] == [
        "a/p/adapter_config.json",
        "a/p/adapter_model.safetensors",
        "a/p/manifest.json",
    ]
    assert store.read_bytes("x") == b"precious"


def test_files_of_others_are_not_overwritten_unasked(store: Store, tmp_path: Path) -> None:
    """An adapter made elsewhere has no manifest.json; a folder below the place is no part of it."""
    folder, target = make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run())
    store.put_bytes("p/elsewhere/adapter_config.json", b"{}")
    store.put_bytes("p/.tunery-probe-1", b"of a preflight that was killed")
    probe(target)
    store.put_bytes("p/adapter_config.json", b"{}")
    for act in (lambda: probe(target), lambda: publish(folder, target, lineage())):
        with pytest.raises(
            TuneryError, match=r"holds files that Tunery did not publish: adapter_config\.json$"
        ) as caught:
            act()
        assert caught.value.reason is FailureReason.OUTPUT_EXISTS
    assert store.read_bytes("p/adapter_config.json") == b"{}"
    publish(folder, dataclasses.replace(target, overwrite=True), lineage())
    assert store.head("p/elsewhere/adapter_config.json")

"""Succeeded means: the manifest was read back and every digest in it matches."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from tunery_api.manifest import Manifest, StopRecord
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import ObjectExists, Store, StorePath, open_store
from tunery_common.storage.claims import CLAIM_NAME
from tunery_common.storage.probe import probe
from tunery_common.storage.published_folder import download_published, read_manifest, verify
from tunery_common.storage.publisher import Published, Publisher, Target, publish, published_before

from kit.results import claim, lineage, make_folder, run
from kit.s3 import credentials
from tools.cluster.s3 import S3Server


def test_published_folder_is_whole_and_says_how_it_came_to_be(store: Store, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", extra=("README.md", "runs/events", "training_args.bin", "optimizer.pt"))
    done = publish(folder, Target(StorePath(store, "a/bot"), run()), lineage())
    names = [entry.key.removeprefix("a/bot/") for entry in store.list("a/bot")]
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "runs/events"]
    assert names == sorted([*files, "manifest.json"])
    stored = store.read_bytes("a/bot/manifest.json")
    assert done.manifest_sha256 == hashlib.sha256(stored).hexdigest()
    assert done.size_bytes == sum((folder / name).stat().st_size for name in files)
    document = json.loads(stored)
    assert document["run"] == {"kind": "LoRAJob", "namespace": "team-a", "name": "support-bot", "uid": "uid-1"}
    assert document["lineage"]["metrics"] == {"evalLoss": 1.25}
    for name in files:
        content = store.read_bytes(f"a/bot/{name}")
        expected = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        assert document["files"][name] == expected
    assert verify(StorePath(store, "a/bot"), done.manifest_sha256).manifest == done.manifest == Manifest(**document)


def test_one_of_eight_racing_runs_wins_and_its_files_are_all_its_own(store: Store, tmp_path: Path) -> None:
    def attempt(number: int) -> Published | None:
        folder = make_folder(tmp_path / f"out-{number}", str(number))
        try:
            return publish(folder, Target(StorePath(store, "race"), run(f"uid-{number}", f"bot-{number}")), lineage())
        except TuneryError as error:
            if error.reason is not FailureReason.OUTPUT_EXISTS:
                raise
            return None

    with ThreadPoolExecutor(8) as pool:
        winners = [done for done in pool.map(attempt, range(8)) if done is not None]
    assert len(winners) == 1
    assert verify(StorePath(store, "race"), winners[0].manifest_sha256).manifest.run == winners[0].manifest.run


def test_another_runs_result_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    first = publish(make_folder(tmp_path / "1", "1"), Target(StorePath(store, "p"), run("uid-1")), lineage())
    with pytest.raises(TuneryError, match=r"spec\.output\.uri.*already holds.*team-a/support-bot") as caught:
        publish(make_folder(tmp_path / "2", "2"), Target(StorePath(store, "p"), run("uid-2")), lineage())
    assert caught.value.reason is FailureReason.OUTPUT_EXISTS
    assert verify(StorePath(store, "p")).sha256 == first.manifest_sha256


def test_overwrite_replaces_all_of_the_old_result(store: Store, tmp_path: Path) -> None:
    publish(
        make_folder(tmp_path / "1", "1", extra=("old.json",)), Target(StorePath(store, "p"), run("uid-1")), lineage()
    )
    done = publish(
        make_folder(tmp_path / "2", "2"), Target(StorePath(store, "p"), run("uid-2"), overwrite=True), lineage()
    )
    assert verify(StorePath(store, "p")).sha256 == done.manifest_sha256
    assert done.manifest.run.uid == "uid-2"
    assert store.head("p/old.json") is None


def test_while_it_is_overwritten_there_is_no_manifest(store: Store, tmp_path: Path) -> None:
    publish(make_folder(tmp_path / "1", "1"), Target(StorePath(store, "p"), run("uid-1")), lineage())
    seen = []
    target = Target(StorePath(store, "p"), run("uid-2"), overwrite=True)
    publish(make_folder(tmp_path / "2", "2"), target, lineage(), lambda _: seen.append(store.head("p/manifest.json")))
    assert seen
    assert set(seen) == {None}


def test_rerun_of_the_same_run_is_a_success(store: Store, tmp_path: Path) -> None:
    folder, target = make_folder(tmp_path / "1"), Target(StorePath(store, "p"), run())
    first = publish(folder, target, lineage())
    store.put_bytes(f"p/{CLAIM_NAME}", b"left behind by a crash right after the manifest")
    again = publish(folder, target, lineage())
    assert again.manifest_sha256 == first.manifest_sha256
    assert store.head(f"p/{CLAIM_NAME}") is None
    assert probe(target).conditional_writes


def test_what_was_published_of_a_stop_gives_way_to_the_run_that_goes_on(store: Store, tmp_path: Path) -> None:
    place = StorePath(store, "a/bot")
    record = StopRecord(after_step=40, of_steps=100, why="enough")
    stopped = publish(
        make_folder(tmp_path / "one"), Target(place, run()), lineage().model_copy(update={"stopped": record})
    )
    assert published_before(Target(place, run())) == stopped, "who only publishes it again finds it"
    for beyond in (0, 40):
        assert (
            publish(make_folder(tmp_path / f"two-{beyond}", "2"), Target(place, run(), beyond=beyond), lineage())
            == stopped
        )
    assert published_before(Target(place, run(), beyond=41)) is None, "a later stop has come further"
    goes_on = Target(place, run(), beyond=math.inf)
    assert published_before(goes_on) is None
    whole = publish(make_folder(tmp_path / "three", "3"), goes_on, lineage())
    assert whole.manifest.lineage.stopped is None
    assert verify(place).sha256 == whole.manifest_sha256
    assert published_before(goes_on) == whole, "its own result stays"
    assert published_before(Target(place, run("uid-2"), beyond=math.inf)) is None


def test_rerun_repairs_its_own_damaged_result(store: Store, tmp_path: Path) -> None:
    folder, target = make_folder(tmp_path / "1"), Target(StorePath(store, "p"), run())
    publish(folder, target, lineage())
    store.delete("p/adapter_model.safetensors")
    done = publish(folder, target, lineage())
    assert verify(StorePath(store, "p")).sha256 == done.manifest_sha256


def test_a_run_that_ends_before_its_first_file_takes_nothing_away(store: Store, tmp_path: Path) -> None:
    first = publish(make_folder(tmp_path / "1", "1"), Target(StorePath(store, "p"), run("uid-1")), lineage())
    assert Publisher(Target(StorePath(store, "p"), run("uid-2"), overwrite=True)).start() is None
    assert verify(StorePath(store, "p")).sha256 == first.manifest_sha256


KILLED = """
import os, sys
from pathlib import Path
from tunery_common.storage.publisher import Target, publish
from tunery_common.storage import open_store
from kit.results import claim, lineage, run
from tunery_common.storage.credentials import Credentials
import json
values = json.load(sys.stdin)
output = open_store(sys.argv[1], Credentials("test", values), "spec.output.uri")
left = int(sys.argv[3])
def stop(count):
    global left
    left -= 1
    if left <= 0:
        os.kill(os.getpid(), 9)
publish(Path(sys.argv[2]), Target(output, run()), lineage(), stop)
"""


@pytest.mark.slow(only=["1", "3"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_killed_upload_leaves_no_manifest_and_a_retry_succeeds(
    s3_server: S3Server, bucket: str, s3_store: Store, tmp_path: Path, after: int
) -> None:
    folder = make_folder(tmp_path / "out", extra=("z.json",))
    uri = f"s3://{bucket}/killed"
    command = [sys.executable, "-c", KILLED, uri, str(folder), str(after)]
    tests = Path(__file__).parents[3]
    ended = subprocess.run(command, input=json.dumps(credentials(s3_server).values).encode(), cwd=tests, timeout=120)
    assert ended.returncode == -9
    with pytest.raises(TuneryError) as caught:
        read_manifest(StorePath(s3_store, "killed"))
    assert caught.value.reason is FailureReason.ADAPTER_MISSING
    publish(folder, Target(StorePath(s3_store, "killed"), run()), lineage())
    assert len(verify(StorePath(s3_store, "killed")).manifest.files) == 3


def test_read_back_finds_what_was_damaged_on_the_way(store: Store, tmp_path: Path) -> None:
    """A fault of storage that a sound server cannot be made to have: bytes change after they were accepted."""
    folder = make_folder(tmp_path / "out")

    class Damaging:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def put_bytes(self, key: str, data: bytes, *, if_none_match: bool = False) -> object:
            if key.endswith("manifest.json"):
                store.put_bytes("p/adapter_model.safetensors", b"y" * 200_000)
            return store.put_bytes(key, data, if_none_match=if_none_match)

    with pytest.raises(TuneryError, match=r"adapter_model\.safetensors does not match.* a moment ago") as caught:
        publish(folder, Target(StorePath(Damaging(), "p"), run()), lineage())  # type: ignore[arg-type]
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE, "another attempt is worth it"
    target = Target(StorePath(store, "p"), run())
    with pytest.raises(TuneryError, match=r"did not publish: adapter_model\.safetensors"):
        publish(folder, target, lineage())  # another program may have written it
    publish(folder, dataclasses.replace(target, overwrite=True), lineage())
    assert len(verify(StorePath(store, "p")).manifest.files) == 2


class Late:
    """A store in which a manifest that an earlier attempt had sent comes in, the given number of times.

    Its process is gone, and the network or a proxy has its PUT still.
    """

    def __init__(self, store: Store, *, comes: int, before: bool) -> None:
        self._store = store
        self._comes = comes
        self._before = before
        self._late = json.dumps(json.loads(store.read_bytes("p/manifest.json")) | {"created": "2026-11-29T00:00:00Z"})

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def put_bytes(self, key: str, data: bytes, *, if_none_match: bool = False) -> object:
        if key.endswith("manifest.json") and self._before:
            self._come(if_none_match=False)
        done = self._store.put_bytes(key, data, if_none_match=if_none_match)
        if key.endswith("manifest.json") and not self._before:
            self._come(if_none_match=if_none_match)
        return done

    @property
    def place(self) -> StorePath:
        """A place in it; what it does not do itself its store does."""
        return StorePath(cast("Store", self), "p")

    def _come(self, *, if_none_match: bool) -> None:
        self._comes -= 1
        if self._comes >= 0:
            with contextlib.suppress(ObjectExists):
                self._store.put_bytes("p/manifest.json", self._late.encode(), if_none_match=if_none_match)


def unfinished(store: Store) -> None:
    """Make of a result what an attempt leaves that died before its manifest."""
    store.delete("p/manifest.json")
    files = {entry.key.removeprefix("p/"): store.read_bytes(entry.key) for entry in store.list("p")}
    store.put_bytes(f"p/{CLAIM_NAME}", claim(run(), files))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("before", [True, False])
def test_a_manifest_that_comes_in_late_replaces_no_newer_one_of_its_run(
    store: Store, tmp_path: Path, overwrite: bool, before: bool
) -> None:
    folder, target = make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run(), overwrite=overwrite)
    publish(folder, target, lineage())
    late = Late(store, comes=1, before=before)
    store.put_bytes("p/adapter_config.json", b"of the earlier attempt, too")
    unfinished(store)
    done = publish(folder, dataclasses.replace(target, place=late.place), lineage())
    assert verify(StorePath(store, "p")).sha256 == done.manifest_sha256
    assert not store.list(f"p/{CLAIM_NAME}")


def test_where_it_comes_in_again_and_again_another_attempt_is_worth_it(store: Store, tmp_path: Path) -> None:
    folder, target = make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run())
    publish(folder, target, lineage())
    late = Late(store, comes=2, before=True)
    unfinished(store)
    with pytest.raises(TuneryError, match=r"manifest\.json is not this run's, though it was written") as caught:
        publish(folder, dataclasses.replace(target, place=late.place), lineage())
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    assert publish(folder, target, lineage()).manifest.run == run()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda store: store.delete("p/adapter_config.json"), "adapter_config.json is missing"),
        (lambda store: store.put_bytes("p/adapter_config.json", b"short"), "has 5 bytes, its manifest says 10"),
        (lambda store: store.put_bytes("p/adapter_config.json", b'{"c": "y"}'), "does not match the digest"),
        (lambda store: store.put_bytes("p/manifest.json", b"{}"), "manifest.json: created"),
        (lambda store: store.put_bytes("p/manifest.json", b"\xff{"), "manifest.json"),
    ],
    ids=["missing", "truncated", "tampered", "empty-manifest", "no-json"],
)
def test_readers_refuse_a_damaged_result(
    store: Store, tmp_path: Path, damage: Callable[[Store], None], says: str
) -> None:
    publish(make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run()), lineage())
    damage(store)
    with pytest.raises(TuneryError, match=says) as verifying:
        verify(StorePath(store, "p"))
    with pytest.raises(TuneryError, match=says) as downloading:
        download_published(StorePath(store, "p"), tmp_path / "in")
    assert verifying.value.reason is downloading.value.reason is FailureReason.ADAPTER_CORRUPT


def test_manifest_other_than_the_one_vouched_for_is_refused(store: Store, tmp_path: Path) -> None:
    publish(make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run()), lineage())
    with pytest.raises(TuneryError, match="was replaced") as caught:
        verify(StorePath(store, "p"), "0" * 64)
    assert caught.value.reason is FailureReason.ADAPTER_CORRUPT


def test_manifest_cannot_name_files_outside_the_prefix(store: Store, tmp_path: Path) -> None:
    done = publish(make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run()), lineage())
    evil = done.manifest.to_json().replace(b'"adapter_config.json"', b'"../../adapter_config.json"')
    store.put_bytes("p/manifest.json", evil)
    with pytest.raises(TuneryError, match="not a plain relative path") as caught:
        download_published(StorePath(store, "p"), tmp_path / "in" / "deep")
    assert caught.value.reason is FailureReason.ADAPTER_CORRUPT


def test_downloaded_result_is_the_published_one(store: Store, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", extra=("sub/x.json",))
    publish(folder, Target(StorePath(store, "p"), run()), lineage())
    download_published(StorePath(store, "p"), tmp_path / "in")
    for path in folder.rglob("*.*"):
        assert (tmp_path / "in" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_probe_leaves_nothing_behind(store: Store) -> None:
    assert probe(Target(StorePath(store, "p"), run())).conditional_writes
    assert store.list("p") == []


@pytest.mark.slow
def test_probe_with_read_only_credentials_names_action_and_place(s3_server: S3Server, bucket: str) -> None:
    store, prefix = open_store(f"s3://{bucket}/out", credentials(s3_server, s3_server.reader), "spec.output.uri")
    with pytest.raises(TuneryError) as caught:
        probe(Target(StorePath(store, prefix), run()))
    assert caught.value.reason is FailureReason.STORAGE_ACCESS_DENIED
    assert f"spec.output.uri: s3://{bucket}/out/" in caught.value.message
    assert "s3:PutObject was denied" in caught.value.message
    assert "the Secret s3" in caught.value.message
    assert s3_server.reader.secret_key not in caught.value.message


def test_foreign_manifest_is_not_overwritten_unasked(store: Store, tmp_path: Path) -> None:
    store.put_bytes("p/manifest.json", b'{"name": "a web app"}')
    with pytest.raises(TuneryError, match="not Tunery's") as caught:
        probe(Target(StorePath(store, "p"), run()))
    assert caught.value.reason is FailureReason.OUTPUT_EXISTS
    publish(make_folder(tmp_path / "out"), Target(StorePath(store, "p"), run(), overwrite=True), lineage())
    verify(StorePath(store, "p"))

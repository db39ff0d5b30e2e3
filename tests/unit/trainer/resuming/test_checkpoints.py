"""Only complete checkpoints are resumed from; training never waits for an upload; the newest wins."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import OnBytes, Store, StorePath
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.resuming.checkpoints import (
    CheckpointUploader,
    complete_checkpoints,
    latest_complete,
    probe_checkpoints,
    remove_checkpoints,
    restore,
)
from tunery_trainer.resuming.kept import settle_checkpoints

from kit.training import spec_of


def _checkpoint(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(f"{step}".encode() * 50_000)
    (made / "optimizer.pt").write_bytes(b"o" * 1000)
    (made / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    (made / "training_args.bin").write_bytes(b"pickle")
    return made


def _store_steps(store: Store, folder: Path, *steps: int, keep: int = 2) -> None:
    uploader = CheckpointUploader(StorePath(store, "ck"), folder / "scratch", keep)
    for step in steps:
        uploader.submit(_checkpoint(folder, step), step)
        _until_stored(uploader, step)
    assert uploader.close(30)


def _until_stored(uploader: CheckpointUploader, step: int) -> None:
    deadline = time.monotonic() + 30
    while uploader.last_stored != step and time.monotonic() < deadline:
        time.sleep(0.01)


class Gate:
    """Holds every upload until it is opened: a network as slow as a test needs it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.entered = threading.Event()
        self.open = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def upload_file(self, path: Path, key: str, progress: OnBytes | None = None) -> str:
        self.entered.set()
        assert self.open.wait(30)
        return self.store.upload_file(path, key, progress)


class Heard:
    """What an uploader tells."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, int]] = []
        self.failed: list[str] = []

    def checkpoint(self, uri: str, step: int) -> None:
        self.stored.append((uri, step))

    def checkpoint_failed(self, message: str) -> None:
        self.failed.append(message)


def test_stored_checkpoint_comes_back(store: Store, tmp_path: Path) -> None:
    heard = Heard()
    uploader = CheckpointUploader(StorePath(store, "ck"), tmp_path / "scratch", heard=heard)
    made = _checkpoint(tmp_path, 200)
    uploader.submit(made, 200)
    shutil.rmtree(made)  # as the trainer's own rotation does
    assert uploader.close(30)
    assert (heard.stored, heard.failed) == ([(store.uri("ck/step-000200"), 200)], [])
    restored = restore(StorePath(store, "ck"), tmp_path / "resume")
    assert restored is not None
    assert (restored.step, restored.folder.name) == (200, "checkpoint-200")
    assert sorted(path.name for path in restored.folder.iterdir()) == [
        "adapter_model.safetensors",
        "optimizer.pt",
        "trainer_state.json",
    ]
    assert (restored.folder / "adapter_model.safetensors").read_bytes() == b"200" * 50_000
    assert not any((tmp_path / "scratch").iterdir())


def test_nothing_stored_is_no_error(store: Store, tmp_path: Path) -> None:
    assert latest_complete(StorePath(store, "ck")) is None
    assert restore(StorePath(store, "ck"), tmp_path) is None


def test_older_ones_are_pruned_and_the_newest_kept(store: Store, tmp_path: Path) -> None:
    store.put_bytes("ck/step-000050/adapter_model.safetensors", b"half-written")
    for other in ("notes.txt", "notes/readme.txt"):
        store.put_bytes(f"ck/{other}", b"not ours")
    _store_steps(store, tmp_path, 100, 200, 300)
    assert [checkpoint.step for checkpoint in complete_checkpoints(StorePath(store, "ck"))] == [300, 200]
    folders = {entry.key.split("/")[1] for entry in store.list("ck")}
    assert folders == {"step-000200", "step-000300", "notes.txt", "notes"}


def test_half_written_one_is_ignored(store: Store, tmp_path: Path) -> None:
    _store_steps(store, tmp_path, 100)
    for entry in store.list("ck/step-000100"):
        if not entry.key.endswith("complete.json"):
            store.put_bytes(entry.key.replace("000100", "000200"), b"half")
    restored = restore(StorePath(store, "ck"), tmp_path / "resume")
    assert restored is not None
    assert restored.step == 100


@pytest.mark.parametrize("how", ["tampered", "missing", "bad-marker"])
def test_damaged_one_is_passed_over_with_a_warning(
    store: Store, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    _store_steps(store, tmp_path, 100, 200)
    if how == "tampered":
        store.put_bytes("ck/step-000200/optimizer.pt", b"x" * 1000)
    elif how == "missing":
        store.delete("ck/step-000200/optimizer.pt")
    else:
        store.put_bytes("ck/step-000200/complete.json", b'{"step": 200')
    restored = restore(StorePath(store, "ck"), tmp_path / "resume")
    assert restored is not None
    assert restored.step == 100
    said = "complete.json cannot be read" if how == "bad-marker" else "the checkpoint of step 200 was passed over: "
    assert [said in record.message for record in caplog.records] == [True]
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["checkpoint-100"]


def test_training_never_waits_and_the_newest_wins(local_store: Store, tmp_path: Path) -> None:
    gate = Gate(local_store)
    uploader = CheckpointUploader(StorePath(gate, "ck"), tmp_path / "scratch", keep=5)  # type: ignore[arg-type]
    uploader.submit(_checkpoint(tmp_path, 1), 1)
    assert gate.entered.wait(10)
    started = time.monotonic()
    for step in (2, 3, 4):
        uploader.submit(_checkpoint(tmp_path, step), step)
    assert time.monotonic() - started < 1
    gate.open.set()
    assert uploader.close(30)
    assert [checkpoint.step for checkpoint in complete_checkpoints(StorePath(local_store, "ck"))] == [4, 1]


def test_failed_upload_does_not_end_training(local_store: Store, tmp_path: Path) -> None:
    class Down(Gate):
        def upload_file(self, path: Path, key: str, progress: OnBytes | None = None) -> str:
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "gone")

    heard, place = Heard(), StorePath(Down(local_store), "ck")  # type: ignore[arg-type]
    uploader = CheckpointUploader(place, tmp_path / "scratch", heard=heard)
    uploader.submit(_checkpoint(tmp_path, 1), 1)
    assert not uploader.close(30)
    assert (heard.stored, heard.failed) == ([], ["the checkpoint of step 1 was not stored: gone"])
    assert uploader.error is not None
    assert uploader.error.reason is FailureReason.STORAGE_UNAVAILABLE
    assert latest_complete(StorePath(local_store, "ck")) is None


def test_a_checkpoint_is_stored_though_older_ones_cannot_be_removed(local_store: Store, tmp_path: Path) -> None:
    class Kept(Gate):
        def delete(self, key: str) -> None:
            if "step-000001" in key and local_store.head("ck/step-000002/complete.json"):
                raise TuneryError(FailureReason.STORAGE_ACCESS_DENIED, "no right to delete")
            self.store.delete(key)

        def upload_file(self, path: Path, key: str, progress: OnBytes | None = None) -> str:
            return self.store.upload_file(path, key, progress)

    heard, place = Heard(), StorePath(Kept(local_store), "ck")  # type: ignore[arg-type]
    uploader = CheckpointUploader(place, tmp_path / "scratch", keep=1, heard=heard)
    for step in (1, 2):
        uploader.submit(_checkpoint(tmp_path, step), step)
        _until_stored(uploader, step)
    assert uploader.close(30), "the checkpoint is there: nothing of the run is lost"
    assert ([step for _, step in heard.stored], heard.failed) == ([1, 2], [])


def test_unreachable_storage_is_no_reason_to_start_over(tmp_path: Path, local_store: Store) -> None:
    class Down(Gate):
        def list(self, prefix: str) -> object:
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "gone")

    with pytest.raises(TuneryError, match="gone"):
        restore(StorePath(Down(local_store), "ck"), tmp_path)  # type: ignore[arg-type]


def test_a_removal_that_is_cut_off_leaves_nothing_to_resume_from(local_store: Store, tmp_path: Path) -> None:
    """Whichever file still went: after the markers, and nothing complete is ever without a file."""

    class CutOff(Exception):
        pass

    class Cut(Gate):
        left = 0

        def delete(self, key: str) -> None:
            if self.left == 0:
                raise CutOff
            self.left -= 1
            self.store.delete(key)

    _store_steps(local_store, tmp_path, 100, 200)
    local_store.put_bytes("ck/notes.txt", b"not ours")
    cut = Cut(local_store)
    for _ in range(100):
        cut.left = 1
        try:
            remove_checkpoints(StorePath(cut, "ck"))  # type: ignore[arg-type]
        except CutOff:
            names = {entry.key for entry in local_store.list("ck")}
            for checkpoint in complete_checkpoints(StorePath(local_store, "ck")):
                assert {checkpoint.place.key(name) for name in checkpoint.marker.files} <= names
        else:
            break
    assert [entry.key for entry in local_store.list("ck")] == ["ck/notes.txt"]


def test_removal_takes_half_written_ones_and_cut_off_uploads(store: Store, tmp_path: Path) -> None:
    _store_steps(store, tmp_path, 100)
    store.put_bytes("ck/step-000200/optimizer.pt", b"half-written")
    store.put_bytes("other/step-000100/complete.json", b"{}")
    remove_checkpoints(StorePath(store, "ck"))
    assert store.list("ck") == []
    assert [entry.key for entry in store.list("other")] == ["other/step-000100/complete.json"]
    remove_checkpoints(StorePath(store, "ck"))


def test_an_upload_that_was_given_up_never_becomes_complete(local_store: Store, tmp_path: Path) -> None:
    """The run goes on to publish and to remove its checkpoints: none may appear behind its back."""
    gate = Gate(local_store)
    uploader = CheckpointUploader(StorePath(gate, "ck"), tmp_path / "scratch")  # type: ignore[arg-type]
    uploader.submit(_checkpoint(tmp_path, 1), 1)
    assert gate.entered.wait(10)
    assert not uploader.close(0.05)
    begun = time.monotonic()
    assert not uploader.close(30), "whoever waits again has nothing to wait for"
    assert time.monotonic() - begun < 5
    gate.open.set()
    uploader._thread.join(30)
    assert local_store.list("ck") == [], "nor is any of its files left"


@pytest.mark.parametrize("keep", [True, False])
def test_after_a_success_they_stay_only_where_they_are_to_be_kept(
    local_store: Store, tmp_path: Path, keep: bool
) -> None:
    _store_steps(local_store, tmp_path, 100, 200)
    run = SimpleNamespace(lora_job=spec_of({"checkpoint": {"keepAfterSuccess": keep}}))
    place = StorePath(local_store, "ck")
    work = SimpleNamespace(run=run, checkpoints=place, folder=lambda name: tmp_path / name)
    kept = settle_checkpoints(cast("Workspace", work))
    assert (kept.step if kept else None) == (200 if keep else None)
    assert [each.step for each in complete_checkpoints(place)] == ([200, 100] if keep else [])


def test_probe_leaves_nothing(store: Store) -> None:
    probe_checkpoints(StorePath(store, "ck"))
    assert store.list("ck") == []

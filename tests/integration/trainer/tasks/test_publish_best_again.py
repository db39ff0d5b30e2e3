"""The end of a sweep that is killed, wherever that is, and run again: its result is published once, losers are gone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunery_api.manifest import MANIFEST_NAME
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.remedies import Action
from tunery_common.errors import TuneryError
from tunery_common.storage.local import LocalStore
from tunery_common.storage.published_folder import verify
from tunery_common.storage.publisher import Publisher
from tunery_trainer.tasks.publish_best import run_publish_best

from kit.ended_sweep import BEST, FILES, LEFT, UID, EndedSweep, stays
from kit.story import environment, run_here

KILLED = """
import os, signal, sys
from tunery_common.storage.local import LocalStore
from tunery_trainer.cli import main
plain = LocalStore.delete
def delete(store, key):
    if key.endswith("004/adapter_model.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    plain(store, key)
LocalStore.delete = delete
main(["publish-best", sys.argv[1]])
"""


class Killed(BaseException):
    """The process ends here; nothing but what unwinds is done any more."""


def _killing(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, at: Callable[..., bool]) -> None:
    """Let the first call of a method that `at` chooses, by its arguments, be where the process ends."""
    plain = getattr(owner, method)
    left = [1]

    def killed(self: Any, *arguments: Any, **named: Any) -> Any:
        if left[0] and at(*arguments):
            left[0] = 0
            raise Killed
        return plain(self, *arguments, **named)

    monkeypatch.setattr(owner, method, killed)


STEPS = {
    "before the claim": (LocalStore, "put_bytes", lambda key, *_: key.endswith("out/.tunery-claim.json")),
    "before the best is read": (LocalStore, "download", lambda *_: True),
    "before the last file": (Publisher, "add", lambda path, name, *_: name == "training_curves.png"),
    "before the manifest": (LocalStore, "put_bytes", lambda key, *_: key.endswith(f"out/{MANIFEST_NAME}")),
    "before it is read back": (Publisher, "_read_back", lambda *_: True),
    "before the claim goes": (LocalStore, "delete", lambda key: key.endswith("out/.tunery-claim.json")),
    "before the first loser": (LocalStore, "delete", lambda key: f"{UID}/000/" in key),
    "between the losers": (LocalStore, "delete", lambda key: key.endswith(f"{UID}/004/adapter_model.safetensors")),
    "before leftovers of uploads": (LocalStore, "abort_stale_uploads", lambda prefix, *_: prefix.endswith(UID)),
}


@pytest.mark.slow(fast=["before the manifest"])
@pytest.mark.parametrize("step", STEPS)
def test_one_that_was_killed_is_run_again_and_publishes_once(
    sweep: EndedSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    manifests = []
    plain = LocalStore.put_bytes

    def put(self: LocalStore, key: str, data: bytes, *, if_none_match: bool = False) -> Any:
        if key.endswith(f"out/{MANIFEST_NAME}"):
            manifests.append(data)
        return plain(self, key, data, if_none_match=if_none_match)

    monkeypatch.setattr(LocalStore, "put_bytes", put)
    _killing(monkeypatch, *STEPS[step])
    run = sweep.run(tmp_path / "work")
    with pytest.raises(Killed):
        run_publish_best(run)
    assert verify(sweep.place.below(f"out-trials/{UID}/002"))  # whatever happened
    result = run_publish_best(run)
    assert len(manifests) == 1
    found = verify(sweep.place.below("out"))
    assert found.manifest.files.keys() == FILES
    assert result.adapter is not None
    assert result.adapter.manifest_sha256 == found.sha256
    keys = sweep.stored()
    stays(keys, 2)
    assert not set(LEFT) & keys
    assert {key for key in keys if key.startswith("out/")} == {
        *(f"out/{name}" for name in FILES),
        f"out/{MANIFEST_NAME}",
        f"out/{UID}/000/manifest.json",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("value", "best"), [("1.1", 7), ("1.5", BEST)], ids=["better", "worse"])
def test_a_sweep_that_went_on_after_it_had_published_replaces_that(
    sweep: EndedSweep, tmp_path: Path, value: str, best: int
) -> None:
    """Its Job published and failed, or was deleted; a retry, and one more trial."""
    run_publish_best(sweep.run(tmp_path / "first"))
    assert sweep.one_more(tmp_path / "saved", value) == 7
    result = run_publish_best(sweep.run(tmp_path / "second", best=best))
    found = verify(sweep.place.below("out"))
    assert result.adapter is not None
    assert result.adapter.manifest_sha256 == found.sha256
    trial = verify(sweep.place.below(f"out-trials/{UID}/{best:03}")).manifest
    weights = "adapter_model.safetensors"
    assert found.manifest.files[weights] == trial.files[weights]
    record = found.manifest.lineage.sweep
    assert record is not None
    assert (record.trial, record.trials) == (best, 8)
    assert len(json.loads(sweep.place.read_bytes("out/sweep.json"))["trials"]) == 8
    assert f"This is trial {best} (`support-{best:03}`) of 8" in sweep.place.read_bytes("out/README.md").decode()
    stays(sweep.stored(), best)
    assert run_publish_best(sweep.run(tmp_path / "third", best=best)) == result


@pytest.mark.slow
def test_a_tolerance_that_chooses_what_an_earlier_end_removed_is_told(sweep: EndedSweep, tmp_path: Path) -> None:
    """Trial 4 was the smallest of those near the best; beside a better one it is not near any more, and 0 is gone."""
    first = run_publish_best(sweep.run(tmp_path / "first", best=4))
    sweep.one_more(tmp_path / "saved", "1.1")
    before = sweep.stored()
    with pytest.raises(TuneryError) as caught:
        run_publish_best(sweep.run(tmp_path / "second", best=0))
    assert caught.value.reason is FailureReason.ADAPTER_MISSING
    assert "trial 0 (support-000)" in caught.value.message
    assert "published trial 4 before" in caught.value.message
    (remedy,) = caught.value.remedies
    assert (remedy.action, remedy.fields) == (Action.RECREATE, ["objective.tolerance"])
    assert f"published at {sweep.place.uri}/out" in remedy.text
    assert sweep.stored() == before
    assert first.adapter is not None
    verify(sweep.place.below("out"), first.adapter.manifest_sha256)


@pytest.mark.slow
def test_a_container_that_is_killed_among_the_losers_is_run_again(sweep: EndedSweep, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(sweep.run(tmp_path / "work").model_dump_json(by_alias=True, exclude_none=True))
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    published = verify(sweep.place.below("out"))
    assert f"out-trials/{UID}/004/adapter_model.safetensors" in sweep.stored()
    again = run_here("publish-best", path)
    assert again.returncode == ExitCode.OK, again.stderr
    assert verify(sweep.place.below("out")) == published
    stays(sweep.stored(), 2)

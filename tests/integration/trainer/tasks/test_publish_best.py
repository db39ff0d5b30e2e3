"""The end of a sweep: its best adapter is published with how it was found, and nothing but the losers is removed."""

from __future__ import annotations

import json
import logging
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tunery_api.manifest import MANIFEST_NAME
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.remedies import Action
from tunery_api.runspec import RunIdentity, RunResult, RunSpec
from tunery_common.errors import TuneryError
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.local import LocalStore
from tunery_common.storage.published_folder import verify
from tunery_common.storage.publisher import Target, publish
from tunery_trainer.tasks.publish_best import run_publish_best
from tunery_trainer.tasks.report import run_report

from kit.adapters import logits, logits_of
from kit.ended_sweep import BEST, CHECKPOINTS, FILES, LEFT, NEIGHBOURS, PICTURES, REPORTS, UID, EndedSweep, below, stays
from kit.peft_reader import plain_peft
from kit.results import lineage
from kit.s3 import credentials
from kit.story import environment, run_here
from tools.cluster.s3 import S3Server

CORRUPT = f"out-trials/{UID}/002/adapter_model.safetensors"
LIGHT = """
import sys
from pathlib import Path
from tunery_trainer.cli import main
code = main(["publish-best", sys.argv[1]])
heavy = {"torch", "transformers", "peft", "trl", "datasets", "optuna"} & set(sys.modules)
assert not heavy, heavy
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print("MiB", int(peak.split()[1]) // 1024)
sys.exit(code)
"""


@pytest.fixture
def in_bucket(tmp_path: Path, tiny_model: Path, s3_server: S3Server, bucket: str) -> EndedSweep:
    """A sweep in a bucket of its own."""
    ended = below(open_store(f"s3://{bucket}", credentials(s3_server), "test").store, "", tiny_model)
    ended.publish_trials(tmp_path / "saved")
    return ended


@pytest.fixture
def secret(tmp_path: Path, s3_server: S3Server) -> Path:
    """A mounted Secret for the S3 server."""
    folder = tmp_path / "secret"
    folder.mkdir()
    for name, value in s3_server.environment().items():
        (folder / name).write_text(value)
    return folder


def said_by(place: StorePath, name: str) -> Any:
    return json.loads(place.below("out").read_bytes(name))


def test_the_best_is_published_with_how_it_was_found(sweep: EndedSweep, tmp_path: Path) -> None:
    run = sweep.run(tmp_path / "work", keepAdapters=2)
    trial = sweep.place.below(f"out-trials/{UID}/002")
    before = verify(trial).manifest
    result = run_publish_best(run)

    found = verify(sweep.place.below("out"))  # every digest
    assert found.manifest.files.keys() == FILES
    assert found.manifest.run == run.identity
    assert result.adapter is not None
    assert (result.adapter.uri, result.adapter.manifest_sha256) == (run.output_uri, found.sha256)
    assert result.metrics is not None
    assert result.metrics.eval_loss == "1.41234"
    for name in ("adapter_model.safetensors", "adapter_config.json", "training_curves.png", "answers.jsonl"):
        assert found.manifest.files[name] == before.files[name]
    record = found.manifest.lineage.sweep
    assert record is not None
    assert record.model_dump() == {
        "name": "support",
        "uid": UID,
        "trial": BEST,
        "trials": 7,
        "seed": 42,
        "sampler": "TPE",
    }
    assert found.manifest.lineage.model_copy(update={"sweep": None}) == before.lineage
    told = said_by(sweep.place, "sweep.json")
    rows = [row.model_dump(mode="json", by_alias=True, exclude_none=True) for row in sweep.rows]
    assert [row["number"] for row in told["trials"] if "adapter" in row] == [2, 4], "the others are removed"
    assert told["trials"] == [
        {name: value for name, value in row.items() if name != "adapter" or row["number"] in (2, 4)} for row in rows
    ]
    for name in PICTURES:
        content = sweep.place.below("out").read_bytes(name)
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert 1000 <= width <= 4000
        assert 400 <= height <= 1200
    stays(sweep.stored(), 2, 4)
    verify(trial)
    verify(sweep.place.below(f"out-trials/{UID}/004"))
    assert not set(LEFT) & sweep.stored()
    assert run_report(run) == result.model_copy(update={"not_removed": ""})


def test_the_card_is_the_trials_with_how_it_was_found(sweep: EndedSweep, tmp_path: Path) -> None:
    run = sweep.run(tmp_path / "work")
    run_publish_best(run)
    card = (tmp_path / "out/README.md").read_text()
    assert "made by Tunery (LoRASweep `team/support`)" in card
    assert run.output_uri in card
    assert "| say red | red red | blue | red red |" in card
    search = card.split("## How it was found")[1].split("\n## ")[0]
    assert "This is trial 2 (`support-002`) of 7: held-out loss 1.41234, 2.031 before training." in search
    assert "4 complete, 1 pruned, 1 infeasible, 1 failed" in search
    assert next(line for line in search.splitlines() if line.startswith("| 2 |")).startswith(
        "| 2 | 1.41234 | 8 | 0.0003 |"
    )
    assert "| `training.learningRate` | 0.00001 to 0.01, by factors |" in search
    assert "why trial 3 ended \\| so" in search
    for name in PICTURES:
        assert f"]({name})" in search


@pytest.mark.slow
def test_plain_peft_loads_what_is_published(sweep: EndedSweep, tmp_path: Path) -> None:
    run_publish_best(sweep.run(tmp_path / "work"))
    adapted = logits_of(plain_peft(tmp_path))
    assert torch.equal(adapted, logits(sweep.base, tmp_path / "saved/trial-2"))
    assert not torch.equal(adapted, logits(sweep.base))


@pytest.mark.slow
def test_a_container_publishes_the_best_in_s3_and_a_report_says_the_same(
    in_bucket: EndedSweep, secret: Path, tmp_path: Path
) -> None:
    path, message = tmp_path / "run.json", tmp_path / "termination"
    run = in_bucket.run(tmp_path / "work", secret=secret)
    path.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    said = []
    for task in ("publish-best", "report", "publish-best"):
        message.write_text("")
        done = run_here(task, path, TUNERY_TERMINATION_PATH=str(message))
        assert done.returncode == ExitCode.OK, done.stderr
        said.append(RunResult.model_validate_json(message.read_bytes()))
    assert said[0].adapter is not None
    assert said[0] == said[2]
    assert said[1] == said[0].model_copy(update={"not_removed": ""}), "a report has looked"
    verify(in_bucket.place.below("out"), said[0].adapter.manifest_sha256)
    keys = in_bucket.stored()
    stays(keys, 2)
    assert not {*LEFT, *CHECKPOINTS, *REPORTS} & keys


@pytest.mark.slow
def test_checkpoints_of_a_kept_trial_stay_as_its_template_asks(
    in_bucket: EndedSweep, secret: Path, tmp_path: Path
) -> None:
    own = "tunery-checkpoints/team/support-002-t-2/step-000020/complete.json"
    in_bucket.place.store.put_bytes(own, b"{}")
    run_publish_best(in_bucket.run(tmp_path / "work", secret=secret))
    assert {key for key in in_bucket.stored() if key.startswith("tunery-checkpoints/team/support-00")} == {
        own,
        *(key for key in NEIGHBOURS if key.startswith("tunery-checkpoints/team")),
    }


@pytest.mark.slow(only=["3", "20"])
@pytest.mark.parametrize("keep", [1, 3, 20])
def test_as_many_adapters_stay_as_were_asked_for(sweep: EndedSweep, tmp_path: Path, keep: int) -> None:
    run_publish_best(sweep.run(tmp_path / "work", keepAdapters=keep))
    stays(sweep.stored(), *((2,) if keep == 1 else (0, 2, 4)))


def test_the_best_stays_though_tolerance_chose_it(sweep: EndedSweep, tmp_path: Path) -> None:
    run_publish_best(sweep.run(tmp_path / "work", best=0))
    assert said_by(sweep.place, MANIFEST_NAME)["lineage"]["sweep"]["trial"] == 0
    stays(sweep.stored(), 0)


def _flip(sweep: EndedSweep) -> str:
    content = bytearray(sweep.place.read_bytes(CORRUPT))
    content[-1] ^= 1
    sweep.place.store.put_bytes(sweep.place.key(CORRUPT), bytes(content))
    return CORRUPT


def _remove_file(sweep: EndedSweep) -> str:
    sweep.place.store.delete(sweep.place.key(CORRUPT))
    return CORRUPT


def _replace(sweep: EndedSweep) -> str:
    """Another whole adapter, published at the place of the best by someone else."""
    manifest = sweep.place.read_bytes(f"out-trials/{UID}/004/{MANIFEST_NAME}")
    sweep.place.store.put_bytes(sweep.place.key(f"out-trials/{UID}/002/{MANIFEST_NAME}"), manifest)
    return f"out-trials/{UID}/002/{MANIFEST_NAME}"


def _unpublish(sweep: EndedSweep) -> str:
    sweep.place.store.delete(sweep.place.key(f"out-trials/{UID}/002/{MANIFEST_NAME}"))
    return f"out-trials/{UID}/002"


@pytest.mark.parametrize("harm", [_flip, _remove_file, _replace, _unpublish])
def test_nothing_is_removed_where_the_best_is_not_whole(
    sweep: EndedSweep, tmp_path: Path, harm: Callable[[EndedSweep], str]
) -> None:
    where = harm(sweep)
    before = sweep.stored()
    with pytest.raises(TuneryError) as caught:
        run_publish_best(sweep.run(tmp_path / "work"))
    missing = harm is _unpublish
    assert caught.value.reason is (FailureReason.ADAPTER_MISSING if missing else FailureReason.ADAPTER_CORRUPT)
    assert sweep.place.below(where).uri in caught.value.message
    assert "trial 2 (support-002)" in caught.value.message
    assert {each.action for each in caught.value.remedies} == {Action.RETRY}
    assert {key for key in sweep.stored() if not key.startswith("work/")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "refused",
    [
        ("out-trials",),
        ("tunery-checkpoints",),
        ("tunery-reports",),
        ("out-trials", "tunery-checkpoints", "tunery-reports"),
    ],
    ids=" and ".join,
)
def test_deletes_that_are_refused_are_a_warning_and_a_report_says_what_is_left(
    refused: tuple[str, ...],
    in_bucket: EndedSweep,
    secret: Path,
    tmp_path: Path,
    s3_server: S3Server,
    bucket: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    places = [f"arn:aws:s3:::{bucket}/{prefix}/*" for prefix in refused]
    statement = {"Effect": "Deny", "Principal": "*", "Action": ["s3:DeleteObject"], "Resource": places}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    s3_server.client().put_bucket_policy(Bucket=bucket, Policy=policy)
    run = in_bucket.run(tmp_path / "work", secret=secret)
    try:
        with caplog.at_level(logging.WARNING):
            result = run_publish_best(run)
    finally:
        s3_server.client().delete_bucket_policy(Bucket=bucket)
    assert result.adapter is not None
    verify(in_bucket.place.below("out"), result.adapter.manifest_sha256)
    others = {*LEFT, *CHECKPOINTS, *REPORTS} & in_bucket.stored()
    assert others == {key for key in (*LEFT, *CHECKPOINTS, *REPORTS) if key.partition("/")[0] in refused}
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    at = in_bucket.place.uri
    todo = {
        "out-trials": f"what lies below {at}/out-trials/{UID}, but for support-002",
        "tunery-checkpoints": f"the folders of this sweep's other trials in {at}/tunery-checkpoints/team",
        "tunery-reports": f"the folders of this sweep's other trials in {at}/tunery-reports/team",
    }
    asked = "; remove by hand " + "; and ".join(todo[prefix] for prefix in refused)
    assert result.not_removed == warning
    assert warning.count("s3:DeleteObject was denied") == len(refused)
    assert warning.endswith(asked)
    reported = run_report(run)  # of a pod whose words were lost
    assert reported.not_removed is not None
    assert reported.not_removed.endswith(asked)
    assert all(f"{at}/{prefix}/" in reported.not_removed.removesuffix(asked) for prefix in refused)
    assert reported.model_copy(update={"not_removed": result.not_removed}) == result
    assert run_publish_best(run).not_removed is None
    assert run_report(run).not_removed == "", "it has looked"


def test_a_report_names_what_it_may_not_look_for(
    sweep: EndedSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sweep.run(tmp_path / "work")
    result = run_publish_best(run)
    denied = TuneryError(FailureReason.STORAGE_ACCESS_DENIED, "s3:ListBucket was denied")
    monkeypatch.setattr(LocalStore, "list", Mock(side_effect=denied))
    reported = run_report(run)
    assert reported.adapter == result.adapter
    assert "s3:ListBucket was denied; remove by hand what lies below" in (reported.not_removed or "")


@pytest.mark.parametrize("uid", [UID, "", "..", "a/b", f"{UID}x"])
@pytest.mark.parametrize("place", ["out-trials", "out", "out-trials-x", f"out-trials/{UID}", ""])
def test_no_other_place_than_that_of_the_sweep_is_taken_for_its_trials(
    sweep: EndedSweep, tmp_path: Path, uid: str, place: str
) -> None:
    right = sweep.run(tmp_path / "work")
    identity = right.identity.model_copy(update={"uid": uid})
    before = sweep.stored()
    for folder in (f"{place}/{uid}", place, f"{place}/{UID}", f"{place}/{UID}/.."):
        uri = f"{sweep.place.uri}/{folder}"
        if uri == f"{sweep.place.uri}/out-trials/{uid}" and uid in (UID, f"{UID}x"):
            continue
        ended = right.lora_sweep.model_copy(update={"trials_uri": uri}) if right.lora_sweep else None
        wrong = right.model_copy(update={"identity": identity, "lora_sweep": ended})
        with pytest.raises(TuneryError, match="lie below") as caught:
            run_publish_best(wrong)
        assert caught.value.reason is FailureReason.INTERNAL_ERROR
    assert sweep.stored() == before


def _no_adapter(run: RunSpec) -> RunSpec:
    return _with_best(run, 6)


def _pruned(run: RunSpec) -> RunSpec:
    return _with_best(run, 1)


def _unknown(run: RunSpec) -> RunSpec:
    return _with_best(run, 99)


def _with_best(run: RunSpec, number: int) -> RunSpec:
    assert run.lora_sweep is not None
    return run.model_copy(update={"lora_sweep": run.lora_sweep.model_copy(update={"best": number})})


@pytest.mark.parametrize("change", [_no_adapter, _pruned, _unknown])
def test_a_trial_that_has_no_adapter_is_no_result(
    sweep: EndedSweep, tmp_path: Path, change: Callable[[RunSpec], RunSpec]
) -> None:
    before = sweep.stored()
    with pytest.raises(TuneryError, match="cannot be the best") as caught:
        run_publish_best(change(sweep.run(tmp_path / "work")))
    assert caught.value.reason is FailureReason.INTERNAL_ERROR
    assert sweep.stored() == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_lies_at_the_output_gives_way_only_where_that_is_asked_for(
    sweep: EndedSweep, tmp_path: Path, overwrite: bool
) -> None:
    other = RunIdentity(kind="LoRAJob", namespace="team", name="other", uid="o")
    publish(tmp_path / "saved/trial-0", Target(sweep.place.below("out"), other), lineage())
    before = sweep.stored()
    run = sweep.run(tmp_path / "work", overwrite=overwrite)
    if overwrite:
        run_publish_best(run)
        assert verify(sweep.place.below("out")).manifest.run == run.identity
        return
    with pytest.raises(TuneryError) as caught:
        run_publish_best(run)
    assert caught.value.reason is FailureReason.OUTPUT_EXISTS
    assert {key for key in sweep.stored() if not key.startswith("work/")} == before


def test_a_place_that_is_written_in_another_way_is_the_same(sweep: EndedSweep, tmp_path: Path) -> None:
    run = sweep.run(tmp_path / "work")
    assert run.lora_sweep is not None
    rows = [
        row.model_copy(update={"adapter": row.adapter.model_copy(update={"uri": row.adapter.uri.replace("-", "%2D")})})
        if row.adapter
        else row
        for row in run.lora_sweep.trials
    ]
    run_publish_best(run.model_copy(update={"lora_sweep": run.lora_sweep.model_copy(update={"trials": rows})}))
    stays(sweep.stored(), 2)


@pytest.mark.slow
def test_it_takes_little_memory_and_no_library_of_tensors(sweep: EndedSweep, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(sweep.run(tmp_path / "work").model_dump_json(by_alias=True, exclude_none=True))
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(path)], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.OK, done.stderr
    assert int(done.stdout.split("MiB")[-1]) < 250

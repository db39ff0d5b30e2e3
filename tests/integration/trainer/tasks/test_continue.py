"""continueFrom: a published adapter is trained on, from where it ended."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import ExitCode, FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.cli import main
from tunery_trainer.inputs.adapter import get_starting_adapter
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.local import load_run_spec
from tunery_trainer.tasks.merge import run_merge
from tunery_trainer.tasks.preflight import run_preflight

from kit.merge_runs import merge_of
from kit.peft_reader import held_out_rows, plain_peft, single_row_loss
from kit.story import make_rows, manifest, run_here, write_manifest, write_rows

# Small steps: a new optimizer must not undo at once what the first run learnt.
GENTLE = {"maxSteps": 10, "learningRate": 1e-3}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The folder of a finished run, of rank 4 on the attention layers."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "model").symlink_to(tiny_model)
    write_rows(folder / "data.jsonl", make_rows())
    path = write_manifest(folder, manifest(folder, lora={"rank": 4, "targetModules": ["attention"]}))
    done = run_here("run", path, "--work-dir", folder / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    return folder


@pytest.fixture
def folder(first: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(first, tmp_path / "copy", symlinks=True)


def go_on(folder: Path, **changes: Any) -> tuple[int, str]:
    """Train on from `out` into `out2`; returns exit code and stderr."""
    later = {"continueFrom": {"uri": "file://out"}, "output": {"uri": "file://out2"}, "training": GENTLE, "lora": None}
    path = write_manifest(folder, manifest(folder, **(later | changes)))
    done = run_here("run", path, "--work-dir", folder / "work2")
    return done.returncode, done.stderr


def published(folder: Path) -> dict[str, Any]:
    """Return the lineage of what was published into `folder`."""
    lineage: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["lineage"]
    return lineage


def test_training_goes_on_where_it_ended(folder: Path) -> None:
    code, stderr = go_on(folder)
    assert code == ExitCode.OK, stderr
    before, lineage = published(folder / "out"), published(folder / "out2")
    metrics = lineage["metrics"]
    digest = hashlib.sha256((folder / "out" / "manifest.json").read_bytes()).hexdigest()
    assert lineage["rank"] == 4
    assert lineage["continuedFrom"] == {"uri": (folder / "out").as_uri(), "manifestSha256": digest}
    assert metrics["baseEvalLoss"] == pytest.approx(before["metrics"]["evalLoss"], rel=1e-4)
    assert metrics["evalLoss"] < metrics["baseEvalLoss"]
    model = plain_peft(folder, out="out2")
    assert single_row_loss(model, held_out_rows(folder, "work2")) == pytest.approx(metrics["evalLoss"], rel=0.01)


@pytest.mark.slow
def test_preflight_and_a_look_beforehand_count_the_adapter_that_is_trained_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What a CPU computes in depends on the machine.
    exact = GENTLE | {"precision": "Float32"}
    later = {"continueFrom": {"uri": "file://out"}, "output": {"uri": "file://out2"}, "training": exact, "lora": None}
    path = write_manifest(folder, manifest(folder, **later))
    assert main(["estimate", str(path), "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    attention = ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert (told["rank"], told["targetModules"], told["leftOut"]) == (4, attention, None)
    assert told["estimate"]["adapterBytes"] == 4 * told["trainableParameters"]
    assert {row["method"] for row in told["table"]} == {"LoRA", "QLoRA"}, "no other method can train it"
    report = run_preflight(load_run_spec(path, folder / "work2", None))
    assert report.estimate is not None
    assert report.estimate.to_json_dict() == told["estimate"]

    capsys.readouterr()
    later["continueFrom"] = {"uri": "s3://adapters/first"}
    assert main(["estimate", str(write_manifest(folder, manifest(folder, **later)))]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "Left out  continueFrom: s3://adapters/first is not read here." in out
    assert max(map(len, out.splitlines())) <= 120


def test_what_disagrees_is_refused_before_training(folder: Path) -> None:
    code, stderr = go_on(folder, lora={"rank": 8})
    assert code == ExitCode.USER_ERROR
    assert "InvalidSpec: spec.lora.rank: is 8, but the adapter of continueFrom has 4" in stderr


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "manifest.json"])
def test_a_tampered_adapter_is_refused(folder: Path, name: str) -> None:
    path = folder / "out" / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, stderr = go_on(folder)
    assert code == ExitCode.USER_ERROR
    assert "AdapterCorrupt: spec.continueFrom: " in stderr
    assert not (folder / "out2" / "manifest.json").exists()


def test_preflight_reads_all_of_the_adapter(folder: Path) -> None:
    """A GPU that is given back at once is a GPU that another job did not have."""
    later = {"continueFrom": {"uri": "file://out"}, "output": {"uri": "file://out2"}, "training": GENTLE, "lora": None}
    work = Workspace(load_run_spec(write_manifest(folder, manifest(folder, **later)), folder / "work2", None))
    assert get_starting_adapter(work, weights=False)
    path = folder / "out" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(TuneryError, match=r"spec\.continueFrom: .*adapter_model\.safetensors") as caught:
        get_starting_adapter(work, weights=False)
    assert caught.value.reason is FailureReason.ADAPTER_CORRUPT


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_trainer_and_api_reject_an_empty_list_of_adapters_alike(folder: Path, tmp_path: Path, missing: str) -> None:
    path = folder / "out" / "manifest.json"
    manifest_here = json.loads(path.read_text())
    del manifest_here["files"][missing]
    path.write_text(json.dumps(manifest_here))
    later = {"continueFrom": {"uri": "file://out"}, "output": {"uri": "file://out2"}, "training": GENTLE, "lora": None}
    told = []
    for kind, run in (
        ("spec.continueFrom", lambda: run_preflight(load_run_spec(write_manifest(folder, manifest(folder, **later)),
                                                                  folder / "work2", None))),
        ("spec.adapters[0]", lambda: run_merge(merge_of(tmp_path, folder / "out"))),
    ):  # fmt: skip
        with pytest.raises(TuneryError) as caught:
            run()
        told.append((caught.value.reason, caught.value.message.removeprefix(f"{kind}: "), caught.value.remedies))
    message = f"{(folder / 'out').as_uri()}: manifest.json does not list {missing}, so it vouches for no adapter"
    assert told[0] == told[1]
    assert told[0][:2] == (FailureReason.ADAPTER_MISSING, message)


@pytest.mark.slow
def test_with_other_rows_it_is_another_run(folder: Path) -> None:
    """A laptop's run is known by its manifest and data: after a change the old adapter is not called its result."""
    path = write_manifest(folder, manifest(folder, output={"uri": "file://out3"}, training=GENTLE))
    for _ in range(2):
        done = run_here("run", path, "--work-dir", folder / "work3")
        assert done.returncode == ExitCode.OK, done.stderr
    write_rows(folder / "data.jsonl", make_rows()[:-1])
    done = run_here("run", path, "--work-dir", folder / "work3")
    assert done.returncode == ExitCode.USER_ERROR
    assert "OutputExists: spec.output.uri" in done.stderr


def test_a_missing_adapter_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "out")
    code, stderr = go_on(folder)
    assert code == ExitCode.USER_ERROR
    assert "AdapterMissing: spec.continueFrom: " in stderr

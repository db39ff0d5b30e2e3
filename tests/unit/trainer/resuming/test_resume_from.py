"""resumeFrom: a new job goes on from another's checkpoint, to the weights that the other would have come to."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import Method
from tunery_api.reasons import ExitCode
from tunery_common.inputs.digests import BOOK
from tunery_common.storage.transfer import hash_file
from tunery_trainer.cli import main
from tunery_trainer.resuming.checkpoints import CheckpointUploader
from tunery_trainer.settings.auto_method import MethodChoice, method_choices
from tunery_trainer.training.trl_trainer import AdapterTrainer

from kit import kubectl_yaml
from kit.adapters import distance
from kit.story import Case, make_rows, run_here, write_manifest, write_rows

KEPT = {"everySteps": 5, "keep": 4, "keepAfterSuccess": True}
EXACT = {"precision": "Float32", "packing": False}
Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def every_checkpoint_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for each one: on a busy machine, a newer one is stored in the place of one that waits."""
    submit = CheckpointUploader.submit

    def submit_and_wait(uploader: CheckpointUploader, folder: Path, step: int) -> None:
        submit(uploader, folder, step)
        end = time.monotonic() + 30
        while uploader.last_stored != step and uploader.error is None and time.monotonic() < end:
            time.sleep(0.005)

    monkeypatch.setattr(CheckpointUploader, "submit", submit_and_wait)


def train(path: Path, name: str) -> tuple[Weights, dict[str, Any], str]:
    """Train into out-<name> to the end; return the published weights, the lineage, and what was printed."""
    done = run_here("run", path, "--work-dir", path.parent / f"work-{name}")
    assert done.returncode == ExitCode.OK, done.stderr
    out = path.parent / f"out-{name}"
    lineage: dict[str, Any] = json.loads((out / "manifest.json").read_text())["lineage"]
    return load_file(out / "adapter_model.safetensors"), lineage, done.stdout


def first(case: Case, **changes: Any) -> tuple[Path, Weights]:
    """Train the job that others go on from; return the folder of its checkpoints, and its weights."""
    path = case(**({"checkpoint": KEPT, "training": EXACT, "output": {"uri": "file://out-a"}} | changes))
    weights, _, _ = train(path, "a")
    return checkpoints(path), weights


def checkpoints(path: Path) -> Path:
    """Return the folder of the checkpoints of the first job."""
    return next(path.parent.glob("work-a/checkpoints/*/step-*")).parent


def later(case: Case, place: Path, **changes: Any) -> Path:
    """Write the job that goes on from `place`."""
    spec = {"training": EXACT, "output": {"uri": "file://out-b"}, "resumeFrom": {"uri": place.as_uri()}}
    return case(**(spec | changes))


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def history(checkpoint: Path) -> list[dict[str, Any]]:
    """Return what a checkpoint remembers of each step that was logged."""
    told: list[dict[str, Any]] = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return told


def losses(folder: Path) -> list[tuple[int, float]]:
    """Return the training loss of each step that the newest checkpoint of a run remembers."""
    newest = max(folder.glob("checkpoints/*/step-*"))
    return [(entry["step"], entry["loss"]) for entry in history(newest) if "loss" in entry]


@pytest.mark.slow(fast=["LoRA"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"lora": {"rank": 8, "dropout": 0.1}}, id="LoRA"),
        pytest.param({"method": "QLoRA"}, id="QLoRA"),
        pytest.param({"method": "AdaLoRA", "lora": None}, id="AdaLoRA"),
        pytest.param({"lora": {"rank": 8, "init": "PiSSA"}}, id="PiSSA"),
    ],
)
def test_it_ends_where_the_other_would_have(case: Case, changes: dict[str, Any]) -> None:
    place, straight = first(case, **changes)
    before = content(place)
    path = later(case, place / "step-000010", checkpoint=KEPT, **changes)
    weights, lineage, printed = train(path, "b")
    assert "Resuming from the checkpoint of step 10 of LoRAJob local/tiny" in printed
    assert distance(straight, weights) == 0.0
    assert losses(path.parent / "work-b") == losses(path.parent / "work-a")
    assert [(each["uri"], each["step"]) for each in lineage["resumedFrom"]] == [((place / "step-000010").as_uri(), 10)]
    assert lineage["resumedFrom"][0]["run"]["uid"] == place.name
    said = {value["name"]: value for value in lineage["resolved"]["values"]}
    assert said["resumeFrom"]["value"] == "the checkpoint of step 10 of LoRAJob local/tiny"
    assert content(place) == before, "the other's checkpoints are read and never changed"


@pytest.mark.slow
def test_a_look_beforehand_counts_what_the_checkpoint_has(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """What the manifest leaves open is the checkpoint's: rank, targets, steps."""
    place, _ = first(case, lora={"rank": 4, "targetModules": ["attention"]})
    path = later(case, place, lora=None, method="Auto")
    assert main(["estimate", str(path), "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["method"], told["rank"], told["estimate"]["steps"]) == ("LoRA", 4, 20)
    assert told["targetModules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert {row["method"] for row in told["table"]} == {"LoRA"}
    path = later(case, place, lora=None, resumeFrom={"loraJobRef": {"name": "first"}})
    assert main(["estimate", str(path), "--json", "--from", str(place)]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["rank"] == 4


@pytest.mark.slow
def test_passes_may_be_smaller(case: Case) -> None:
    lora = {"rank": 8, "dropout": 0}
    place, straight = first(case, lora=lora)
    split = EXACT | {"batchSize": 2, "gradientAccumulation": 2, "gradientCheckpointing": False}
    weights, _, _ = train(later(case, place / "step-000010", lora=lora, training=split), "b")
    assert distance(straight, weights) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["AdamW", "PagedAdamW8bit"])
def test_another_learning_rate_counts_from_the_checkpoint_on(case: Case, optimizer: str) -> None:
    asked = EXACT | {"optimizer": optimizer}
    place, straight = first(case, training=asked)
    path = later(case, place / "step-000010", checkpoint=KEPT, training=asked | {"learningRate": 1e-9})
    weights, _, _ = train(path, "b")
    at_10 = load_file(place / "step-000010" / "trainable.safetensors")
    at_20 = load_file(next((path.parent / "work-b").glob("checkpoints/*/step-000020")) / "trainable.safetensors")
    assert distance(at_10, at_20) < 1e-6
    assert distance(straight, weights) > 1e-3


@pytest.mark.slow
def test_a_job_that_has_succeeded_may_be_made_longer(case: Case) -> None:
    place, _ = first(case)
    path = later(case, place, training=EXACT | {"maxSteps": 30}, checkpoint=KEPT)
    _, lineage, printed = train(path, "b")
    assert "Resuming from the checkpoint of step 20 of LoRAJob" in printed
    assert lineage["resolved"]["steps"] == 30
    assert [step for step, _ in losses(path.parent / "work-b")] == list(range(1, 31))


@pytest.mark.slow
def test_steps_and_passes_are_those_that_were_taken_not_those_that_were_logged(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 3 passes over 108 rows takes 6 steps of 16 rows and one of 12; logged are the steps 5, 10, 15 and 20."""
    monkeypatch.setattr("tunery_trainer.training.trl_config._LOGGED_POINTS", 4)
    asked = EXACT | {"maxSteps": None, "epochs": 3, "batchSize": 16}
    place, _ = first(case, training=asked)
    assert json.loads((place.parents[2] / "out-a" / "manifest.json").read_text())["lineage"]["epochs"] == 3.0
    logged = [entry["step"] for entry in history(place / "step-000021") if "loss" in entry]
    assert max(logged) == 20, "but for the evaluation at the end"
    _, lineage, printed = train(later(case, place, training=asked), "b")
    assert "Resuming from the checkpoint of step 21 of LoRAJob" in printed
    assert (lineage["steps"], lineage["step"], lineage["epochs"]) == (21, 21, 3.0)


@pytest.mark.slow
def test_a_rejected_job_is_published_without_training_again(case: Case) -> None:
    wanted = {"output": {"uri": "file://out-a"}, "training": EXACT, "checkpoint": {"everySteps": 5}}
    path = case(evaluation={"minImprovement": 0.99}, **wanted)
    done = run_here("run", path, "--work-dir", path.parent / "work-a")
    assert "NotImproved" in done.stderr
    place = checkpoints(path)
    weights, _, printed = train(later(case, place), "b")
    assert "Training" not in printed.split("Resuming")[1]
    assert distance(load_file(path.parent / "out-a-rejected" / "adapter_model.safetensors"), weights) == 0.0


@pytest.mark.slow
def test_its_own_checkpoint_comes_first_and_remembers_where_it_began(case: Case) -> None:
    place, straight = first(case)
    path = later(case, place / "step-000010", checkpoint=KEPT)
    train(path, "b")
    shutil.rmtree(path.parent / "out-b")
    shutil.rmtree(next((path.parent / "work-b").glob("checkpoints/*/step-000020")))
    uri = (place / "step-000010").as_uri()
    # Preflight asks for the source; an attempt of the train Job, which this is, does not need it any more.
    (place / "step-000010" / "optimizer.pt").write_bytes(b"damaged")
    weights, lineage, printed = train(path, "b")
    assert "Resuming from the checkpoint of step 15\n" in printed
    assert distance(straight, weights) == 0.0
    assert [each["uri"] for each in lineage["resumedFrom"]] == [uri]


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"lora": {"rank": 4}}, "spec.lora.rank: is 4, and the checkpoint of spec.resumeFrom was trained with 8"),
    "targets": ({"lora": {"rank": 8, "targetModules": ["q_proj"]}}, 'spec.lora.targetModules: is ["q_proj"], and'),
    "method": ({"method": "DoRA"}, "spec.method: is DoRA, and the checkpoint of spec.resumeFrom was trained with LoRA"),
    "seed": ({"training": EXACT | {"seed": 7}}, "spec.training.seed: is 7, and"),
    "rows": (
        {"training": EXACT | {"batchSize": 8}},
        "spec.training.batchSize × gradientAccumulation: is 8, and the checkpoint of spec.resumeFrom was trained",
    ),
    "length": ({"training": EXACT | {"maxLength": 64}}, "spec.training.maxLength: is 64, and"),
    "optimizer": ({"training": EXACT | {"optimizer": "AdamW8bit"}}, "spec.training.optimizer: is AdamW8bit, and"),
    "steps": (
        {"training": EXACT | {"maxSteps": 15}},
        "spec.training: this job has 15 steps in all, and the checkpoint is of step 20",
    ),
    "held out": (
        {"dataset": {"uri": "file://data.jsonl", "evaluation": {"fraction": 0.2}}},
        "spec.dataset.evaluation.fraction: is 0.2, and",
    ),
}


@pytest.mark.slow
def test_what_must_be_the_same_is_refused_by_name_before_training(case: Case) -> None:
    place, _ = first(case)
    for name, (changes, message) in REFUSALS.items():
        done = run_here("run", later(case, place, **changes), "--work-dir", place.parents[2] / f"work-{name}")
        said = done.stderr.splitlines()[-2]
        assert said.startswith("InvalidSpec: "), done.stderr
        assert message in said, name
        assert "Model  " not in done.stdout, "preflight says it"
    path = later(case, place, training=EXACT | {"seed": 7, "maxLength": 64})
    said = run_here("run", path, "--work-dir", place.parents[2] / "work-all").stderr
    assert "spec.training.seed: is 7" in said
    assert "spec.training.maxLength: is 64" in said, "all differences together"


@pytest.mark.slow
def test_other_data_and_another_base_are_refused(case: Case, tmp_path: Path) -> None:
    place, _ = first(case)
    write_rows(tmp_path / "data.jsonl", make_rows(121))
    done = run_here("run", later(case, place), "--work-dir", tmp_path / "work-b")
    assert "spec.dataset.uri (SHA-256 of its content): is " in done.stderr
    write_rows(tmp_path / "data.jsonl", make_rows())
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    done = run_here("run", later(case, place, model={"uri": "file://other"}), "--work-dir", tmp_path / "work-c")
    assert "InvalidSpec: spec.model: is file://" in done.stderr
    assert "whose config.json is another than that of file://" in done.stderr


def tampered(folder: Path, *, other: bool) -> None:
    """Put a model into `folder` that is nearly the tiny one."""
    shutil.copytree(folder.parent / "model", folder)
    (folder / BOOK).unlink(missing_ok=True)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= other
    weights.write_bytes(bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize("other", [False, True])
def test_the_weights_of_the_base_are_compared_while_it_trains(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    """No GPU waits for the digest of a large base: here it is found only once steps are taken."""
    place, straight = first(case)
    tampered(tmp_path / "other", other=other)
    stepped, step = threading.Event(), AdapterTrainer.training_step

    def first_step(*arguments: Any, **named: Any) -> Any:
        stepped.set()
        return step(*arguments, **named)

    def late(path: Path) -> str:
        assert stepped.wait(60), "training waits for the digest"
        return hash_file(path)

    monkeypatch.setattr(AdapterTrainer, "training_step", first_step)
    monkeypatch.setattr("tunery_common.inputs.digests.hash_file", late)
    path = later(case, place / "step-000010", model={"uri": "file://other"})
    if not other:
        assert distance(straight, train(path, "b")[0]) == 0.0
        return
    done = run_here("run", path, "--work-dir", tmp_path / "work-b")
    assert done.returncode == ExitCode.USER_ERROR
    assert "InvalidSpec: spec.model: is file://" in done.stderr
    assert not (tmp_path / "out-b").exists()
    assert not list((tmp_path / "work-b").glob("checkpoints/*/*/complete.json"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rows", "held out", "base"])
def test_a_retry_does_not_go_on_with_what_was_put_in_the_place_of_its_inputs(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    # In a cluster an object stays the same whatever its inputs become; without one, other inputs make another run.
    monkeypatch.setattr("tunery_trainer.local._data_digests", lambda spec: [])
    tampered(tmp_path / "own", other=False)
    write_rows(tmp_path / "held.jsonl", make_rows(130)[120:])
    held = {"uri": "file://data.jsonl", "evaluation": {"uri": "file://held.jsonl"}}
    wanted = {"checkpoint": KEPT, "training": EXACT, "dataset": held, "model": {"uri": "file://own"}}
    path = case(**wanted, output={"uri": "file://out-a"})
    train(path, "a")
    shutil.rmtree(tmp_path / "out-a")
    if what == "base":
        shutil.rmtree(tmp_path / "own")
        tampered(tmp_path / "own", other=True)
    else:
        write_rows(tmp_path / ("data.jsonl" if what == "rows" else "held.jsonl"), make_rows(131)[1:])
    done = run_here("run", path, "--work-dir", tmp_path / "work-a")
    assert done.returncode == ExitCode.USER_ERROR
    field = {"rows": "dataset.uri", "held out": "dataset.evaluation.uri", "base": "model"}[what]
    assert f"InvalidSpec: spec.{field}" in done.stderr
    assert ", and this job began " in done.stderr


@pytest.mark.slow
def test_a_retry_on_another_gpu_keeps_the_method_that_was_chosen(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    path = case(method="Auto", checkpoint=KEPT, training=EXACT)
    assert run_here("run", path, "--work-dir", path.parent / "work").returncode == ExitCode.OK
    shutil.rmtree(path.parent / "out")

    def smaller(spec: LoRAJobSpec, *facts: Any) -> tuple[MethodChoice, ...]:
        auto = spec.method is Method.AUTO
        return (MethodChoice(Method.QLORA, "It does not fit."),) if auto else method_choices(spec, *facts)

    monkeypatch.setattr("tunery_trainer.plan.basis.method_choices", smaller)
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert "Resuming from the checkpoint of step 20" in done.stdout, done.stderr
    resolved = json.loads((path.parent / "out" / "manifest.json").read_text())["lineage"]["resolved"]
    assert (resolved["method"], resolved["methodReason"]) == ("LoRA", "The checkpoint that it goes on from has it.")


@pytest.mark.slow
def test_a_job_that_says_no_more_than_where_it_goes_on_ends_where_the_other_would_have(case: Case) -> None:
    asked = {"lora": {"rank": 4, "alpha": 12, "targetModules": ["q_proj", "o_proj"]}}
    place, straight = first(case, **asked, training=EXACT | {"scheduler": "Linear", "seed": 7, "batchSize": 2})
    # The precision is the device's.
    path = later(case, place / "step-000010", method=None, lora=None, training=None)
    content = kubectl_yaml.load(path.read_text())
    content["spec"]["training"] = {"precision": "Float32"}
    write_manifest(path.parent, content)
    weights, lineage, _ = train(path, "b")
    assert distance(straight, weights) == 0.0
    said = {value["name"]: value for value in lineage["resolved"]["values"]}
    assert (said["lora.rank"]["value"], said["lora.rank"]["source"]) == ("4", "Checkpoint")


def test_a_place_without_a_checkpoint_is_told(case: Case, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run_here("run", later(case, tmp_path / "empty"), "--work-dir", tmp_path / "work-b")
    assert done.returncode == ExitCode.USER_ERROR
    said = f"CheckpointMissing: spec.resumeFrom: {(tmp_path / 'empty').as_uri()} holds no complete checkpoint"
    assert done.stderr.splitlines()[-2] == said


def test_a_damaged_checkpoint_is_passed_over_unless_it_was_named(case: Case, tmp_path: Path) -> None:
    place, straight = first(case)
    (place / "step-000020" / "trainable.safetensors").write_bytes(b"damaged")
    weights, _, printed = train(later(case, place), "b")
    assert "Resuming from the checkpoint of step 15 of LoRAJob" in printed
    assert distance(straight, weights) == 0.0
    shutil.rmtree(tmp_path / "out-b")
    done = run_here("run", later(case, place / "step-000020"), "--work-dir", tmp_path / "work-c")
    assert "holds no intact checkpoint of step 20" in done.stderr

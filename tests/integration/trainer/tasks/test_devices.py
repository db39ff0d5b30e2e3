"""How many devices train a run, in a cluster and on this machine, and what is said of them before and while it does."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunery_api.methods import Method
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import RunIdentity, RunSpec, Task
from tunery_common.errors import TuneryError
from tunery_trainer import tasks
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.process import place
from tunery_trainer.process.environment import VISIBLE_ENV, prepare_environment
from tunery_trainer.process.place import SIMULATED_ENV, Place, counts_of, place_of
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.resuming import resume
from tunery_trainer.resuming.taken_settings import NOTHING, Taken
from tunery_trainer.settings.types import DeviceFacts, DeviceKind
from tunery_trainer.tasks import devices

from kit.story import Case, Run, run_here
from kit.training import spec_of

GPU = DeviceFacts(DeviceKind.CUDA, 80 * 2**30, bfloat16=True)
BAD_NUMBERS = ("two", "2.5", "-1", "0x2", "1000", "17", "1_0", "+2", " 2", "²")
CPU = DeviceFacts(DeviceKind.CPU, None, bfloat16=False)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with three GPUs, as the driver lists them."""
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    monkeypatch.setattr(place, "_GPUS", tmp_path / "gpus")
    for name in (VISIBLE_ENV, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run_of(folder: Path, *, local: bool = True, **blocks: Any) -> RunSpec:
    identity = RunIdentity(kind="LoRAJob", namespace="team", name="x", uid="u")
    uri = (folder / "checkpoints").as_uri()
    return RunSpec(
        identity=identity,
        lora_job=spec_of({"method": "LoRA", **blocks}),
        output_uri="file:///out",
        checkpoint_uri=uri,
        work_dir=str(folder),
        local=local,
    )


@pytest.mark.parametrize(
    ("resources", "counts"),
    [({}, (1, 1)), ({"gpus": 0}, (1, 1)), ({"gpus": 8, "nodes": 2}, (8, 2)), ({"gpus": 0, "nodes": 3}, (1, 3))],
)
def test_in_a_cluster_so_many_train_as_the_manifest_asks_for(
    machine: Path, resources: dict[str, int], counts: tuple[int, int]
) -> None:
    """Preflight's pod has neither the GPUs nor the variables of the pods that train."""
    run = run_of(machine, local=False, resources=resources)
    assert counts_of(run, variables={}) == counts
    found = devices.devices_expected(Workspace(run), spec_of({"resources": resources}), NOTHING)
    assert (found.devices, found.nodes) == counts
    node = {"TUNERY_NODES": str(counts[1]), "TUNERY_MASTER": "x-0.svc", "JOB_COMPLETION_INDEX": str(counts[1] - 1)}
    there = place_of(run, variables=node)
    assert (there.devices, there.nodes, there.node) == (*counts, counts[1] - 1)


@pytest.mark.parametrize(
    ("asked", "shared", "visible", "used"),
    [
        *((1, None, None, 1), (2, None, None, 2), (8, None, None, 3), (3, 12, None, 3), (3, 16, None, 2)),
        *((3, 5, None, 1), (8, None, "2", 1), (8, None, "0,2", 2), (0, None, None, 1)),
    ],
)
def test_without_a_cluster_as_many_gpus_train_as_are_here_and_can_share_a_step(
    machine: Path, asked: int, shared: int | None, visible: str | None, used: int
) -> None:
    variables = {VISIBLE_ENV: visible} if visible else {}
    run = run_of(machine, resources={"gpus": asked, "nodes": 4})
    assert counts_of(run, shared, variables) == (used, 1), "whatever nodes there were to be"
    assert place_of(run, shared, variables).world == used


@pytest.mark.parametrize(
    ("said", "devices"), [("", 0), ("0", 0), ("1", 1), ("16", 16), *((bad, None) for bad in BAD_NUMBERS)]
)
def test_simulated_devices_are_a_number_that_a_manifest_may_ask_for(
    machine: Path, said: str, devices: int | None
) -> None:
    variables = {SIMULATED_ENV: said}
    if devices is not None:
        assert place.simulated(variables) == devices
        assert counts_of(run_of(machine), None, variables) == (devices or 1, 1)
        return
    for local in (True, False):
        with pytest.raises(TuneryError) as refused:
            counts_of(run_of(machine, local=local), None, variables)
        assert refused.value.reason is FailureReason.INVALID_SPEC
        assert refused.value.message == f"TUNERY_SIMULATED_DEVICES must be a whole number from 1 to 16, is {said!r}"
        assert SIMULATED_ENV in refused.value.remedies[0].text


def test_a_wrong_number_of_simulated_devices_is_no_defect(case: Case) -> None:
    done = run_here("run", case(), TUNERY_SIMULATED_DEVICES="two")
    assert done.returncode != ExitCode.OK
    assert "InvalidSpec: TUNERY_SIMULATED_DEVICES must be a whole number from 1 to 16, is 'two'" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_what_is_to_be_shared_the_manifest_says_or_a_checkpoint() -> None:
    for training, taken, shared in (
        ({}, NOTHING, None),
        ({"gradientAccumulation": 6}, Taken(rows=16), 6),
        ({}, Taken(rows=16), 16),
        ({"batchSize": 4}, Taken(rows=16), 4),
    ):
        assert taken.to_share(spec_of({"training": training})) == shared


def test_the_second_task_of_a_process_still_sees_all_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cluster preflight runs before training, and shows itself the first one only."""
    for shown, first, all_of_them in ((None, "0", "0,1,2"), ("5,7", "5", "5,7")):
        with monkeypatch.context() as patch:
            for name in (VISIBLE_ENV, "CUDA_VISIBLE_DEVICES"):
                patch.setenv(name, "")  # and put back
            if shown:
                patch.setenv("CUDA_VISIBLE_DEVICES", shown)
            seen = []
            for _ in ("preflight", "train"):
                prepare_environment(tmp_path, 3)
                seen.append(tuple(devices_shown()))
            assert seen == [(first, all_of_them)] * 2


@pytest.mark.parametrize(
    ("task", "local", "processes"),
    [(Task.PREFLIGHT, False, 1), (Task.TRAIN, False, 3), (Task.PUBLISH, False, 1), (Task.PREFLIGHT, True, 3)],
)
def test_only_processes_that_train_together_share_the_cpus(
    machine: Path, monkeypatch: pytest.MonkeyPatch, task: Task, *, local: bool, processes: int
) -> None:
    """Preflight's pod tokenizes alone; without a cluster training follows in the same process."""
    shared: list[int] = []
    monkeypatch.setattr(tasks, "prepare_environment", lambda folder, gpus, count: shared.append(count))
    tasks._prepare(task, run_of(machine, local=local, resources={"gpus": 3}))
    assert shared == [processes]


def devices_shown() -> list[str]:
    return [os.environ["CUDA_VISIBLE_DEVICES"], os.environ[VISIBLE_ENV]]


@pytest.mark.parametrize(
    ("resources", "facts", "said"),
    [
        ({"gpus": 1}, GPU, []),
        ({"gpus": 3}, replace(GPU, devices=3), ["3 GPUs train together"]),
        (
            {"gpus": 8, "nodes": 2},
            replace(GPU, devices=2),
            [
                "2 GPUs train together",
                "spec.resources.nodes is 2: without a cluster all is trained here, on one node",
                "spec.resources.gpus is 8, and this machine has 3",
                "of 3 only 2, as more could not share an optimizer step evenly",
            ],
        ),
        (
            {"gpus": 0, "nodes": 2},
            CPU,
            ["spec.resources.nodes is 2: without a cluster all is trained here, on one node"],
        ),
    ],
)
def test_fewer_devices_than_the_manifest_asks_for_are_told_with_the_reason(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    resources: dict[str, int],
    facts: DeviceFacts,
    said: list[str],
) -> None:
    monkeypatch.setattr(devices, "actual_device", lambda *_: replace(facts, devices=1))
    monkeypatch.setattr(devices, "device_words", lambda kind: kind.value)
    work, there = Workspace(run_of(machine, resources=resources)), Place(devices=facts.devices)
    reporter = ProgressReporter({})
    assert devices.devices_found(work, there, reporter) == facts
    reporter.close()
    told = [line.partition(" ")[2].strip() for line in capsys.readouterr().out.splitlines()]
    assert told == [facts.kind.value, *said]


def test_the_place_of_a_run_without_a_cluster_follows_its_own_checkpoint(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(machine, resources={"gpus": 3})
    assert devices.place_for(Workspace(run)).world == 3
    monkeypatch.setattr(devices, "with_taken", lambda work: (work.lora_job, Taken(rows=16)))
    assert devices.place_for(Workspace(run)).world == 2
    cluster = run_of(machine, local=False, resources={"gpus": 3})
    assert devices.place_for(Workspace(cluster)).world == 3, "whose manifest stays as it is"


@pytest.mark.slow
def test_preflight_tells_of_the_devices_that_will_train(run_file: Run, tmp_path: Path) -> None:
    asked = {"gpus": 4, "nodes": 2}
    training = {"maxSteps": 10, "gradientAccumulation": None, "batchSize": None}
    path = run_file(own={"gpuMemoryBytes": 24 * 2**30}, resources=asked, training=training)
    words = tmp_path / "words"
    done = run_here("preflight", path, TUNERY_TERMINATION_PATH=str(words))
    assert done.returncode == ExitCode.OK, done.stderr
    told = "Preflight  devices: 8 GPUs on 2 nodes; DDP: each has the whole base. Each GPU has room for the whole base."
    assert told in done.stdout.splitlines()
    assert " GiB on each device, of 24.0 GiB\n" in done.stdout
    resolved = json.loads(words.read_text())["resolved"]
    assert (resolved["devices"], resolved["parallelism"], resolved["method"]) == (8, "DDP", Method.LORA)
    values = {value["name"]: value for value in resolved["values"]}
    passes = values["training.gradientAccumulation"]
    assert int(passes["value"]) % 8 == 0
    assert passes["reason"].startswith("The passes of all 8 devices together: ")


@pytest.mark.slow
def test_without_a_cluster_preflight_counts_the_devices_that_its_own_checkpoint_lets_train(
    run_file: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training follows in the same process, and goes on from there: 3 processes cannot share 4 passes."""
    monkeypatch.setattr(resume, "_own_memo", lambda _: SimpleNamespace(origin=None))
    monkeypatch.setattr(resume, "with_device_taken", lambda spec, _: (spec, Taken(rows=16)))
    path = run_file(own={"local": True}, resources={"gpus": 2}, training={"gradientAccumulation": None})
    done = run_here("preflight", path, TUNERY_SIMULATED_DEVICES="3")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "Preflight  devices: 2 processes" in done.stdout
    monkeypatch.setenv(SIMULATED_ENV, "3")
    assert devices.place_for(Workspace(RunSpec.model_validate_json(path.read_text()))).world == 2


@pytest.mark.slow
def test_a_run_of_several_nodes_is_trained_here_on_one(case: Case) -> None:
    """By its own passes: the result is that of the nodes."""
    path = case(resources={"gpus": 0, "nodes": 2}, training={"maxSteps": 2, "gradientAccumulation": 2})
    done = run_here("run", path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "Devices    spec.resources.nodes is 2: without a cluster all is trained here, on one node" in done.stdout
    assert re.search(
        r"^Memory     about [\d.,]+ [MG]iB of [\d.,]+ [MG]iB; activations kept$", done.stdout, re.MULTILINE
    )
    made = json.loads((path.parent / "out" / "manifest.json").read_text())
    assert made["lineage"]["hyperparameters"]["training.gradientAccumulation"] == "2"
    assert made["lineage"]["resolved"]["devices"] == 1

"""Memory that runs out in a pass: smaller passes of the same optimizer steps, to the same weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTTrainer

from tunery_api.methods import Method
from tunery_api.reasons import ExitCode, FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.local import load_run_spec
from tunery_trainer.losses import objectives
from tunery_trainer.losses.evaluation import Pass, _Passes
from tunery_trainer.team.team import Team
from tunery_trainer.training.recovery import train_to_the_end

from kit import kubectl_yaml
from kit.adapters import distance
from kit.story import Case, environment, make_rows, newest_log, run_here, write_rows
from kit.training import resolved_for

EXACT = {
    "batchSize": 4,
    "gradientAccumulation": 2,
    "learningRate": 1e-3,
    "packing": False,
    "precision": "Float32",
    "optimizer": "AdamW",
}
QUIET = {"rank": 8, "dropout": 0}


class Memory:
    """Memory for so many rows of a pass from a step on; it runs out once their gradients are there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, self.step, self.recomputed_fits = 1000, 0, False
        self.passes: list[tuple[int, list[int]]] = []
        """Step and first tokens, summed, of each row that was trained on."""
        self._pass = SFTTrainer.training_step
        memory = self

        def training_step(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            return memory.take(trainer, model, inputs, *args, **kwargs)

        monkeypatch.setattr(SFTTrainer, "training_step", training_step)

    def take(self, trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Do a pass, or run out of memory at its end, with gradients that are of no step."""
        count, step = len(inputs["input_ids"]), trainer.state.global_step
        saving = self.recomputed_fits and trainer.model.is_gradient_checkpointing
        if count > self.rows and step >= self.step and not saving:
            self._pass(trainer, model, inputs, *args, **kwargs)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        self.passes.append((step, inputs["input_ids"][:, :40].sum(1).tolist()))
        return self._pass(trainer, model, inputs, *args, **kwargs)

    def rows_by_step(self) -> dict[int, list[int]]:
        """Return the rows that each optimizer step saw, sorted."""
        steps: dict[int, list[int]] = {}
        for step, rows in self.passes:
            steps.setdefault(step, []).extend(rows)
        self.passes = []
        return {step: sorted(rows) for step, rows in steps.items()}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Plenty of memory, until a test says otherwise."""
    return Memory(monkeypatch)


def train(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """Train to the end; return the published weights, each resolved setting, and what was printed."""
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    out = path.parent / "out"
    lineage = json.loads((out / "manifest.json").read_text())["lineage"]
    settings = {value["name"]: value for value in lineage["resolved"]["values"]}
    weights = load_file(out / "adapter_model.safetensors")
    return weights, settings | {"loss": lineage["metrics"]["evalLoss"]}, done.stdout


def without_dropout(path: Path) -> None:
    """Leave nothing of LoRA's block but a dropout of 0: what is dropped depends on how a step is split."""
    manifest = kubectl_yaml.load(path.read_text())
    manifest["spec"]["lora"] = {"dropout": 0}
    path.write_text(json.dumps(manifest))


def again(path: Path) -> None:
    """Forget a run and its result."""
    for name in ("out", "work"):
        shutil.rmtree(path.parent / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "fits", "step", "split"),
    [
        pytest.param({}, 2, 7, (2, 4), id="in-the-middle"),
        pytest.param({}, 1, 0, (1, 8), id="at-once-and-twice"),
        pytest.param({"method": "AdaLoRA"}, 2, 7, (2, 4), id="AdaLoRA"),
        pytest.param({"method": "QLoRA"}, 2, 7, (2, 4), id="QLoRA"),
        pytest.param({"training": EXACT | {"optimizer": "AdamW8bit"}}, 2, 7, (2, 4), id="8bit"),
        pytest.param({"training": EXACT | {"groupByLength": True}}, 2, 16, (2, 4), id="by-length"),
        pytest.param({"training": EXACT | {"maxSteps": 28}}, 3, 16, (2, 4), id="second-pass-after-a-short-step"),
    ],
)
def test_the_steps_stay_the_same(
    case: Case, memory: Memory, changes: dict[str, Any], fits: int, step: int, split: tuple[int, int]
) -> None:
    path = case(**({"training": EXACT, "evaluation": {"everySteps": 10}} | changes))
    without_dropout(path)
    straight, planned, _ = train(path)
    rows = memory.rows_by_step()
    again(path)
    memory.rows, memory.step = fits, step
    found, settings, printed = train(path)
    assert memory.rows_by_step() == rows
    assert distance(straight, found) < 1e-6
    assert settings["loss"] == pytest.approx(planned["loss"], rel=1e-6)
    for name, value, before in zip(("batchSize", "gradientAccumulation"), split, ("4", "2"), strict=True):
        said = settings[f"training.{name}"]
        assert (said["value"], said["source"]) == (str(value), "Memory")
        assert f"memory ran out with {2 if fits == 1 else 4} × " in said["reason"]
        assert planned[f"training.{name}"] == {"name": f"training.{name}", "value": before, "source": "Manifest"}
    assert f"going on with {split[0]} × {split[1]} rows" in printed


@pytest.mark.slow
def test_activations_are_recomputed_where_one_row_does_not_fit(case: Case, memory: Memory) -> None:
    asked = EXACT | {"gradientCheckpointing": False, "neftuneNoiseAlpha": 5}
    path = case(lora=QUIET, training=asked)
    memory.rows, memory.step, memory.recomputed_fits = 0, 3, True
    _, settings, _ = train(path)
    assert settings["training.gradientCheckpointing"]["source"] == "Memory"
    assert settings["training.gradientCheckpointing"]["value"] == "true"
    assert settings["training.batchSize"]["value"] == "1"


@pytest.mark.slow
def test_noise_is_not_added_twice_after_memory_ran_out(case: Case, memory: Memory) -> None:
    """At a rate that moves nothing, the training loss of a step tells how much noise its embeddings had."""
    asked = EXACT | {"neftuneNoiseAlpha": 40, "learningRate": 1e-6}
    path = case(lora=QUIET, training=asked, evaluation={"minImprovement": -1}, checkpoint={"keepAfterSuccess": True})
    straight = mean_loss(path)
    again(path)
    memory.rows, memory.step = 2, 1
    assert mean_loss(path) == pytest.approx(straight, rel=0.05)


def mean_loss(path: Path) -> float:
    """Train, and return the mean training loss of the steps from the third on."""
    train(path)
    losses = [entry["loss"] for entry in newest_log(path) if "loss" in entry]
    return sum(losses[2:]) / len(losses[2:])


@pytest.mark.slow
def test_a_new_pod_does_not_try_the_large_pass_again(case: Case, memory: Memory) -> None:
    path = case(lora=QUIET, training=EXACT, checkpoint={"everySteps": 10, "keepAfterSuccess": True})
    memory.rows, memory.step = 2, 7
    first, _, _ = train(path)
    memory.rows_by_step()
    shutil.rmtree(path.parent / "out")
    shutil.rmtree(next((path.parent / "work" / "checkpoints").glob("*/step-000020")))
    second, settings, printed = train(path)
    assert "Resuming from the checkpoint of step 10" in printed
    assert "memory ran out" not in printed
    assert max(len(rows) for _, rows in memory.passes) == 2
    assert "at step 8" in settings["training.batchSize"]["reason"]
    assert distance(first, second) == 0.0


@pytest.mark.slow
def test_one_row_that_does_not_fit_ends_the_job_with_what_was_trained(case: Case, memory: Memory) -> None:
    path = case(lora=QUIET, training=EXACT, checkpoint={"everySteps": 100})
    memory.rows, memory.step = 0, 7
    run, words = path.parent / "run.json", path.parent / "words"
    run.write_text(load_run_spec(path, path.parent / "work", None).model_dump_json(by_alias=True, exclude_unset=True))
    done = run_here("train", run, TUNERY_TERMINATION_PATH=str(words))
    assert done.returncode == ExitCode.RETRYABLE
    assert json.loads(words.read_text())["checkpoint"]["step"] == 7
    assert "OutOfMemory: memory ran out: not even one row of up to 128 tokens fits" in done.stderr
    stored = next((path.parent / "work" / "checkpoints").glob("*/step-000007"))
    assert (stored / "complete.json").exists()
    assert json.loads((stored / "tunery.json").read_text())["split"]["batchSize"] == 1


@pytest.mark.slow
def test_without_a_cluster_nothing_is_said_of_a_container(case: Case, memory: Memory) -> None:
    path = case(lora=QUIET, training=EXACT)
    memory.rows, memory.step = 0, 0
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.RETRYABLE
    message, hint = done.stderr.strip().splitlines()[-2:]
    assert message.startswith("OutOfMemory: memory ran out: not even one row of up to 128 tokens fits at step 1")
    assert hint.startswith("End other processes that use the memory of this machine, and run it again. Or, in the man")
    assert not any(word in message + hint for word in ("container", "resources", "pod"))


@pytest.mark.slow
def test_a_job_that_wants_to_fail_does_so_and_keeps_what_was_trained(case: Case, memory: Memory) -> None:
    """And its remedy, followed to the letter, ends well."""
    asked = EXACT | {"onOutOfMemory": "Fail"}
    path = case(lora=QUIET, training=asked, checkpoint={"everySteps": 100})
    memory.rows, memory.step = 2, 7
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.RETRYABLE
    assert "OutOfMemory: memory ran out at step 8, 4 × 2 rows: CUDA out of memory" in done.stderr
    assert "Omit training.onOutOfMemory: Fail" in done.stderr
    assert "going on with" not in done.stdout
    stored = next((path.parent / "work" / "checkpoints").glob("*/step-000007"))
    source = {"uri": f"file://{stored.parent}"}
    mended = case(lora=QUIET, training=EXACT, resumeFrom=source, output={"uri": f"file://{path.parent}/mended"})
    done = run_here("run", mended, "--work-dir", path.parent / "other")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "Resuming from the checkpoint of step 7" in done.stdout
    assert "going on with 2 × 4 rows" in done.stdout


@pytest.mark.slow
def test_the_most_memory_that_was_held_is_told(case: Case) -> None:
    path = case(training=EXACT)
    train(path)
    told = json.loads((path.parent / "out" / "manifest.json").read_text())["lineage"]["peakBytes"]
    # This process has at least torch and transformers in it, and the machine that it runs on holds it.
    assert 300 * 2**20 < told < 64 * 2**30
    assert "| Peak memory | " in (path.parent / "out" / "README.md").read_text()


@pytest.mark.slow
def test_an_error_outside_of_a_pass_is_not_mended(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SFTTrainer, "_clip_grad_norm", fail)
    done = run_here("run", case(training=EXACT))
    assert "GPUOutOfMemory: the GPU ran out of memory" in done.stderr
    assert "going on with" not in done.stdout


@pytest.mark.slow
def test_the_evaluation_goes_in_halves(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    path = case(training={"batchSize": 8, "maxLength": 512, "packing": False})
    _, plain, _ = train(path)
    again(path)
    forward, sizes = objectives.log_probabilities, []

    def tight(model: Any, batch: Any) -> Any:
        if torch.is_grad_enabled():  # training
            return forward(model, batch)
        sizes.append(len(batch["input_ids"]))
        if len(batch["input_ids"]) > 3:
            raise RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
        return forward(model, batch)

    monkeypatch.setattr(objectives, "log_probabilities", tight)
    _, halved, printed = train(path)
    assert max(sizes) > 3
    assert min(sizes) <= 3
    assert halved["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert "going on with" not in printed, "an evaluation costs training no rows"


LIMITED = """
import resource, sys, torch
from tunery_trainer.training import recovery
from tunery_trainer.cli import main
train = recovery.train_to_the_end
def limited(*arguments):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]) * 2**20, resource.RLIM_INFINITY))
    train(*arguments)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
import tunery_trainer.training.run
tunery_trainer.training.run.train_to_the_end = limited
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_process_that_really_has_no_more_memory_goes_on_with_fewer_rows(case: Case) -> None:
    """Nothing is simulated: the activations of 128 rows alone take more than the system gives."""
    asked = {"batchSize": 128, "gradientAccumulation": 1, "maxSteps": 1, "packing": True, "maxLength": 512}
    path = case(training=asked | {"gradientCheckpointing": False}, evaluation={"minImprovement": -9})
    write_rows(path.parent / "data.jsonl", make_rows(1300))
    # What is given back is given back to the system, not kept for later.
    allocator = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "400", "run", str(path), "--work-dir", str(path.parent / "work")],
        env=environment(**allocator),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == ExitCode.OK, done.stderr
    assert "Memory     memory ran out with 128 × 1 rows at step 1: going on with 64 × 2 rows" in done.stdout
    assert (path.parent / "out" / "manifest.json").exists()


def test_a_base_in_parts_ends_where_memory_runs_out(llama: Path) -> None:
    """The others are in that pass still: whoever went on to smaller ones would wait for them, and they for it."""

    def train(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    training = replace(resolved_for(llama, {"training": {"batchSize": 4}}).training, devices=2, sharded=True)
    state = SimpleNamespace(global_step=7)
    trainer: Any = SimpleNamespace(settings=training, state=state, in_pass=True, train=train)
    with pytest.raises(TuneryError, match=r"at step 8, 4 × .*, with the base spread over the devices: CUDA") as raised:
        train_to_the_end(trainer, None, Method.LORA)
    assert raised.value.reason is FailureReason.OUT_OF_MEMORY
    with pytest.raises(torch.OutOfMemoryError):
        _Passes(torch.nn.Linear(1, 1), [{"input_ids": [1, 2]}], list, Pass(0, team=Team(0, 2, sharded=True))).settle(
            _Hungry()
        )  # type: ignore[arg-type]


class _Hungry:
    """An objective that takes more memory than there is."""

    def totals(self, *_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

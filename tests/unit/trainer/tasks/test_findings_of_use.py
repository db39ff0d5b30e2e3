"""What a run says of its time, its memory and its size, by the real command line: each finding provoked."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch
from trl import SFTTrainer

from tunery_api.reasons import ExitCode
from tunery_trainer.model.collator import Collator
from tunery_trainer.process.memory import MemoryUse
from tunery_trainer.training import diagnosed, diagnosing
from tunery_trainer.training.trl_trainer import AdapterTrainer

from kit.explained import Rows, Train, said, swapped
from kit.story import make_rows


@pytest.mark.slow
def test_too_short_too_few_too_tight(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing, "container_memory", lambda asked: MemoryUse(95, 100))
    done = train(
        make_rows(120),
        dataset={"uri": "file://data.jsonl", "evaluation": {"fraction": 0.01}},
        training={"maxSteps": 12, "gradientAccumulation": 2},
    )
    assert said(done.findings["TooFewSteps"]) == ("Warning", 0, "training.maxSteps", "20")
    assert said(done.findings["EvaluationTooSmall"]) == ("Info", 0, "dataset.evaluation.fraction", "0.067")
    assert done.findings["MemoryTight"].field == "resources.memory"
    results = {name: done.checks[name].result for name in ("GradientAccumulation", "HeldOut", "BatchFits")}
    assert set(results.values()) == {"Warning"}


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_told_with_the_one_that_does(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SFTTrainer.training_step

    def small(self: SFTTrainer, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return plain(self, model, inputs, *args, **more)

    monkeypatch.setattr(SFTTrainer, "training_step", small)
    done = train(swapped(), training={"batchSize": 4, "learningRate": 1e-3})
    assert done.code == ExitCode.OK, done.error
    assert said(done.findings["MicroBatchHalved"]) == ("Info", 0, "training.batchSize", "2")
    assert "Memory ran out with 4 × 1 rows at step 1" in (done.findings["MicroBatchHalved"].message or "")
    assert ", the files that it had mapped among it" in done.card
    # The machine of a test has no limit in its cgroup: it is what the run was told.
    assert "), without page cache" in (done.checks["BatchFits"].message or "")


def padded(count: int = 160) -> Rows:
    """Return rows of which one in eight is long."""
    long = {"completion": "red " * 20}
    return [row | (long if place % 8 == 0 else {}) for place, row in enumerate(make_rows(count))]


@pytest.mark.slow
def test_padding_and_waiting(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come as slowly as a step takes: no disk can be made as slow as that. With packing padding is gone."""
    plain, last = Collator.__call__, [time.monotonic()]

    def slow(self: Collator, chosen: Any) -> dict[str, Any]:
        time.sleep(max(0.02, time.monotonic() - last[0]))
        last[0] = time.monotonic()
        return plain(self, chosen)

    with monkeypatch.context() as patch:
        patch.setattr(Collator, "__call__", slow)
        loop = {"maxSteps": 52, "batchSize": 8, "learningRate": 1e-4}
        done = train(padded(), evaluation={"everySteps": 90}, training=loop)
    assert said(done.findings["MuchPadding"])[2:] == ("training.packing", "true")
    assert said(done.findings["WaitingForData"])[2:] == ("resources.cpu", None)
    assert done.checks["Padding"].result == "Warning"
    packed = train(padded(), "packed", training={"maxSteps": 8, "packing": True})
    assert packed.checks["Padding"].result == "Passed"


@pytest.mark.slow
def test_a_gpu_that_is_half_empty_and_slows_down(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that is not here, with 30 % of its memory in use, which is throttled after 26 steps."""
    for module, name in ((diagnosed, "Subject"), (diagnosed, "Watched")):
        plain_type = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *, of=plain_type, **facts: of(**facts | {"on_gpu": True}))
    monkeypatch.setattr(diagnosing, "_gpu_memory", lambda: MemoryUse(30, 100))
    plain = AdapterTrainer.training_step
    took: list[float] = []

    def throttled(self: AdapterTrainer, *args: Any, **more: Any) -> Any:
        began = time.monotonic()
        result = plain(self, *args, **more)
        if self.state.global_step < 26:
            took.append(time.monotonic() - began)
        else:
            time.sleep(3 * statistics.median(took[10:]))
        return result

    monkeypatch.setattr(AdapterTrainer, "training_step", throttled)
    loop = {"maxSteps": 78, "batchSize": 2, "gradientAccumulation": 2, "learningRate": 1e-4}
    done = train(swapped(), evaluation={"everySteps": 90}, training=loop)
    assert said(done.findings["SlowingDown"])[0] == "Info"
    assert "times as long as at first, with as many tokens" in (done.findings["SlowingDown"].message or "")
    assert said(done.findings["RoomForLargerBatch"]) == ("Info", 78, "training.batchSize", "4")
    assert "training.gradientAccumulation: 1 (now 2)" in (done.findings["RoomForLargerBatch"].message or "")
    assert done.checks["BatchFits"].message == "training used 30 B of 100 B (30 %), without page cache"

"""A run that was cut and resumed from its checkpoint ends with the weights of one that was not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from tunery_api.training import CheckpointSpec
from tunery_trainer.training.callbacks import CheckpointCallback
from tunery_trainer.training.weights import trained_state

from gpu.models import write_model
from gpu.runs import Run, adapted, difference, packed_rows, prepare, random_examples, scratch, trainer_for
from gpu.verdicts import Case, Check, Machine, Outcome, judged

_HALF: Final = 4
_LAYERS: Final = 4
"""Enough: a checkpoint knows nothing of layers."""

State = dict[str, torch.Tensor]


def _compare(machine: Machine, method: str, quantization: str | None) -> Outcome:
    """Compare two whole runs and a resumed one; passed where that differs no more than the two do."""
    length = 64 if machine.dry else 1024
    training = {
        "precision": "BFloat16",
        "maxSteps": 2 * _HALF,
        "batchSize": 2,
        "gradientAccumulation": 1 if machine.dry else 2,
        "maxLength": length,
        "learningRate": 1e-3,
    }
    blocks: dict[str, Any] = {"method": method, "training": training}
    if quantization:
        blocks["quantization"] = {"type": quantization}
    folder = write_model(machine, "1B", "-few-layers", num_hidden_layers=2 if machine.dry else _LAYERS)
    run = prepare(folder, blocks, packed_rows(random_examples(64, length // 2), length))
    with scratch(machine) as first, scratch(machine) as second:
        whole = _train(machine, run, first, None)
        again = _train(machine, run, second, None)
        resumed = _train(machine, run, second, first / f"checkpoint-{_HALF}")
    noise, found = _apart(again, whole), _apart(resumed, whole)
    return judged(
        {"the resumed run ends elsewhere": not found <= max(2 * noise, 1e-6)},
        two_whole_runs_differ_by=noise,
        the_resumed_one_by=found,
    )


def _train(machine: Machine, run: Run, folder: Path, checkpoint: Path | None) -> State:
    model = adapted(machine, run)
    trainer = trainer_for(machine, run, model, folder)
    spec = CheckpointSpec.model_validate({"everySteps": _HALF})
    trainer.add_callback(CheckpointCallback(spec, lambda *_: None))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trained_state(model)


def _apart(one: State, other: State) -> float:
    return max(difference(tensor, other[name]) for name, tensor in one.items())


def _cases(machine: Machine) -> Mapping[str, Case]:
    kinds = {"LoRA": ("LoRA", None), "QLoRA NF4": ("QLoRA", "NF4"), "AdaLoRA": ("AdaLoRA", None)}
    if machine.dry:
        del kinds["LoRA"]
    return {
        name: Case(partial(_compare, method=method, quantization=kind), needs_gpu=False)
        for name, (method, kind) in kinds.items()
    }


CHECK: Final = Check("resumed = straight", _cases)

"""A GPU that is too small says so: in the loop and while loading, and never that the model is to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from tunery_api.reasons import FailureReason
from tunery_trainer.process.failures import explain

from gpu.models import load
from gpu.runs import Run, adapted, packed_rows, random_examples, scratch, shaped, trainer_for
from gpu.verdicts import Case, Check, Machine, Outcome, Verdict, judged

_ROOM: Final = 256 * 2**20
"""Bytes that are left; a step of four rows of 2,048 tokens takes more."""


def _run(machine: Machine) -> Run:
    training = {"precision": "BFloat16", "maxSteps": 2, "batchSize": 4, "gradientCheckpointing": False}
    return shaped(machine, "1B", {"training": training}, packed_rows(random_examples(64, 2048), 2048))


def _training(machine: Machine) -> Outcome:
    if machine.dry:
        return Outcome(Verdict.NEEDS_GPU)
    run = _run(machine)
    with scratch(machine) as folder:
        trainer = trainer_for(machine, run, adapted(machine, run), folder)
        return _ends(trainer.train)


def _loading(machine: Machine) -> Outcome:
    if machine.dry:
        return Outcome(Verdict.NEEDS_GPU)
    run = _run(machine)
    with scratch(machine):
        return _ends(lambda: load(run.folder, run.plan.settings, machine.device))


def _ends(body: Callable[[], Any]) -> Outcome:
    """Run `body` where it cannot fit; passed where the trainer calls it GPUOutOfMemory."""
    try:
        with _little_room():
            body()
    except Exception as error:  # noqa: BLE001 (which one it is, is what is asked)
        failure = explain(error)
        found = {"reason": failure.reason.value, "message": failure.message, "type": type(error).__name__}
        return judged({"it has another reason": failure.reason is not FailureReason.GPU_OUT_OF_MEMORY}, **found)
    return Outcome(Verdict.FAILED, words="it fitted")


@contextmanager
def _little_room() -> Iterator[None]:
    """Let this process have `_ROOM` more than it has now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + _ROOM) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


CHECK: Final = Check("out of memory", lambda machine: {"in training": Case(_training), "in loading": Case(_loading)})

"""A real loss curve: a real model on real rows, by the real command line."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from gpu.runs import scratch
from gpu.story import complaints, tell, write_job
from gpu.verdicts import Case, Check, Machine, Outcome, Verdict, judged


def _learn(machine: Machine, method: str) -> Outcome:
    if machine.model is None or machine.data is None:
        return Outcome(Verdict.NOT_GIVEN, words="name a model's folder by --model, and its rows by --data")
    training: dict[str, Any] = {"maxSteps": 4 if machine.dry else 200}
    if machine.dry:
        training |= {"batchSize": 2, "gradientAccumulation": 1, "maxLength": 128}
    blocks = {"method": method, "training": training, "resources": {"gpus": 0 if machine.dry else 1}}
    with scratch(machine) as folder:
        found = tell(write_job(folder, machine.model, machine.data, blocks))
    return judged(complaints(found, machine.device), **found)


def _cases(machine: Machine) -> Mapping[str, Case]:
    return {method: Case(partial(_learn, method=method)) for method in ("LoRA", "QLoRA")}


CHECK: Final = Check("a real loss curve", _cases)

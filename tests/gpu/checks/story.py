"""A LoRAJob from manifest to published adapter by the real command line, on a small model that it can teach."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from gpu.runs import scratch
from gpu.story import complaints, tell, write_job, write_rows
from gpu.verdicts import Case, Check, Machine, Outcome, judged
from tools.cluster.tiny import make_tiny_model


def _run(machine: Machine, blocks: dict[str, Any]) -> Outcome:
    training = {"maxSteps": 20, "learningRate": 1e-2, "batchSize": 4, "gradientAccumulation": 1, "maxLength": 256}
    resources = {"gpus": 0 if machine.dry else 1}
    with scratch(machine) as folder:
        model = make_tiny_model(folder / "model")
        job = write_job(
            folder, model, write_rows(folder / "rows.jsonl"), {"training": training, "resources": resources} | blocks
        )
        found = tell(job)
    return judged(complaints(found, machine.device), **found)


def _cases(machine: Machine) -> Mapping[str, Case]:
    lora = {"LoRA": Case(partial(_run, blocks={"method": "LoRA"}), needs_gpu=False)}
    qlora = {"QLoRA": Case(partial(_run, blocks={"method": "QLoRA"}), needs_gpu=False)}
    return lora if machine.dry else lora | qlora


CHECK: Final = Check("a whole run by the command line", _cases)

"""Every method learns by every preference task, in float32 and in bfloat16: none has to be refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tunery_trainer.losses.objectives import objective_of

from kit.preferences import Pass, begun, prepared, resolved_task, trainer_on

METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA saved head": {"lora": {"modulesToSave": ["lm_head"]}},
    "LoRA PiSSA": {"lora": {"init": "PiSSA"}},
    "LoRA EVA": {"lora": {"init": "EVA"}},
    "DoRA": {},
    "QLoRA": {},
    "QLoRA LoftQ": {"lora": {"init": "LoftQ"}},
    "QDoRA": {},
    "AdaLoRA": {"adalora": {"initialRank": 6, "targetRank": 4, "warmupSteps": 1, "finalSteps": 2}},
    "IA3": {},
    "PrefixTuning": {},
    "PromptTuning": {},
}
RATES = {"IA3": 1e-1, "PromptTuning": 3e-1, "PrefixTuning": 1e-1}
DTYPES = {"Float32": torch.float32, "BFloat16": torch.bfloat16}


CASES = [(name, "DPO", precision) for name in METHODS for precision in DTYPES]
CASES += [
    (name, task, "BFloat16")
    for name in ("LoRA", "QLoRA", "AdaLoRA", "IA3", "PrefixTuning", "PromptTuning")
    for task in ("ORPO", "KTO")
]


@pytest.mark.slow(fast=["LoRA-DPO-Float32"])
@pytest.mark.parametrize(("name", "task", "precision"), CASES)
def test_every_method_learns_what_is_preferred(
    llama: Path, tmp_path: Path, name: str, task: str, precision: str
) -> None:
    method = name.split()[0]
    training = {"precision": precision, "maxSteps": 6, "batchSize": 4, "learningRate": RATES.get(method, 1e-2)}
    resolved = resolved_task(llama, task, method=method, **{"training": training} | METHODS[name])
    data, how = prepared(task), Pass(pad_token_id=0, dtype=DTYPES[precision])
    model, rows = begun(llama, resolved, replace(data, evaluation=data.train), how)
    objective = objective_of(resolved)
    before = rows.measure(model, objective, how).metrics
    trainer = trainer_on(llama, resolved, (model, rows), tmp_path)
    trainer.train()
    after = rows.measure(model, objective, how).metrics
    assert after["loss"] < before["loss"]
    assert after["reward_margin"] > before["reward_margin"]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    # A step of KTO may have answers of one kind only, between which there is no margin.
    assert all(math.isfinite(entry[part]) for entry in logged for part in ("loss", "reward_accuracy"))
    assert {str(p.dtype) for p in model.parameters() if p.requires_grad} == {"torch.float32"}

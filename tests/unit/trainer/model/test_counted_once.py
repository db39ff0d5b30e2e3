"""What remembers the counts of the other tests' estimates (tests/kit) asks anew for all that a count depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tunery_api.methods import QuantizationType
from tunery_trainer.model.live_bytes import Pass, count
from tunery_trainer.model.memory import layers_of
from tunery_trainer.model.outline import outline

from kit.counted_once import counted_once, question

PASS = Pass(rows=2, length=64, recompute=False)
PASSES = [
    PASS,
    replace(PASS, rows=3),
    replace(PASS, length=65),
    replace(PASS, recompute=True),
    replace(PASS, dtype=torch.float32),
    replace(PASS, masked=False),
    replace(PASS, on_gpu=False),
    replace(PASS, plain=True),
]


class Counting:
    """Counts as the trainer does, and how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, *asked: Any) -> Any:
        self.times += 1
        return count(*asked)


def adapter(folder: Path, **options: Any) -> tuple[PeftModel, torch.nn.ModuleList]:
    """Return LoRA on the outline of a model, and its layers."""
    found = outline(folder)
    config = LoraConfig(**{"r": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options)
    model = get_peft_model(found.fresh(), config).train()
    return model, layers_of(model, found)


@pytest.mark.slow
def test_what_is_remembered_is_what_is_counted(tiny_model: Path, tmp_path: Path) -> None:
    counting = Counting()
    remembering = counted_once(counting)
    (tmp_path / "elsewhere").symlink_to(tiny_model)
    for how in PASSES:
        first, again = adapter(tiny_model), adapter(tmp_path / "elsewhere")
        assert remembering(*first, how) == remembering(*again, how) == count(*again, how)
    assert counting.times == len(PASSES)


def test_all_that_changes_a_count_is_asked_anew(tiny_model: Path, llama: Path) -> None:
    plain = adapter(tiny_model)
    frozen, half, evaluated, eight_bit = (adapter(tiny_model) for _ in range(4))
    next(p for p in frozen[0].parameters() if p.requires_grad).requires_grad_(False)
    half[0].half()
    evaluated[0].eval()
    weight = eight_bit[0].get_base_model().get_submodule("model.layers.0.mlp.up_proj").weight
    asked = [
        *(question(*plain, how) for how in PASSES),
        question(*adapter(tiny_model, r=4), PASS),
        question(*adapter(tiny_model, target_modules=["v_proj"]), PASS),
        question(*adapter(tiny_model, use_dora=True), PASS),
        question(*adapter(tiny_model, lora_dropout=0.5), PASS),
        question(*adapter(llama), PASS),
        *(question(*changed, PASS) for changed in (frozen, half, evaluated)),
        *(
            question(*eight_bit, replace(PASS, quantized={id(weight): kind}))
            for kind in (QuantizationType.INT8, QuantizationType.NF4)
        ),
    ]
    assert len(set(asked)) == len(asked)

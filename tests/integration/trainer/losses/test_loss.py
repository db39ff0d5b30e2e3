"""The loss that adapters learn from: the same packed and alone, and with gradients after an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tunery_api.lorajob import LoRAJobSpec
from tunery_trainer.adapter.attach import attach
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.losses.answers import content
from tunery_trainer.losses.evaluation import Pass, held_out_loss, measure
from tunery_trainer.losses.objectives import Sft
from tunery_trainer.model.collator import Collator
from tunery_trainer.model.load import load_base, load_tokenizer, model_facts
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import DeviceFacts, DeviceKind

CPU = DeviceFacts(DeviceKind.CPU, None, bfloat16=True)
LENGTHS = (9, 17, 5)


def adapted(folder: Path, precision: str = "Float32", **blocks: Any) -> Any:
    """Return the tiny model with an adapter whose weights are not those it starts with."""
    raw = {"model": {"uri": "s3://m/base"}, "dataset": {"uri": "s3://d/rows"}, "training": {"precision": precision}}
    spec = LoRAJobSpec.model_validate(json.loads(json.dumps(raw | blocks)))
    resolved = resolve(spec, model_facts(folder), CPU, method_choices(spec, 500, CPU)[0])
    model = attach(load_base(folder, resolved, "cpu"), resolved, MethodContext(load_tokenizer(folder), 10))
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    return model


def examples() -> list[dict[str, Any]]:
    """Return rows of several lengths."""
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 250, (length,), generator=draw).tolist() for length in LENGTHS]
    return [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids]


def packed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows in one, as the data layer packs them."""
    joined = {name: [value for row in rows for value in row[name]] for name in ("input_ids", "labels")}
    return {**joined, "seq_lengths": [len(row["input_ids"]) for row in rows]}


@pytest.mark.parametrize("method", ["LoRA", "DoRA", "IA3"])
def test_packed_loss_is_that_of_single_rows(tiny_model: Path, method: str) -> None:
    model, rows = adapted(tiny_model, method=method), examples()
    alone = [held_out_loss(model, [row], 0) * (len(row["input_ids"]) - 1) for row in rows]
    expected = sum(alone) / sum(length - 1 for length in LENGTHS)
    assert held_out_loss(model, [packed(rows)], 0) == pytest.approx(expected, abs=1e-5)
    torch_loss = model.eval()(**Collator(0)([packed(rows)])).loss.item()
    assert torch_loss == pytest.approx(expected, abs=1e-5)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of one training step."""
    model.zero_grad()
    model.train()
    torch.manual_seed(0)
    model(**Collator(0)(examples())).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def test_copies_of_a_row_are_one_observation_with_what_all_of_them_add(tiny_model: Path) -> None:
    model, (one, other, third) = adapted(tiny_model), examples()
    relabelled = {"input_ids": one["input_ids"], "labels": [-100, -100, *one["labels"][2:]]}
    rows = [one, other, one, third, relabelled, other, one]
    alone = measure(model, [one, other, third, relabelled], Sft(), Pass(0)).rows
    found = measure(model, rows, Sft(), Pass(0)).rows
    assert found.counts == (24.0, 32.0, 4.0, 7.0)
    times = (3, 2, 1, 1)
    assert found.sums == pytest.approx([loss * count for loss, count in zip(alone.sums, times, strict=True)], rel=1e-5)
    assert found.loss == pytest.approx(held_out_loss(model, rows, 0))


def test_rows_that_a_task_tells_apart_are_no_copies() -> None:
    pair = {"input_ids": [1, 2], "labels": [-100, 2], "rejected_input_ids": [1, 3], "rejected_labels": [-100, 3]}
    liked = {"input_ids": [1, 2], "labels": [-100, 2], "desirable": True}
    different = [pair, pair | {"rejected_input_ids": [1, 4]}, liked, liked | {"desirable": False}, packed([pair])]
    assert len({content(row) for row in different}) == len(different)
    assert content(pair | {"reference": [-1.5, -2.5], "row": 3}) == content(pair)
    assert content(liked | {"mismatched_with": 7}) == content(liked)


def test_an_evaluation_takes_no_gradient_from_4_bit_layers(tiny_model: Path) -> None:
    """On a CPU with AVX512-BF16 bitsandbytes changes its weights' layout in evaluation, to one without a backward."""
    model = adapted(tiny_model, "BFloat16", method="QLoRA", lora={"rank": 4, "dropout": 0})
    before = gradients(model)
    held_out_loss(model, examples(), 0)
    after = gradients(model)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name
        assert gradient.abs().max() > 0, name

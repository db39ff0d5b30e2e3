"""Specs, settings and runs of a few steps on the tiny models, as the loop trains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset

from tunery_api.lorajob import LoRAJobSpec
from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.model.load import load_base, load_tokenizer, model_facts
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, RunSettings
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts

from kit.tiny_models import VOCABULARY

CPU: Final = DeviceFacts(DeviceKind.CPU, None, bfloat16=False)


def spec_of(blocks: Mapping[str, Any]) -> LoRAJobSpec:
    """A spec with `blocks`, computed in float32."""
    base = {"model": {"uri": "s3://models/base"}, "dataset": {"uri": "s3://data/rows.jsonl"}}
    training = {"precision": "Float32", **blocks.get("training", {})}
    return LoRAJobSpec.model_validate(base | dict(blocks) | {"training": training})


def resolved_for(folder: Path, blocks: Mapping[str, Any], rows: int = 500) -> RunSettings:
    spec, facts = spec_of(blocks), model_facts(folder)
    return resolve(spec, facts, CPU, method_choices(spec, rows, CPU, facts.stored)[0])


def token_rows(seed: int, rows: int = 2, length: int = 16) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def batches() -> list[dict[str, torch.Tensor]]:
    rows = [token_rows(seed, rows=4, length=32) for seed in range(4)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]


def start_for(folder: Path, steps: int = 12) -> MethodContext:
    return MethodContext(load_tokenizer(folder), total_steps=steps, batches=batches())


@dataclass(frozen=True)
class Run:
    """An adapter after a few steps."""

    model: Any
    resolved: RunSettings
    losses: list[float]

    def logits(self) -> torch.Tensor:
        return logits_of(self.model)


def train(folder: Path, blocks: Mapping[str, Any], steps: int = 12, learning_rate: float = 0.02) -> Run:
    """Attach the adapter that `blocks` ask for and train it for `steps` on one batch, as the loop does."""
    resolved = resolved_for(folder, blocks)
    model = attach(load_base(folder, resolved, "cpu"), resolved, start_for(folder, steps))
    return Run(model, resolved, take_steps(model, resolved, steps, learning_rate))


def take_steps(model: Any, resolved: RunSettings, steps: int, learning_rate: float = 0.02) -> list[float]:
    hooks = training_hooks(model, resolved)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    ids = token_rows(7)
    losses = []
    model.train()
    for step in range(1, steps + 1):
        loss = model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        if hooks:
            hooks.after_step(model, step)
        optimizer.zero_grad()
    return losses


def loop(folder: Path, place: Path, blocks: dict[str, Any], steps: int = 6) -> tuple[Any, float, float]:
    """Train with the real loop; return the model and its loss before and after."""
    resolved = resolved_for(folder, blocks)
    training = replace(resolved.training, learning_rate=0.02, batch_size=2, gradient_accumulation=1)
    model = attach(load_base(folder, resolved, "cpu"), resolved, start_for(folder, steps))
    before, ids = loss_of(model), token_rows(7).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    settings = LoopSettings(training, total_steps=steps, keep_checkpoints=1, on_gpu=False)
    hooks = training_hooks(model, resolved)
    trainer = AdapterTrainer(model, settings, LoopParts(rows, load_tokenizer(folder), place, None, hooks))
    trainer.train()
    return model, before, loss_of(model)


@torch.no_grad()
def loss_of(model: Any) -> float:
    rows = token_rows(7)
    return float(model.eval()(input_ids=rows, labels=rows, use_cache=False).loss)


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    """Logits on rows that training has not seen, shape [2, 16, VOCABULARY]."""
    model.eval()
    ids = token_rows(9)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[:, -ids.shape[1] :]  # without those of virtual tokens

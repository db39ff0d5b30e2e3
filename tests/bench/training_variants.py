"""The four ways to train that bench.training compares, on one set of examples."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tunery_api.lorajob import LoRAJobSpec
from tunery_trainer.adapter.attach import attach
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.data.pack import pack
from tunery_trainer.model.load import load_base, load_tokenizer, model_facts
from tunery_trainer.model.quantization import DTYPES, bitsandbytes_config
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, RunSettings
from tunery_trainer.team.team import ALONE, Team
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts

from tools.cluster import dataset, model

RATE: Final = 1e-4
MEAN_EXAMPLE: Final = 256
Measured = tuple[list[float], list[int], list[float]]
"""Of each step: when it ended, the tokens of its examples, and its loss."""


@dataclass(frozen=True)
class Case:
    """What is trained, and on what."""

    resolved: RunSettings
    examples: list[list[int]]
    length: int


def prepared(method: str, precision: str, length: int, steps: int) -> Case:
    """Return a run on examples of 128 to 384 tokens of the demo's texts, enough for so many packed rows."""
    spec = LoRAJobSpec.model_validate(
        {
            "model": {"uri": "s3://m/base"},
            "dataset": {"uri": "s3://d/rows"},
            "method": method,
            "lora": {"dropout": 0},
            "training": {
                "precision": precision,
                "maxLength": length,
                "maxSteps": steps,
                "batchSize": 1,
                "gradientAccumulation": 1,
                "learningRate": str(RATE),
                "optimizer": "AdamW",
                "scheduler": "Constant",
                "warmup": 0,
                "gradientCheckpointing": False,
                "loss": "All",
            },
        }
    )
    device = DeviceFacts(DeviceKind.CPU, None, bfloat16=precision == "BFloat16")
    resolved = resolve(spec, model_facts(model.ensure()), device, method_choices(spec, 1000, device)[0])
    tokenizer = load_tokenizer(model.ensure())
    stream = [token for pair in dataset.pairs() for token in tokenizer(" ".join(pair) + "\n").input_ids]
    draw, examples, at = random.Random(0), [], 0
    while sum(map(len, examples)) < (steps + 1) * length:
        size = draw.randint(128, 384)
        examples.append((stream * 8)[at : at + size])
        at += size
    return Case(resolved, examples, length)


def packed_rows(case: Case) -> Dataset:
    """Return full rows of several examples, as the data layer packs them."""
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for sequence in pack([len(example) for example in case.examples], case.length):
        joined = [token for index in sequence for token in case.examples[index]]
        rows["input_ids"].append(joined)
        rows["labels"].append(joined)
        rows["seq_lengths"].append([len(case.examples[index]) for index in sequence])
    return Dataset.from_dict(rows)


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(self._now())


def _adapted(case: Case) -> Any:
    base = load_base(model.ensure(), case.resolved, "cpu")
    return attach(base, case.resolved, MethodContext(load_tokenizer(model.ensure()), 1))


def _plain(case: Case) -> Any:
    """Return the model with the same adapter as a user of TRL loads it: masked attention, nothing of ours."""
    quantization = case.resolved.quantization
    base = AutoModelForCausalLM.from_pretrained(
        model.ensure(),
        dtype=DTYPES[case.resolved.training.precision.value],
        **({"quantization_config": bitsandbytes_config(quantization)} if quantization else {}),
    )
    return attach(base, case.resolved, MethodContext(load_tokenizer(model.ensure()), 1))


def _result(trainer: Any, clock: Clock, tokens: list[int]) -> Measured:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.times, tokens, losses


def ours(
    case: Case, folder: Path, steps: int, now: Callable[[], float], among: tuple[Team, int] = (ALONE, 1)
) -> Measured:
    """The product's loop, `among` those who train together, and the passes of a step of all of them."""
    rows, clock, (team, passes) = packed_rows(case), Clock(now), among
    settings = replace(
        case.resolved.training, max_steps=steps, gradient_checkpointing=False, gradient_accumulation=passes
    )
    loop = LoopSettings(settings, steps, keep_checkpoints=1, on_gpu=False)
    parts = LoopParts(rows, load_tokenizer(model.ensure()), folder, None, team=team)
    trainer = AdapterTrainer(_adapted(case), loop, parts)
    trainer.add_callback(clock)
    trainer.train()
    return _result(trainer, clock, [case.length] * steps)


def _config(case: Case, folder: Path, steps: int, **more: Any) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        max_grad_norm=case.resolved.training.max_grad_norm,
        bf16=case.resolved.training.precision.value == "BFloat16",
        use_cpu=True,
        ddp_find_unused_parameters=False,  # several processes are faster so
        gradient_checkpointing=False,
        seed=case.resolved.training.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        **more,
    )


def trl_packed(case: Case, folder: Path, steps: int, now: Callable[[], float]) -> Measured:
    """TRL's SFTTrainer on the same rows, padding-free, as its packing strategy `bfd` makes them."""
    clock = Clock(now)
    config = _config(case, folder, steps, packing=True, packing_strategy="bfd", per_device_train_batch_size=1)
    trainer = SFTTrainer(
        _plain(case), config, train_dataset=packed_rows(case), processing_class=load_tokenizer(model.ensure())
    )
    trainer.add_callback(clock)
    trainer.train()
    return _result(trainer, clock, [case.length] * steps)


def trl_padded(case: Case, folder: Path, steps: int, now: Callable[[], float]) -> Measured:
    """TRL's SFTTrainer on the same examples, as many in a batch as fit into a row on average."""
    clock, size = Clock(now), max(1, case.length // MEAN_EXAMPLE)
    rows = Dataset.from_dict({"input_ids": case.examples, "labels": case.examples})
    config = _config(case, folder, steps, packing=False, padding_free=False, per_device_train_batch_size=size)
    trainer = _Counting(_plain(case), config, train_dataset=rows, processing_class=load_tokenizer(model.ensure()))
    trainer.add_callback(clock)
    trainer.train()
    return _result(trainer, clock, trainer.tokens)


class _Counting(SFTTrainer):  # type: ignore[misc]
    """Counts the tokens of each step's examples."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tokens: list[int] = []

    def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **options: Any) -> Any:
        self.tokens.append(int(inputs["attention_mask"].sum()))
        return super().training_step(model, inputs, *more, **options)


def bare(case: Case, folder: Path, steps: int, now: Callable[[], float]) -> Measured:
    """Forward, backward and AdamW, nothing else: one example as long as a row, no padding and no mask."""
    adapted = _plain(case).train()
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    stream = [token for example in case.examples for token in example]
    half = case.resolved.training.precision.value == "BFloat16"
    times, losses = [], []
    for step in range(steps):
        ids = torch.tensor([stream[step * case.length : (step + 1) * case.length]])
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(now())
        losses.append(loss.item())
    return times, [case.length] * steps, losses

"""Runs of a few steps on a tiny model, of one process or of several, for processes that are started for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.model.load import load_base, load_tokenizer
from tunery_trainer.model.sharding import shard
from tunery_trainer.team.team import Team
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts
from tunery_trainer.training.weights import trained_state

from kit.training import resolved_for, start_for, token_rows

ROWS = 61
"""In passes of two they cannot be dealt out evenly, and the last one has one row."""
STEPS = 10
PASSES = 4
_DROPOUT = ("LoRA", "QLoRA", "DoRA", "AdaLoRA")

METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"method": "DoRA"},
    "AdaLoRA": {"method": "AdaLoRA", "adalora": {"initialRank": 6, "targetRank": 4}},
    "IA3": {"method": "IA3"},
    "PromptTuning": {"method": "PromptTuning"},
    "PrefixTuning": {"method": "PrefixTuning"},
    "PiSSA": {"lora": {"init": "PiSSA"}},
    "OLoRA": {"lora": {"init": "OLoRA"}},
    "EVA": {"lora": {"init": "EVA"}},
    "saved head": {"lora": {"modulesToSave": ["lm_head"]}},
    "QLoRA": {"method": "QLoRA"},
}


class Trained(NamedTuple):
    losses: list[float]
    norms: list[float]
    tokens: int
    state: dict[str, torch.Tensor]


def train(llama: Path, blocks: dict[str, Any], team: Team, folder: Path) -> Trained:
    lora = {"dropout": "0", **blocks.get("lora", {})} if blocks.get("method", "LoRA") in _DROPOUT else {}
    training = {
        "maxSteps": STEPS,
        "batchSize": 2,
        "packing": False,
        "gradientAccumulation": PASSES,
        **blocks.get("training", {}),
    }
    spec = blocks | {"training": training} | ({"lora": lora} if lora else {})
    resolved = resolved_for(llama, spec)
    torch.manual_seed(1)
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, STEPS))
    team.share_from_leader(p.data for p in model.parameters() if p.requires_grad)
    if team.sharded:
        shard(model, team.nodes, "cpu")
    ids = token_rows(5, rows=ROWS).tolist()
    tokenizer = load_tokenizer(llama)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    parts = LoopParts(
        Dataset.from_dict({"input_ids": ids, "labels": ids}),
        tokenizer,
        folder,
        None,
        training_hooks(model, resolved),
        team=team,
    )
    loop = LoopSettings(replace(resolved.training, gradient_checkpointing=False), STEPS, 1, on_gpu=False)
    trainer = AdapterTrainer(model, loop, parts)
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    state = {name: tensor for name, tensor in trained_state(model).items()}
    return Trained([e["loss"] for e in told], [e["grad_norm"] for e in told], trainer.tokens_seen, state)

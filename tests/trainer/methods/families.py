"""Tiny random models of eight families, with a tokenizer, and the specs and runs that the tests share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tunery_api.lorajob import LoRAJobSpec
from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.model.load import load_base, load_tokenizer, model_facts
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, Resolved
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts, LoopSettings

VOCABULARY: Final = 128
CPU: Final = DeviceFacts(DeviceKind.CPU, None, bfloat16=False)

COMMON: Final[dict[str, Any]] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
MODERN: Final[dict[str, Any]] = COMMON | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "llama": MODERN,
    "mistral": MODERN,
    "qwen3": MODERN,
    "gemma": MODERN,
    "phi": {name: value for name, value in MODERN.items() if name != "head_dim"},
    "gpt2": COMMON | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "falcon": COMMON
    | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256},
    "bloom": COMMON | {"hidden_size": 64, "n_layer": 2, "n_head": 4},
}


def write_family(folder: Path, family: str, **changes: Any) -> Path:
    """Write a random model of `family` with its tokenizer into `folder`."""
    return write_model(folder, AutoConfig.for_model(family, **(FAMILIES[family] | changes)), AutoModelForCausalLM)


def write_model(folder: Path, config: Any, auto: Any) -> Path:
    """Write a random model of `config`, built by the auto class `auto`, with its tokenizer into `folder`."""
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)  # weights as small as a fresh model's give every token the same chance
    model.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    return folder


def spec_of(blocks: Mapping[str, Any]) -> LoRAJobSpec:
    """A spec with `blocks`, computed in float32."""
    base = {"model": {"uri": "s3://models/base"}, "dataset": {"uri": "s3://data/rows.jsonl"}}
    training = {"precision": "Float32", **blocks.get("training", {})}
    return LoRAJobSpec.model_validate(base | dict(blocks) | {"training": training})


def resolved_for(folder: Path, blocks: Mapping[str, Any], rows: int = 500) -> Resolved:
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
    resolved: Resolved
    losses: list[float]

    def logits(self) -> torch.Tensor:
        return logits_of(self.model)


def train(folder: Path, blocks: Mapping[str, Any], steps: int = 12, learning_rate: float = 0.02) -> Run:
    """Attach the adapter that `blocks` ask for and train it for `steps` on one batch, as the loop does."""
    resolved = resolved_for(folder, blocks)
    model = attach(load_base(folder, resolved, "cpu"), resolved, start_for(folder, steps))
    return Run(model, resolved, take_steps(model, resolved, steps, learning_rate))


def take_steps(model: Any, resolved: Resolved, steps: int, learning_rate: float = 0.02) -> list[float]:
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
    settings = LoopSettings(training, total_steps=steps, evaluate_every_steps=None, keep_checkpoints=1, on_gpu=False)
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

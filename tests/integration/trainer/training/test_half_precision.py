"""Every method in bfloat16, as on a GPU: the adapter learns in float32, and evaluations agree with training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, TrainerCallback

from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.losses.evaluation import held_out_loss
from tunery_trainer.model.load import load_base, load_tokenizer
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts

from kit.tiny_models import VOCABULARY
from kit.training import resolved_for, start_for, token_rows

METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA saved head": {"lora": {"modulesToSave": ["lm_head"]}},
    "LoRA PiSSA": {"lora": {"init": "PiSSA"}},
    "LoRA OLoRA": {"lora": {"init": "OLoRA"}},
    "LoRA EVA": {"lora": {"init": "EVA"}},
    "DoRA": {},
    "QLoRA": {},
    "QLoRA Int8": {"quantization": {"type": "Int8"}},
    "QLoRA LoftQ": {"lora": {"init": "LoftQ"}},
    "QDoRA": {},
    "AdaLoRA": {"adalora": {"initialRank": 6, "targetRank": 4}},
    "AdaLoRA 4 bits": {"adalora": {"initialRank": 6, "targetRank": 4}, "quantization": {}},
    "IA3": {},
    "IA3 4 bits": {"quantization": {}},
    "PrefixTuning": {},
    "PromptTuning": {"quantization": {}},
}
ROWS = token_rows(5, rows=16).tolist()


class Unmoved(TrainerCallback):  # type: ignore[misc]
    """The share of the trained numbers that each optimizer step leaves as they are, bit by bit."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self._before: list[torch.Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._before = [p.detach().clone() for p in model.parameters() if p.requires_grad]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        now = [p for p in model.parameters() if p.requires_grad]
        same = sum(int((old == new).sum()) for old, new in zip(self._before, now, strict=True))
        self.shares.append(same / sum(p.numel() for p in now))


def trained(llama: Path, folder: Path, name: str, steps: int, **training: Any) -> tuple[Any, Unmoved, list[float]]:
    """Train in bfloat16; return the model, what each step left as it was, and the loss before and after."""
    blocks = {"method": name.split()[0], **METHODS[name]}
    # AdaLoRA never moves what it has pruned.
    own = {"precision": "BFloat16", "maxSteps": steps, "batchSize": 4, "gradientAccumulation": 1, "packing": False}
    resolved = resolved_for(llama, {**blocks, "training": own | training})
    tokenizer = load_tokenizer(llama)
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, steps))
    rows = Dataset.from_dict({"input_ids": ROWS, "labels": ROWS})
    held_out = [{"input_ids": ids, "labels": ids} for ids in ROWS]
    settings = replace(resolved.training, gradient_checkpointing=False)
    loop = LoopSettings(settings, total_steps=steps, keep_checkpoints=1, on_gpu=False)
    parts = LoopParts(rows, tokenizer, folder, None, training_hooks(model, resolved))
    trainer, unmoved = AdapterTrainer(model, loop, parts), Unmoved()
    trainer.add_callback(unmoved)
    losses = [held_out_loss(model, held_out, 0, dtype=torch.bfloat16)]
    trainer.train()
    losses.append(held_out_loss(model, held_out, 0, dtype=torch.bfloat16))
    return model, unmoved, losses


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_in_bfloat16(llama: Path, tmp_path: Path, name: str) -> None:
    model, _, losses = trained(llama, tmp_path, name, steps=16, learningRate=1e-2)
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert kinds == {torch.float32}
    assert losses[1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IA3 4 bits", "QLoRA"])
def test_the_last_steps_still_move_the_adapter(llama: Path, tmp_path: Path, name: str) -> None:
    """In bfloat16 all of IA3's numbers stood still from half-time on: 1.0 moves by 0.0078 or not at all."""
    _, unmoved, _ = trained(llama, tmp_path, name, steps=40)
    late = unmoved.shares[30:-1]  # the last step's rate is all but 0
    assert max(late) < 0.1


@pytest.mark.slow
def test_the_loss_after_training_is_that_of_plain_transformers(llama: Path, tmp_path: Path) -> None:
    """Before training, in training and after it: one arithmetic, in autocast and through the head in tiles."""
    model, _, losses = trained(llama, tmp_path, "LoRA", steps=6, learningRate=5e-3)
    ids = torch.tensor(ROWS)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model.eval()(input_ids=ids, labels=ids).loss.item()
    assert losses[1] == pytest.approx(plain, rel=2e-3)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that anything makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_an_evaluation_never_makes_all_logits(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery_trainer.losses.lm_head._CPU_TOKENS", 16)
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 64)  # of 128 words, as 32,768 of 131,072
    model = AutoModelForCausalLM.from_pretrained(llama)
    ids = token_rows(3, rows=1, length=200).tolist()[0]
    rows = [{"input_ids": ids, "labels": ids}]
    with Largest() as seen:
        loss = held_out_loss(model, rows, 0)
    weights = max(parameter.numel() for parameter in model.parameters())
    assert seen.elements <= max(weights, 200 * 96) < 200 * VOCABULARY
    exact = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert loss == pytest.approx(exact, rel=1e-6)
    assert "forward" not in model.__dict__  # it has its own back

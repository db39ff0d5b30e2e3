"""Runs of a few steps on a tiny model, of one process or of several, for processes that are started for them."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from datasets import Dataset
from trl import SFTTrainer

from tunery_api.methods import Method
from tunery_api.training import CheckpointSpec
from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.losses.generation import Question, Speaker
from tunery_trainer.model.load import load_base, load_tokenizer
from tunery_trainer.model.sharding import shard
from tunery_trainer.process.signals import StopSignal
from tunery_trainer.team import team as team_module
from tunery_trainer.team.team import Team
from tunery_trainer.training.callbacks import CheckpointCallback, StopCallback, told_to_stop
from tunery_trainer.training.recovery import train_to_the_end
from tunery_trainer.training.run import last_stored
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts
from tunery_trainer.training.weights import trained_state

from kit.preferences import PASS, begun, prepared, resolved_task, trainer_on
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
    epochs: list[float]
    tokens: int
    state: dict[str, torch.Tensor]
    files: list[str]
    """What was written into the folder of this process."""


def train(llama: Path, blocks: dict[str, Any], team: Team, folder: Path) -> Trained:
    """Train from the start to the end."""
    return go_on(llama, blocks, None, team, folder)


def go_on(llama: Path, blocks: dict[str, Any], checkpoint: Path | None, team: Team, folder: Path) -> Trained:
    """Train to the end, with a checkpoint in the middle; from `checkpoint`, if one is given."""
    trainer = _trainer(llama, blocks, team, folder)
    spec = CheckpointSpec(every_steps=STEPS // 2)
    trainer.add_callback(CheckpointCallback(spec, lambda folder, state, over: None, team))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _told(trainer)


def _trainer(llama: Path, blocks: dict[str, Any], team: Team, folder: Path) -> AdapterTrainer:
    lora = {"dropout": 0, **blocks.get("lora", {})} if blocks.get("method", "LoRA") in _DROPOUT else {}
    training = {"maxSteps": STEPS, "batchSize": 2, "packing": False, "gradientAccumulation": PASSES}
    spec = blocks | {"training": training | blocks.get("training", {})} | ({"lora": lora} if lora else {})
    resolved = resolved_for(llama, spec)
    model = attach(load_base(llama, resolved, "cpu"), resolved, start_for(llama, STEPS))
    team.share_from_leader(p.data for p in model.parameters() if p.requires_grad)
    if team.sharded:
        shard(model, team.nodes, "cpu")
    ids = token_rows(5, rows=ROWS).tolist()
    labels = [row if place % 3 else [-100] * (place % 9) + row[place % 9 :] for place, row in enumerate(ids)]
    lengths = [16 - place % 7 for place in range(ROWS)]
    rows = {"input_ids": ids, "labels": labels}
    rows = {name: [row[:length] for row, length in zip(part, lengths, strict=True)] for name, part in rows.items()}
    tokenizer = load_tokenizer(llama)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    parts = LoopParts(Dataset.from_dict(rows), tokenizer, folder, None, training_hooks(model, resolved), team=team)
    loop = LoopSettings(replace(resolved.training, gradient_checkpointing=False), STEPS, 2, on_gpu=False)
    trainer = AdapterTrainer(model, loop, parts)
    torch.manual_seed(resolved.training.seed + team.rank)
    return trainer


def _told(trainer: AdapterTrainer) -> Trained:
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses, norms = [entry["loss"] for entry in told], [entry["grad_norm"] for entry in told]
    epochs = [entry["epoch"] for entry in told]
    return Trained(losses, norms, epochs, trainer.tokens_seen, trained_state(trainer.model), sorted(_files(trainer)))


def _files(trainer: AdapterTrainer) -> list[str]:
    folder = Path(trainer.args.output_dir)
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


class Shrunk(NamedTuple):
    trained: Trained
    passes: tuple[int, int]
    """Rows of a pass, and passes of a step, at the end."""
    cause: str


def run_out(llama: Path, hungry: int, team: Team, folder: Path) -> Shrunk:
    """Train; memory runs out in the pass of process `hungry` from the third step on, where it has more than a row."""
    do_pass = SFTTrainer.training_step

    def training_step(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = do_pass(trainer, model, inputs, *args, **kwargs)
        if team.rank == hungry and trainer.state.global_step >= 2 and len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return loss

    with patch.object(SFTTrainer, "training_step", training_step), redirect_stdout(io.StringIO()) as out:
        trainer = _trainer(llama, {}, team, folder)
        train_to_the_end(trainer, None, Method.LORA)
    settings = trainer.settings
    return Shrunk(_told(trainer), (settings.batch_size, settings.gradient_accumulation), out.getvalue())


class Stopped(NamedTuple):
    step: int
    checkpoints: list[str]
    """Of this process's folder."""
    told: bool
    """Whether this process knows that training was stopped."""


def stop(llama: Path, told: int, team: Team, folder: Path) -> Stopped:
    """Train until process `told` alone is told to stop, in its third step."""
    trainer, signal = _trainer(llama, {}, team, folder), StopSignal()

    def hear(*_: Any, **__: Any) -> None:
        signal.requested = signal.requested or (team.rank == told and trainer.state.global_step == 2)

    callback = StopCallback(signal, team)
    told_at_begin = patch.object(callback, "on_step_begin", hear)
    trainer.add_callback(callback)
    trainer.add_callback(CheckpointCallback(CheckpointSpec(every_steps=1000), lambda folder, state, over: None, team))
    with told_at_begin:
        trainer.train()
    return Stopped(
        trainer.state.global_step, sorted(path.name for path in folder.glob("checkpoint-*")), signal.requested
    )


class Heard(NamedTuple):
    here: bool
    """Whether a process of this one's node was told."""
    said: str
    stopped: str
    """What is said of the checkpoint."""


def hear(told: list[int], stores: bool, team: Team, folder: Path) -> Heard:
    """Return what a process hears and says where those of `told` were told to stop; `stores`: one of them can store."""
    signal = StopSignal()
    signal.told = signal.requested = team.rank in told
    with redirect_stdout(io.StringIO()) as out:
        told_to_stop(signal, team)
    uploader: Any = SimpleNamespace(close=lambda seconds: True) if stores and team.leader else None
    return Heard(team.node in team.nodes_with(signal.told), out.getvalue(), last_stored(uploader, team))


class Preferred(NamedTuple):
    log: list[dict[str, float]]
    """Losses, gradients and rewards of training, then what the held-out rows say."""
    reference: list[list[float]]
    state: dict[str, torch.Tensor]


def prefer(llama: Path, task: str, team: Team, folder: Path) -> Preferred:
    """Train on rows of different lengths that cannot be dealt out evenly, and measure."""
    training = {"maxSteps": 5, "gradientAccumulation": 2, "learningRate": 1e-2}
    resolved = resolved_task(llama, task, training=training)
    how = replace(PASS, team=team)
    torch.manual_seed(1)
    begin = begun(llama, resolved, prepared(task, 11), how)
    trainer = trainer_on(llama, resolved, begin, folder, how)
    trainer.train()
    trainer.evaluate()
    told = ("loss", "grad_norm", "eval_", "reward")
    log = [
        {name: value for name, value in entry.items() if name.startswith(told)} for entry in trainer.state.log_history
    ]
    scores = begin[1].scores
    return Preferred(log, [each.flatten().tolist() for each in scores.values()], trained_state(begin[0]))


class Answered(NamedTuple):
    words: int
    """New tokens of the answer."""
    after: float
    """The loss of a pass after it, which is one of all processes."""


def answer(llama: Path, short: int, team: Team, folder: Path) -> Answered:
    """Let the model answer; to process `short` the first token that it says is an end."""
    trainer = _trainer(llama, {}, team, folder)
    model, tokenizer = trainer.model, load_tokenizer(llama)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompt = [3, 4, 5]
    with torch.no_grad():
        first = int(model.eval()(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    if team.rank == short:
        tokenizer.eos_token_id = first
    speaker, said = Speaker(tokenizer, 4, together=team.sharded), []
    with patch.object(Speaker, "text", lambda _, ids: said.append(ids) or ""):
        speaker.answers(model, [Question(prompt, [])])
    ids = torch.tensor([prompt])
    with torch.no_grad():
        after = float(model(input_ids=ids, labels=ids).loss)
    pad = int(tokenizer.pad_token_id)
    return Answered(sum(token != pad for token in said[0]), after)


def lag(team: Team, folder: Path) -> str:
    """Let the leader take longer than the others wait for it: for the first checkpoint, and for the second one.

    Return what ended the process.
    """
    args: Any = SimpleNamespace(output_dir=str(folder))
    state: Any = SimpleNamespace(global_step=1)
    callback = CheckpointCallback(CheckpointSpec(), lambda *_: time.sleep(0.9), team)
    with patch.object(team_module, "STEPPING", timedelta(seconds=0.3)):
        team.hurry()
        for _ in range(2):
            callback.on_save(args, state, Any)
    try:
        team.any(False)
    except RuntimeError as error:
        return str(error)
    return "the others were waited for"

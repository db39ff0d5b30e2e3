"""A model of a few thousand weights, data it can learn in a minute, and the real command line around them."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tunery_trainer.cli import main

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("red", "blue", "green", "one", "two", "three", "cat", "dog")


def make_model(folder: Path) -> Path:
    """Save a tiny Llama with a byte tokenizer and a chat template; the same weights each time."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: index for index, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])
    }
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_rows(count: int = 120) -> list[dict[str, str]]:
    """Return questions whose answers follow from them."""
    draw = random.Random(7)
    return [
        {"prompt": f"say {word} {number}", "completion": f"{word} {word} {number}"}
        for word, number in ((draw.choice(WORDS), draw.randint(0, 99)) for _ in range(count))
    ]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a LoRAJob that trains in seconds, with `changes` put over its spec, block by block (None: without it)."""
    spec: dict[str, Any] = {
        "model": {"uri": "file://model"},
        "dataset": {"uri": "file://data.jsonl", "evaluation": {"fraction": "0.1"}},
        "method": "LoRA",
        "lora": {"rank": 8},
        "training": {
            "maxSteps": 20,
            "learningRate": "1e-2",
            "batchSize": 4,
            "gradientAccumulation": 1,
            "maxLength": 128,
        },
        "checkpoint": {"everySteps": 5},
        "output": {"uri": f"file://{folder}/out"},
        "resources": {"gpus": 0},
    }
    for name, value in changes.items():
        if value is None:
            del spec[name]
            continue
        merged = isinstance(value, dict) and isinstance(spec.get(name), dict)
        spec[name] = spec[name] | value if merged else value
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "metadata": {"name": "tiny"}, "spec": spec}


def write_manifest(folder: Path, content: Any) -> Path:
    """Write a manifest beside the model and the data."""
    path = folder / "job.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def command(*arguments: str | Path) -> list[str]:
    """Return the real command line of the trainer."""
    return [sys.executable, "-m", "tunery_trainer", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a run: no hub, one thread, no termination log of this machine."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **extra}


def run_trainer(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the trainer to its end and return its exit code and output."""
    return subprocess.run(
        command(*arguments), env=environment(**extra), capture_output=True, text=True, timeout=300, check=False
    )


def run_here(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Do the same as run_trainer in this process, which has the libraries imported already."""
    out, err = io.StringIO(), io.StringIO()
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    os.environ.update(environment(**extra))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    finally:
        os.environ.clear()
        os.environ.update(before)
        signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())

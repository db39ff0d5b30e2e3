"""The program that asks the base model and the adapter shows what it waits for."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kit.tiny_models import write_chat_model
from tools.demo.answers import answers


def test_each_step_is_shown_before_it_takes_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, adapter = write_chat_model(tmp_path / "model"), tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(model)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    (told,) = answers(model, adapter, ["Why?"])
    assert told["base"] == told["tuned"], "an adapter that is not trained changes nothing"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line for line in shown.err.splitlines() if line.endswith(" …")] == [
        "Importing PyTorch, transformers and PEFT: up to a few minutes the first time …",
        f"Loading the base model from {model} …",
        f"Loading the adapter from {adapter} …",
        "Asking both models: Why? …",
    ]

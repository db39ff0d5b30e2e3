"""The whole story on what is published today: beside a vision tower, as a mixture, and in 4 bits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from tunery_api.reasons import ExitCode

from kit.models_of_today import MIXTURES, MULTIMODAL
from kit.peft_reader import held_out_rows, single_row_loss
from kit.story import make_rows, manifest, run_here, write_manifest, write_rows
from kit.tiny_models import write_model


def mistral3(folder: Path, tokenizer: Any) -> Any:
    blocks = copy.deepcopy(MULTIMODAL["mistral3"])
    blocks["text_config"] |= {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    write_model(folder, AutoConfig.for_model("mistral3", **blocks), AutoModelForImageTextToText)
    return AutoModelForImageTextToText


def qwen3_moe(folder: Path, tokenizer: Any) -> Any:
    blocks = MIXTURES["qwen3_moe"] | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    write_model(folder, AutoConfig.for_model("qwen3_moe", **blocks), AutoModelForCausalLM)
    return AutoModelForCausalLM


def in_four_bits(folder: Path, tokenizer: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        tokenizer.name_or_path,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )
    model.save_pretrained(folder)
    return AutoModelForCausalLM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "method"),
    [(mistral3, "LoRA"), (qwen3_moe, "LoRA"), (in_four_bits, "QLoRA")],
    ids=["multimodal", "mixture", "stored"],
)
def test_a_job_publishes_what_plain_peft_loads(
    tmp_path: Path, tiny_model: Path, write: Callable[[Path, Any], Any], method: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    auto = write(tmp_path / "model", tokenizer)
    tokenizer.save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "data.jsonl", make_rows())
    path = write_manifest(tmp_path, manifest(tmp_path, method=method))
    done = run_here("run", path, "--work-dir", tmp_path / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["lineage"]
    assert told["loader"] == auto.__name__
    assert told["resolved"]["trainableParameters"] > 0
    base = auto.from_pretrained(tmp_path / "model", device_map={"": "cpu"})
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    published = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    loss = single_row_loss(published, held_out_rows(tmp_path))
    assert loss == pytest.approx(told["metrics"]["evalLoss"], rel=2e-2)
    assert loss < told["metrics"]["baseEvalLoss"]

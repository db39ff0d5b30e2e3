"""What any user does with a published folder: plain transformers, plain PEFT, no code of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def plain_base(folder: Path, quantization: BitsAndBytesConfig | None = None) -> Any:
    """Load the base model beside the manifest in `folder`."""
    return AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, quantization_config=quantization, device_map={"": "cpu"}
    )


def plain_peft(folder: Path, quantization: BitsAndBytesConfig | None = None, out: str = "out") -> Any:
    """Load what was published below `folder`."""
    return PeftModel.from_pretrained(plain_base(folder, quantization), folder / out).eval()


def held_out_rows(folder: Path, work: str = "work") -> Dataset:
    """Return the rows that the run held out, from its own cache."""
    return Dataset.from_file(str(next((folder / work / "prepared").glob("*/evaluation.arrow"))))


@torch.no_grad()
def single_row_loss(model: Any, rows: Dataset) -> float:
    """Return the mean loss over all labelled tokens, one example at a time."""
    total, count = 0.0, 0
    for row in rows:
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            ids = torch.tensor([row["input_ids"][start : start + length]])
            labels = torch.tensor([row["labels"][start : start + length]])
            start += length
            logits = model(input_ids=ids).logits[:, -length:]
            total += torch.nn.functional.cross_entropy(
                logits[0, :-1].float(), labels[0, 1:], ignore_index=-100, reduction="sum"
            ).item()
            count += int((labels[0, 1:] != -100).sum())
    return total / count

"""Into a base that reads images, too: its files keep names that the model does not have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig

from tunery_api.manifest import SourceRecord
from tunery_api.measured import DatasetStatus
from tunery_api.methods import QuantizationType
from tunery_trainer.adapter.save import save_published
from tunery_trainer.merging.adapter_files import open_adapter
from tunery_trainer.merging.base_model import open_checkpoint
from tunery_trainer.merging.files import LocalFiles
from tunery_trainer.merging.into_base import IntoBase, merge_into_base
from tunery_trainer.merging.measure import Yardstick, measure
from tunery_trainer.merging.quantized import Quantization
from tunery_trainer.model.language_part import auto_class
from tunery_trainer.model.load import load_base

from kit.models_of_today import write_multimodal
from kit.training import logits_of, loss_of, token_rows, train


@pytest.mark.slow(fast=["qwen2_5_vl-IA3"])
@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "IA3"])
@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_the_merged_model_is_base_and_adapter(tmp_path: Path, kind: str, method: str) -> None:
    base, published, merged = (tmp_path / name for name in ("base", "published", "merged"))
    run = train(write_multimodal(base, kind), {"method": method}, steps=4)
    save_published(run.model, published, "owner/base")
    merged.mkdir()
    quantization = Quantization(QuantizationType.NF4, dtype=torch.float32) if method == "QLoRA" else None
    adapter = open_adapter(LocalFiles(published))
    merge_into_base(
        open_checkpoint(LocalFiles(base)), adapter, merged, IntoBase(quantization=quantization, verify=True)
    )
    auto = auto_class(AutoConfig.from_pretrained(base))
    expected = logits_of(PeftModel.from_pretrained(load_base(base, run.resolved, "cpu"), str(published)))
    found = logits_of(auto.from_pretrained(merged, dtype=torch.float32))
    assert (found - expected).abs().max() <= 1e-4
    assert (found - logits_of(auto.from_pretrained(base, dtype=torch.float32))).abs().max() > 1e-3
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    assert before.keys() == after.keys()
    towers = [name for name in before if "vision" in name or "visual" in name]
    assert towers
    assert all(torch.equal(before[name], after[name]) for name in towers)


def test_a_merge_is_measured_on_it(tmp_path: Path) -> None:
    base, published = tmp_path / "base", tmp_path / "published"
    run = train(write_multimodal(base, "mistral3"), {"method": "LoRA"}, steps=4)
    save_published(run.model, published, "owner/base")
    ids = token_rows(7).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    yardstick = Yardstick(base, rows, 0, SourceRecord(uri="file://rows"), DatasetStatus())
    adapter = open_adapter(LocalFiles(published))
    losses = measure(yardstick, [adapter], adapter)
    assert losses.result == losses.inputs[0] == pytest.approx(loss_of(run.model), rel=0.01)
    assert losses.base == pytest.approx(loss_of(load_base(base, run.resolved, "cpu")), rel=0.01)
    assert losses.result < 0.9 * losses.base

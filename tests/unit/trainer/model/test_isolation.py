"""Packed examples never read each other: measured for each architecture, and attention by example is exact."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunery_trainer.model.attention import BY_EXAMPLE, computes_by_example
from tunery_trainer.model.collator import Collator
from tunery_trainer.model.example_isolation import isolation

from bench.isolation import TABLE, classes, measured
from kit.installation import ROOT
from kit.tiny_models import write_family

APART = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3", "gpt2", "lfm2", "mixtral")
LEAKING = ("gpt_oss", "qwen3_next", "jamba", "recurrent_gemma", "olmo_hybrid", "bamba", "granitemoehybrid", "bloom")


@pytest.mark.parametrize("model_type", APART)
def test_these_keep_examples_apart(model_type: str) -> None:
    assert measured(model_type).packable


@pytest.mark.parametrize("model_type", LEAKING)
def test_these_let_examples_read_each_other(model_type: str) -> None:
    found = measured(model_type)
    assert found.measured
    assert not found.packable


@pytest.mark.parametrize(
    ("model_type", "dropout"), [("gpt2", {"attn_pdrop": 0.1}), ("llama", {"attention_dropout": 0.1})]
)
def test_scores_that_are_dropped_are_masked(model_type: str, dropout: dict[str, float]) -> None:
    plain, dropping = (
        isolation(AutoConfig.for_model(model_type, **changes), "sdpa")
        for changes in (dict.fromkeys(dropout, 0.0), dropout)
    )
    assert (plain.attention, plain.packable) == (BY_EXAMPLE, True)
    assert (dropping.attention, dropping.packable) == ("sdpa", True)


def test_what_cannot_be_made_small_is_not_packed() -> None:
    config = AutoConfig.for_model("llama", hidden_act="no such function")
    found = isolation(config, "sdpa")
    assert (found.packable, found.measured, found.attention) == (False, False, "sdpa")


def test_the_table_of_the_docs_is_what_is_measured() -> None:
    """All architectures of the installed transformers take a minute; without TUNERY_TEST_EVERY_MODEL some do."""
    section = (ROOT / "docs" / "methods.md").read_text().split(TABLE)[1].split("\n## ")[0]
    lines = {line.split(" | ")[0].strip("| "): re.findall(r"`([\w-]+)`", line) for line in section.splitlines()}
    told = {name: kind for kind, names in lines.items() for name in names}
    every = set(classes())
    assert set(told) == every
    chosen = every if os.environ.get("TUNERY_TEST_EVERY_MODEL") else {*APART, *LEAKING}
    for model_type in chosen:
        found = measured(model_type)
        kind = "packed" if found.packable else "not packed" if found.measured else "not measured"
        assert told[model_type] == kind, model_type


def rows() -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(2)
    lengths = ((9, 17, 5), (23,))
    made = []
    for parts in lengths:
        ids = torch.randint(3, 128, (sum(parts),), generator=draw).tolist()
        made.append({"input_ids": ids, "labels": ids, "seq_lengths": list(parts)})
    return made


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma", "phi"])
@pytest.mark.parametrize("window", [None, 4])
def test_attention_by_example_is_the_masked_one(tmp_path: Path, family: str, window: int | None) -> None:
    """Logits and gradients, of two rows of which one is padded; with a sliding window, where the family has one."""
    changes = {"sliding_window": window} if window and family == "mistral" else {}
    folder = write_family(tmp_path, family, **changes)
    results = []
    for attention in ("sdpa", BY_EXAMPLE):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
        batch = Collator(0, by_example=computes_by_example(model))(rows())
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
        results.append((logits.detach(), model.get_input_embeddings().weight.grad))
    (masked, masked_gradient), (found, gradient) = results
    real = batch["position_ids"] >= 0
    real[1, 23:] = False  # what stands in the padding is of no meaning
    assert torch.allclose(found[real], masked[real], atol=1e-4, rtol=1e-4)
    assert torch.allclose(gradient, masked_gradient, atol=1e-5, rtol=1e-3)


def test_a_batch_that_does_not_say_where_examples_end_is_still_kept_apart(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, attn_implementation=BY_EXAMPLE)
    told, silent = (Collator(0, by_example=by_example)(rows()) for by_example in (True, False))
    with torch.no_grad():
        assert torch.equal(model(**told, use_cache=False).logits, model(**silent, use_cache=False).logits)


def test_what_attention_by_example_does_not_know_is_an_error(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, attn_implementation=BY_EXAMPLE)
    with torch.no_grad(), pytest.raises(ValueError, match="no mask"):
        model(input_ids=torch.tensor([[5, 6]]), attention_mask=torch.zeros(1, 1, 2, 2, dtype=torch.bool))

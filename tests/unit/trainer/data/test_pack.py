"""Packing loses no row, exceeds no length, and fills; attention stays within each row."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tunery_trainer.data.pack import pack


@given(st.integers(1, 40).flatmap(lambda top: st.tuples(st.just(top), st.lists(st.integers(1, top), max_size=200))))
@settings(max_examples=200)
def test_every_row_once_and_never_too_long(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    sequences = pack(lengths, capacity)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    filled = [sum(lengths[row] for row in sequence) for sequence in sequences]
    assert all(0 < length <= capacity for length in filled)
    # Best fit never leaves two sequences that would fit into one.
    assert sum(sorted(filled)[:2]) > capacity or len(filled) < 2
    assert pack(lengths, capacity) == sequences


def test_fills_realistic_rows() -> None:
    drawn = random.Random(7)
    lengths = [min(2048, max(8, int(drawn.lognormvariate(5.3, 0.8)))) for _ in range(20_000)]
    sequences = pack(lengths, 2048)
    assert sum(lengths) / (2048 * len(sequences)) >= 0.999


@pytest.mark.parametrize("lengths", [[0, 3], [5, 9]])
def test_lengths_out_of_range_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="within 1 to 8"):
        pack(lengths, 8)


def test_loss_of_packed_rows_equals_that_of_single_rows() -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **size)).eval()
    drawn = random.Random(1)
    rows = [[drawn.randrange(64) for _ in range(length)] for length in (9, 5, 12, 3, 7)]
    labels = [[-100, -100, *row[2:]] for row in rows]
    sequences = pack([len(row) for row in rows], 16)
    packed = [
        {
            "input_ids": [token for row in sequence for token in rows[row]],
            "labels": [label for row in sequence for label in labels[row]],
            "seq_lengths": [len(rows[row]) for row in sequence],
        }
        for sequence in sequences
    ]
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(packed)
    with torch.no_grad():
        # With a cache transformers does not look for packed rows, and attention would cross them.
        together = model(
            **{name: batch[name] for name in ("input_ids", "labels", "position_ids")}, use_cache=False
        ).loss
        single = [
            (model(input_ids=torch.tensor([row]), labels=torch.tensor([label])).loss, len(row) - 2)
            for row, label in zip(rows, labels, strict=True)
        ]
    mean = sum(loss * count for loss, count in single) / sum(count for _, count in single)
    assert len(sequences) < len(rows)
    assert abs(float(together - mean)) < 1e-5

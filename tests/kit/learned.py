"""A tiny base model that has learned something, which a run can spoil: one of random weights cannot get worse."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kit.story import make_rows

_STEPS = 150
_ROWS = 16


def write_learned_model(source: Path, folder: Path) -> Path:
    """Train all weights of the chat model of `source` on questions and answers, and save it with its tokenizer."""
    torch.manual_seed(3)
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source).train()
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}],
            tokenize=False,
        )
        for row in make_rows(400)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(4)
    for step in range(_STEPS):
        chosen = torch.randint(0, len(texts), (_ROWS,), generator=draw).tolist()
        rows = [torch.tensor(tokenizer(texts[index], add_special_tokens=False)["input_ids"]) for index in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20)
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

"""The evaluation loss of a published adapter with nothing but transformers and PEFT: tokens of answers only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model_folder, adapter_folder, rows_file, *length = sys.argv[1:]
MOST = int(length[0]) if length else None  # tokens of a row: a run cuts what is longer
tokenizer = AutoTokenizer.from_pretrained(adapter_folder)
base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter_folder).eval()
total, count = 0.0, 0
for line in Path(rows_file).read_text(encoding="utf-8").splitlines():
    messages = json.loads(line)["messages"]
    whole = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")["input_ids"]
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    start = prompt.shape[1]
    # An answer ends with its last token; what the template writes behind it nobody is asked for, nor trained on.
    ends = (whole[0, start:] == tokenizer.eos_token_id).nonzero()
    whole = whole[:, : start + int(ends[-1]) + 1] if len(ends) else whole
    whole = whole[:, :MOST]
    with torch.no_grad():
        logits = model(input_ids=whole).logits.float()
    losses = torch.nn.functional.cross_entropy(logits[0, start - 1 : -1], whole[0, start:], reduction="sum")
    total, count = total + losses.item(), count + whole.shape[1] - start
print(total / count)

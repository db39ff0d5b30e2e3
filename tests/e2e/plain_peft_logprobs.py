"""The log-probability of each token of a prompt but the first, by nothing but transformers and PEFT, in float32."""

from __future__ import annotations

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model_folder, adapter_folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
if adapter_folder != "-":
    model = PeftModel.from_pretrained(model, adapter_folder)
model = model.eval()
ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
with torch.no_grad():
    scores = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
print(json.dumps([scores[place - 1, ids[0, place]].item() for place in range(1, ids.shape[1])]))

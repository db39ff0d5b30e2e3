"""Two answers to one question: the base model's, and the one with the adapter, by plain transformers and PEFT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MAX_NEW_TOKENS = 32


def answers(model_folder: Path, adapter_folder: Path, questions: list[str]) -> list[dict[str, str]]:
    """Return for each question `{question, base, tuned}`; greedy decoding, so that a second run says the same."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, adapter_folder).eval()
    told = []
    for question in questions:
        with model.disable_adapter():
            before = _answer(model, tokenizer, question)
        told.append({"question": question, "base": before, "tuned": _answer(model, tokenizer, question)})
    return told


def _answer(model: Any, tokenizer: Any, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    text: str = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


if __name__ == "__main__":
    print(json.dumps(answers(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))

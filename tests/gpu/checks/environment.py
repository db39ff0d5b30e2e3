"""What is here: versions, the card, its driver; whether CUDA computes, Triton compiles and TRL's kernel agrees."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import tomllib
from typing import Any, Final
from unittest.mock import patch

import torch
from torch.nn.functional import cross_entropy
from trl.kernels import chunked_logprob

from tunery_trainer.losses import lm_head
from tunery_trainer.model.attention import computes_by_example
from tunery_trainer.process.device import device_facts, require_gpu, triton_compiles

from gpu.models import load
from gpu.registry import ROOT
from gpu.runs import PUT_BETWEEN, batch_on, difference, random_examples, shaped, single_rows
from gpu.verdicts import Case, Check, Machine, Outcome, Verdict, judged

_LIBRARIES: Final = ("torch", "triton", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")
_SMI: Final = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def _versions(machine: Machine) -> Outcome:
    """The versions of what trains, beside those of the lock."""
    here = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    locked = _locked()
    others = {name: f"{here[name]}, locked {locked[name]}" for name in here if here[name] != locked.get(name)}
    figures = {"python": platform.python_version(), "cuda": torch.version.cuda, **here}
    return Outcome(Verdict.PASSED, figures | {"not_as_locked": others, "put_between": PUT_BETWEEN})


def _locked() -> dict[str, str]:
    lock = tomllib.loads((ROOT / "trainer-image" / "uv.lock").read_text())
    return {package["name"]: package["version"] for package in lock["package"] if "version" in package}


def _card(machine: Machine) -> Outcome:
    """The card, and whether this build of torch has kernels for it."""
    if machine.dry:
        return Outcome(Verdict.NEEDS_GPU)
    require_gpu()
    said = subprocess.run(_SMI, capture_output=True, text=True, check=True).stdout.strip()
    major, minor = torch.cuda.get_device_capability(0)
    built = torch.cuda.get_arch_list()
    facts = device_facts(None)
    families = {arch.split("_")[1].rstrip("af")[:-1] for arch in built}
    return judged(
        {"this torch has no kernels for the card": str(major) not in families},
        nvidia_smi=said,
        capability=f"{major}.{minor}",
        built_for=built,
        memory_bytes=facts.memory_bytes,
        bfloat16=facts.bfloat16,
    )


def _head(machine: Machine) -> Outcome:
    """The head in tiles, by Triton's kernels and by torch's, beside plain cross entropy: log p, and a gradient."""
    run = shaped(machine, "1B", {"training": {"precision": "BFloat16"}}, single_rows(random_examples(4, 512)))
    model = load(run.folder, run.plan.settings, machine.device)
    norm = model.get_decoder().norm.weight.requires_grad_(True)
    batch = batch_on(machine, [run.rows[0]], by_example=computes_by_example(model))
    plain = model(**{name: part for name, part in batch.items() if name != "labels"}, use_cache=False).logits.float()
    expected = -cross_entropy(plain[0, :-1], batch["labels"][0, 1:], reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), norm)
    figures: dict[str, Any] = {"triton_compiles": triton_compiles()}
    for kernel in ("triton", "torch"):
        with lm_head.head(model), patch.object(chunked_logprob, "_TRITON_AVAILABLE", kernel == "triton"):
            found = lm_head.log_probabilities(model, batch)[0, : len(expected)]
            (other,) = torch.autograd.grad(found.sum(), norm)
        figures[f"{kernel}_log_p"] = difference(found, expected)
        figures[f"{kernel}_gradient"] = difference(other, gradient)
    return judged(
        {
            "Triton finds no compiler": not figures["triton_compiles"],
            "the loss is another": max(figures["triton_log_p"], figures["torch_log_p"]) > 1e-2,
            "the gradient is another": max(figures["triton_gradient"], figures["torch_gradient"]) > 5e-2,
        },
        **figures,
    )


CHECK: Final = Check(
    "what is here, and whether it computes",
    lambda machine: {
        "versions": Case(_versions, needs_gpu=False),
        "card": Case(_card),
        "head": Case(_head),
    },
)

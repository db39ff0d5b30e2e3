"""The measured peak of training beside the estimate that preflight makes, which must never promise too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from tunery_trainer.process.device import device_facts

from gpu.runs import Pace, Run, adapted, losses, packed_rows, random_examples, scratch, shaped, trainer_for, used
from gpu.verdicts import Case, Check, Figures, Machine, Outcome, Verdict, judged

_STEPS: Final = 3
_TOO_MUCH: Final = 1.5
"""An estimate of more than this times what was used refuses jobs that would run."""


@dataclass(frozen=True)
class Shape:
    """A run whose memory is measured."""

    model: str
    rows: int
    length: int
    recompute: bool
    quantization: str | None = None

    @property
    def name(self) -> str:
        """Say what it is."""
        kind = f"QLoRA {self.quantization}" if self.quantization else "LoRA"
        again = "recomputed" if self.recompute else "kept"
        return f"{self.model} {kind}, {self.rows} x {self.length}, {again}"


SHAPES: Final = (
    Shape("1B", 4, 2048, recompute=False),
    Shape("1B", 4, 2048, recompute=True),
    Shape("1B", 1, 8192, recompute=True),
    Shape("1B", 4, 2048, recompute=False, quantization="NF4"),
    Shape("1B", 4, 1024, recompute=False, quantization="Int8"),
    Shape("8B", 2, 2048, recompute=False),
    Shape("8B", 4, 2048, recompute=True),
    Shape("8B", 4, 2048, recompute=True, quantization="NF4"),
    Shape("70B", 1, 2048, recompute=True, quantization="NF4"),
    Shape("70B", 4, 2048, recompute=True, quantization="NF4"),
)
"""The 70B has all its layers, in 4 bits; they are quantised one matrix at a time."""


def measure(machine: Machine, shape: Shape) -> Outcome:
    """Train a few steps and compare; passed where the estimate holds and is not much too high."""
    run = planned(machine, shape)
    estimate, available = run.plan.memory, device_facts(None).memory_bytes
    if estimate is None:
        return Outcome(Verdict.FAILED, words="there is no estimate")
    if available is not None and estimate.total > available:
        return Outcome(Verdict.NEEDS_GPU, {"estimate_bytes": estimate.total}, "a larger one, by the estimate")
    with scratch(machine) as folder:
        trainer, pace = trainer_for(machine, run, adapted(machine, run), folder), Pace(machine, warm=1)
        trainer.data_collator = pace.counting(trainer.data_collator)
        trainer.add_callback(pace)
        trainer.train()
        figures = {
            "estimate_bytes": estimate.total,
            "weights_estimate_bytes": estimate.weights,
            "parameters": trainer.model.num_parameters(),
            "losses": losses(trainer),
            "tokens_per_second": pace.tokens_per_second,
            **used(machine),
        }
    if machine.dry:
        return Outcome(Verdict.NEEDS_GPU, figures)
    return compared(estimate.total, figures["used_bytes"], figures)


def compared(estimate: int, used_bytes: int, figures: Figures) -> Outcome:
    """Return passed where no more was used than was estimated, and not much less."""
    ratio = round(estimate / used_bytes, 3)
    wrong = {"more was used than was estimated": ratio < 1, "the estimate is much too high": ratio > _TOO_MUCH}
    return judged(wrong, **figures, estimate_to_used=ratio)


def planned(machine: Machine, shape: Shape, devices: int = 1, parallelism: str | None = None) -> Run:
    """Return the run of that shape: each of `devices` does one forward pass in a step."""
    length = 64 if machine.dry else shape.length
    rows = packed_rows(random_examples(8 * shape.rows * _STEPS * devices, length), length)
    training = {
        "precision": "BFloat16",
        "maxSteps": _STEPS,
        "batchSize": shape.rows,
        "gradientAccumulation": devices,
        "maxLength": length,
        "gradientCheckpointing": shape.recompute,
    }
    if parallelism:
        training["parallelism"] = parallelism
    blocks: dict[str, Any] = {"method": "QLoRA" if shape.quantization else "LoRA", "training": training}
    if shape.quantization:
        blocks["quantization"] = {"type": shape.quantization}
    return shaped(machine, shape.model, blocks, rows, devices)


def _cases(machine: Machine) -> Mapping[str, Case]:
    chosen = SHAPES[1:4:2] if machine.dry else SHAPES
    return {shape.name: Case(partial(measure, shape=shape)) for shape in chosen}


CHECK: Final = Check("measured peak beside the estimate", _cases)

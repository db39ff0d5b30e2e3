"""The memory estimate beside what was measured on GPUs and on a CPU, and how long it takes for a model of 80 layers."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from peft import LoraConfig

from tunery_api.training import Optimizer
from tunery_trainer.model.memory import MemoryPlan, estimate_memory

from kit.published_memory import (
    NF4,
    Compared,
    adapted,
    benchmark_of_peft,
    measured_on_a_cpu,
    outline_of,
    readme_of_torchtune,
    table_of_the_guide,
)

SOURCES: Final[dict[str, Callable[[], Iterator[Compared]]]] = {
    "peft": benchmark_of_peft,
    "torchtune": readme_of_torchtune,
    "cpu": measured_on_a_cpu,
    "guide": table_of_the_guide,
}
_DEEP: Final = "Llama-2-70B"


def main() -> None:
    """Print one JSON line for each run, one for each half of what was measured, and one with the time."""
    rows: list[Compared] = []
    own: list[Compared] = []
    for source, compare in SOURCES.items():
        for row in compare():
            rows += [row] if source in ("peft", "torchtune") else []
            own += [row] if source == "cpu" else []
            told = {"source": source, "run": row.name, "held_out": row.held_out, "error": round(row.error, 3)}
            told |= {"measured_mib": round(row.measured / 2**20), "estimated_mib": round(row.estimated / 2**20)}
            print(json.dumps(told), flush=True)
    for held_out in (True, False):
        for where, some in (("gpu", rows), ("cpu", own)):
            found = _summary(row for row in some if row.held_out is held_out)
            print(json.dumps({"where": where, "held_out": held_out} | found))
    print(json.dumps({"model": _DEEP, "cpu_seconds": _seconds()}))


def _summary(rows: Iterable[Compared]) -> dict[str, float]:
    found = list(rows)
    errors = [abs(row.error) for row in found]
    return {
        "runs": len(found),
        "median_error": round(statistics.median(errors), 4),
        "largest_error": round(max(errors), 4),
        "false_fits": sum(row.false_fit for row in found),
    }


def _seconds() -> float:
    """Return the processor's time from the configuration to the estimate, imports left out."""
    begin = time.process_time()
    shape = outline_of(_DEEP)
    model = adapted(shape, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    estimate_memory(model, shape, MemoryPlan(1, 2048, NF4, Optimizer.ADAMW, gradient_checkpointing=True, on_gpu=True))
    return round(time.process_time() - begin, 2)


if __name__ == "__main__":
    main()

"""A LoRAJob from manifest to published adapter by the real command line, on a small model that it can teach."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from cluster.tiny import make_tiny_model
from gpu.runs import scratch
from gpu.story import complaints, tell, write_job
from gpu.verdicts import Case, Check, Machine, Outcome, judged

_WORDS: Final = ("red", "blue", "green", "one", "two", "three")


def _rows(path: Path) -> Path:
    """Write questions whose answers follow from them."""
    draw = random.Random(7)
    pairs = [(draw.choice(_WORDS), draw.randint(0, 99)) for _ in range(200)]
    rows = [{"prompt": f"say {word} {number}", "completion": f"{word} {word} {number}"} for word, number in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _run(machine: Machine, blocks: dict[str, Any]) -> Outcome:
    training = {"maxSteps": 20, "learningRate": "1e-2", "batchSize": 4, "gradientAccumulation": 1, "maxLength": 256}
    resources = {"gpus": 0 if machine.dry else 1}
    with scratch(machine) as folder:
        model = make_tiny_model(folder / "model")
        job = write_job(
            folder, model, _rows(folder / "rows.jsonl"), {"training": training, "resources": resources} | blocks
        )
        found = tell(job)
    return judged(complaints(found, machine.device), **found)


def _cases(machine: Machine) -> Mapping[str, Case]:
    lora = {"LoRA": Case(partial(_run, blocks={"method": "LoRA"}), needs_gpu=False)}
    qlora = {"QLoRA": Case(partial(_run, blocks={"method": "QLoRA"}), needs_gpu=False)}
    return lora if machine.dry else lora | qlora


CHECK: Final = Check("a whole run by the command line", _cases)

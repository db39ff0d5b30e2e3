"""Trials played: a pod's end follows from what its LoRAJob says, as if it had trained."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from controller.api import Json
from controller.objects import REPORT
from controller.players import ROLE_LABEL

EVALUATIONS = 8
STEPS = 80
BEST_RATE = 1e-3
"""The learning rate with the lowest loss."""
BASE_LOSS = 3.0


def run_in(pod: Json) -> Json:
    """Return the run.json of a pod."""
    run: Json = json.loads(pod["metadata"]["annotations"]["tunery.dev/run"])
    return run


def loss_of(rate: float) -> float:
    """Return the loss that a learning rate leads to: lowest at BEST_RATE."""
    return 1.0 + 0.3 * abs(math.log10(rate / BEST_RATE))


def trial_ends(pod: Json) -> tuple[int, Any]:
    """Return how a pod of a trial, or of a sweep, ends: well."""
    role, run = pod["metadata"]["labels"][ROLE_LABEL], run_in(pod)
    if role == "preflight":
        return 0, {**REPORT, "resolved": {"method": "LoRA", "steps": STEPS, "trainableParameters": 1000}}
    adapter = {"uri": run["outputUri"], "manifestSha256": _digest(run["outputUri"]), "sizeBytes": 12}
    if role == "conclude":
        return 0, {"adapter": adapter}
    loss = loss_of(float(run["loraJob"]["training"]["learningRate"]))
    return 0, {
        "adapter": adapter,
        "metrics": {"evalLoss": f"{loss:.6g}", "baseEvalLoss": f"{BASE_LOSS:.6g}"},
        "evaluations": course(loss, EVALUATIONS),
    }


def course(loss: float, evaluations: int) -> list[Json]:
    """Return so many evaluations of a run that comes to a loss."""
    return [
        {"step": STEPS * k // EVALUATIONS, "loss": f"{BASE_LOSS + (loss - BASE_LOSS) * k / EVALUATIONS:.6g}"}
        for k in range(1, evaluations + 1)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

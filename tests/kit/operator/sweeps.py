"""Trials played: a pod's end follows from what its LoRAJob says, as if it had trained."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kit.operator.api import Json
from kit.operator.objects import REPORT
from kit.operator.players import ROLE_LABEL, ends_well

EVALUATIONS = 8
STEPS = 80
BEST_RATE = 1e-3
"""The learning rate with the lowest loss."""
BASE_LOSS = 3.0
RESOLVED: Json = {"method": "LoRA", "steps": STEPS, "trainableParameters": 1000}


def run_in(pod: Json) -> Json:
    """Return the run.json of a pod."""
    run: Json = json.loads(pod["metadata"]["annotations"]["tunery.dev/run"])
    return run


def loss_of(rate: float) -> float:
    """Return the loss that a learning rate leads to: lowest at BEST_RATE."""
    return 1.0 + 0.3 * abs(math.log10(rate / BEST_RATE))


@dataclass
class Trials:
    """Says how the pods of trials, and of their sweeps, end."""

    held: set[str] = field(default_factory=set)
    """Names of LoRAJobs whose training goes on."""
    ends: dict[str, Callable[[Json], tuple[int, Any] | None]] = field(default_factory=dict)
    """By role: another end than a good one, from the run.json."""

    def end(self, pod: Json) -> tuple[int, Any] | None:
        """Return the end of a pod that runs."""
        role, run = pod["metadata"]["labels"][ROLE_LABEL], run_in(pod)
        if role == "train" and (run["identity"]["name"] in self.held or "*" in self.held):
            return None
        how = self.ends.get(role) or _GOOD.get(role)
        # Pods that earlier tests have left behind are of other kinds, too.
        return how(run) if how is not None else ends_well(pod)


def _checked(_: Json) -> tuple[int, Any]:
    return 0, {**REPORT, "resolved": RESOLVED}


def _trained(run: Json) -> tuple[int, Any]:
    # Of a job of somebody else the rate may be left open.
    loss = loss_of(float(run["loraJob"].get("training", {}).get("learningRate", BEST_RATE)))
    return 0, {
        "adapter": _adapter(run),
        "metrics": {"evalLoss": f"{loss:.6g}", "baseEvalLoss": f"{BASE_LOSS:.6g}"},
        "evaluations": course(loss, EVALUATIONS),
        "resolved": RESOLVED,
    }


def _published_best(run: Json) -> tuple[int, Any]:
    return 0, {"adapter": _adapter(run)}


_GOOD = {"preflight": _checked, "train": _trained, "publish-best": _published_best, "report": _published_best}


def _adapter(run: Json) -> Json:
    digest = hashlib.sha256(run["outputUri"].encode()).hexdigest()
    return {"uri": run["outputUri"], "manifestSha256": digest, "sizeBytes": 12}


def course(loss: float, evaluations: int) -> list[Json]:
    """Return so many evaluations of a run that comes to a loss."""
    return [
        {"step": STEPS * k // EVALUATIONS, "loss": f"{BASE_LOSS + (loss - BASE_LOSS) * k / EVALUATIONS:.6g}"}
        for k in range(1, evaluations + 1)
    ]


def failed(reason: str, message: str) -> tuple[int, Any]:
    """Return the end of a pod that fails for good."""
    return 64, {"failure": {"reason": reason, "message": message}}

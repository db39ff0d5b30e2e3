"""A trial of a local sweep that is played: it takes no time, and how it ends follows from its learning rate and alpha.

`python -m kit.played_trial run 003.yaml --work-dir work` stands for `python -m tunery_trainer run`, by the same files.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tunery_api.failures import Failure
from tunery_api.manifest import EvaluationRecord
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.remedies import Remedy, recreate, retry
from tunery_api.runspec import PreflightReport, RunResult, RunSpec, Task
from tunery_api.status import ResolvedStatus
from tunery_common.storage import open_store
from tunery_common.storage.credentials import ambient
from tunery_common.storage.publisher import Target, publish
from tunery_trainer.local import load_run_spec
from tunery_trainer.process.trial_words import tell_sweep, with_sweep
from tunery_trainer.reporting.result import result_of

from kit.results import lineage

BASE_LOSS: Final = 3.0
BEST_RATE: Final = 1e-3
DIVERGES: Final = 1e-2
"""From this rate on."""
KILLED_FOR_MEMORY: Final = 64
"""An alpha."""
KILLED: Final = 128
LOST: Final = 256
LOST_REMEDIES: Final = [
    retry("Restore the network of the played trial"),
    recreate("Lower training.batchSize", "training.batchSize"),
]
HANGS: Final = 512
COUNTER_ENV: Final = "PLAYED_COUNTER"
"""Names the file that holds what the kernel counts."""


def loss_of(rate: float) -> float:
    """Return the loss that a learning rate leads to: lowest at BEST_RATE."""
    return 1.0 + 0.3 * abs(math.log10(rate / BEST_RATE))


def main(manifest: Path, work: Path) -> int:
    """Play one trial and return its exit code."""
    run = with_sweep(load_run_spec(manifest, work, None))
    spec = run.lora_job
    assert spec is not None
    resolved = ResolvedStatus(method="LoRA", steps=80, trainable_parameters=1000)
    tell_sweep(Task.PREFLIGHT, PreflightReport(resolved=resolved))
    alpha, rate = spec.lora.alpha or 0, float(spec.training.learning_rate or 0)
    print(f"rate {rate}, alpha {alpha}\nworks in {run.work_dir}", flush=True)
    if alpha == KILLED_FOR_MEMORY:
        Path(os.environ[COUNTER_ENV]).write_text("oom 1\noom_kill 1\n")
    if alpha in (KILLED_FOR_MEMORY, KILLED):
        os.kill(os.getpid(), signal.SIGKILL)
    if alpha == HANGS:
        time.sleep(600)
    if alpha == LOST:
        return _fails(FailureReason.STORAGE_UNAVAILABLE, ExitCode.RETRYABLE, LOST_REMEDIES)
    if rate >= DIVERGES:
        return _fails(FailureReason.LOSS_DIVERGED, ExitCode.USER_ERROR)
    tell_sweep(Task.TRAIN, _published(run, loss_of(rate)))
    return ExitCode.OK


def _fails(reason: FailureReason, code: ExitCode, remedies: Sequence[Remedy] = ()) -> int:
    failure = Failure(reason=reason, message=f"played: {reason}", remedies=list(remedies))
    tell_sweep(Task.TRAIN, RunResult(failure=failure))
    return code


def _published(run: RunSpec, loss: float) -> RunResult:
    folder = Path(run.work_dir) / "result"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
    told = lineage().model_copy(
        update={
            "metrics": {"evalLoss": loss, "baseEvalLoss": BASE_LOSS},
            "evaluations": [EvaluationRecord(step=80, loss=loss)],
        }
    )
    place = open_store(run.output_uri, ambient(), "spec.output.uri")
    return result_of(publish(folder, Target(place, run.identity, overwrite=True), told))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[2]), Path(sys.argv[4])))

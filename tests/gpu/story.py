"""A whole LoRAJob by the trainer's command line, from preflight to what is published, and its loss curve."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from tunery_trainer.cli import main
from tunery_trainer.training import run

from gpu.verdicts import Figures

_WORDS: Final = ("red", "blue", "green", "one", "two", "three")


def write_rows(path: Path) -> Path:
    """Write questions whose answers follow from them."""
    draw = random.Random(7)
    pairs = [(draw.choice(_WORDS), draw.randint(0, 99)) for _ in range(200)]
    rows = [{"prompt": f"say {word} {number}", "completion": f"{word} {word} {number}"} for word, number in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_job(folder: Path, model: Path, data: Path, blocks: dict[str, Any]) -> Path:
    """Write a LoRAJob that publishes into `folder`/out."""
    spec = {
        "model": {"uri": model.resolve().as_uri(), "servedName": "base"},
        "dataset": {"uri": data.resolve().as_uri(), "evaluation": {"fraction": 0.1}},
        "output": {"uri": f"file://{folder.resolve()}/out"},
    }
    metadata = {"name": "gpu"}
    job = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "metadata": metadata, "spec": spec | blocks}
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


def tell(job: Path) -> Figures:
    """Run the job; return its exit code and, where that is 0, losses before and after, curve, device and seconds."""
    fitted: list[Any] = []
    train_on = run.train_on

    def remembered(*arguments: Any) -> Any:
        fitted.append(train_on(*arguments))
        return fitted[0]

    begin = time.perf_counter()
    # Looked up when training begins: the command line gives out no history.
    with patch.object(run, "train_on", remembered):
        code = int(main(["run", str(job), "--work-dir", str(job.parent / "work")]))
    found: Figures = {"exit_code": code, "seconds": round(time.perf_counter() - begin, 1)}
    if code:
        return found
    manifest = json.loads((job.parent / "out" / "manifest.json").read_text())
    entries = [entry for entry in fitted[0].history if "loss" in entry]
    curve = [(int(entry["step"]), round(float(entry["loss"]), 4)) for entry in entries]
    return found | {
        "loss_before": fitted[0].base_eval_loss,
        "loss_after": fitted[0].eval_loss,
        "device": fitted[0].device,
        "curve": curve[:: max(1, len(curve) // 50)],
        "files": sorted(path.name for path in (job.parent / "out").iterdir()),
        "metrics": manifest["lineage"]["metrics"],
    }


def complaints(found: Figures, device: str) -> dict[str, bool]:
    """Return what would be wrong with a run on `device`: cpu, or a GPU."""
    if found["exit_code"]:
        return {f"the trainer ended with {found['exit_code']}; its words are in the log": True}
    return {
        "the held-out loss did not go down": not found["loss_after"] < found["loss_before"],
        "it was trained on another device": (found["device"] == "cpu") != (device == "cpu"),
    }

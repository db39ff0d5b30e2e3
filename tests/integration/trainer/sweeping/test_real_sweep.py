"""A sweep of a tiny model without a cluster, with real trials: better than the guide, and killed on its way.

Narrower than docs/examples/sweep.yaml, which takes hours here: four trials of a model that knows nothing, three
parameters of LoRA fixed, and a learning rate that is searched where such a model learns.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tunery_api.methods import Preset
from tunery_api.reasons import ExitCode

from kit.fork_server import trainer_server
from kit.peft_reader import held_out_rows, plain_peft, single_row_loss
from kit.story import Case, command, environment, manifest, run_here

SPACE: dict[str, Any] = {
    "preset": "Guide",
    "parameters": [{"path": "training.learningRate", "range": {"min": 1e-4, "max": 1e-2, "log": True}}],
    "maxTrials": 4,
    "seed": 31,
}
"""The guide's three, and one whose rate suits a model that knows nothing."""


def write_sweep(folder: Path) -> Path:
    """Write the manifest of a sweep of the tiny model."""
    template = {key: value for key, value in manifest(folder)["spec"].items() if key != "output"}
    template["training"] = {**template["training"], "maxSteps": 100}
    template["checkpoint"] = {"everySteps": 10}
    del template["training"]["learningRate"]
    template["lora"] = {"rank": 8, "alpha": 16, "targetModules": ["all-linear"]}
    spec = {**SPACE, "template": template, "output": {"uri": f"file://{folder}/out"}}
    path = folder / "sweep.yaml"
    content = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRASweep", "metadata": {"name": "support"}}
    path.write_text(json.dumps({**content, "spec": spec}))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    (file,) = (path.parent / "work").glob("sweep-*/sweep.json")
    rows: list[dict[str, Any]] = json.loads(file.read_text())["trials"]
    return rows


def killed_in_training(path: Path) -> Path:
    """Start a sweep, kill it as a trial trains that is not the first, and return that one's log."""
    work = path.parent / "work"
    words = command("run", path, "--work-dir", work)
    null = subprocess.DEVNULL
    with trainer_server().popen(words, env=environment(), stdout=null, stderr=null) as process:
        while process.poll() is None:
            # Checkpoints of a trial that has ended are gone.
            if any(work.glob("sweep-*/001.log")) and any(
                work.glob("sweep-*/trials/checkpoints/*/step-*/complete.json")
            ):
                process.kill()
            time.sleep(0.01)
    return max(work.glob("sweep-*/*.log"))


@pytest.mark.slow
def test_it_finds_better_settings_than_the_guide_and_goes_on_after_it_was_killed(case: Case) -> None:
    path = write_sweep(case().parent)
    log = killed_in_training(path)
    before = rows_of(path)
    assert 0 < len(before) < 4, "killed in the middle"
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    rows = rows_of(path)
    assert rows[: len(before)] == before
    assert [row["origin"] for row in rows] == [*(preset.value for preset in Preset), "TPE"]
    assert re.search("Resuming from the checkpoint|has published before", log.read_text())
    assert [row["state"] for row in rows] == ["Complete"] * 4, rows
    losses = [float(row["value"]) for row in rows]
    best = min(losses)
    assert best < 0.9 * min(losses[:3])
    assert all(len(row["evaluations"]) > 1 and row["trainableParameters"] == 16384 for row in rows)
    assert f"The best is trial {losses.index(best)}: loss {rows[losses.index(best)]['value']}" in done.stdout
    model = plain_peft(path.parent, None)
    (folder,) = (path.parent / "work").glob("sweep-*")
    assert single_row_loss(model, held_out_rows(folder, "trials")) == pytest.approx(best, rel=0.01)

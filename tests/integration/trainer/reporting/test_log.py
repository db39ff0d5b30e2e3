"""What `kubectl logs -f` shows of a training pod, whether or not the operator takes its reports."""

from __future__ import annotations

import json
import subprocess

import pytest

from tunery_api.reasons import ExitCode

from kit.story import Case, command, environment, manifest

OF_OTHERS = {
    **dict.fromkeys(("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"), "2"),
    **dict.fromkeys(("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"), "true"),
    "AWS_PROFILE": "of-no-file",
}
"""Variables of a launcher, or of a user's shell, that are none of a run's business."""


@pytest.mark.slow
def test_a_pods_log_follows_the_run(case: Case) -> None:
    folder = case().parent
    uris = {name: {"uri": f"file://{folder}/{file}"} for name, file in (("model", "model"), ("dataset", "data.jsonl"))}
    # Long enough that the loop says something of its own: what follows within a second takes a line's place.
    spec = manifest(folder, training={"maxSteps": 240}, checkpoint={"everySteps": 120}, **uris)["spec"]
    content = {
        "identity": {"kind": "LoRAJob", "namespace": "team", "name": "tiny", "uid": "u-1"},
        "loraJob": spec,
        "outputUri": spec["output"]["uri"],
        "workDir": str(folder / "work"),
        "local": True,
    }
    (folder / "run.json").write_text(json.dumps(content))
    variables = {**OF_OTHERS, "KUBEFLOW_TRAINER_SERVER_URL": "https://127.0.0.1:1/progress"}
    line = command("train", folder / "run.json")
    done = subprocess.run(line, env=environment(**variables), capture_output=True, text=True)
    assert done.returncode == ExitCode.OK, done.stderr
    lines = done.stdout.splitlines()
    # Two phases within a second of each other are one line: the newer.
    expected = [
        "Starting",
        "Device     CPU (",
        f"Tokenizing {uris['dataset']['uri']}",
        f"Model      {uris['model']['uri']}, ",
        f"Data       {uris['dataset']['uri']}, 40 sequences to train on, 12 held out",
        "Method     LoRA, 240 steps on the CPU",
        "Loading    the base model, ",
        "Training  step ",
        "Succeeded  step 240/240 (100 %)  ",
        f"Published {spec['output']['uri']}",
    ]
    found = [next((index for index, line in enumerate(lines) if line.startswith(start)), -1) for start in expected]
    assert found == sorted(found), done.stdout
    assert found[0] == 0, done.stdout
    assert "  loss " in lines[found[-2]]
    said = [
        line for line in done.stderr.splitlines() if not line.startswith("WARNING tunery_trainer.reporting.progress: ")
    ]
    assert said == [], "what libraries tell their programmers is of no use to who reads the log of a pod"

"""Two LoRAJobs and AdapterMerges that name them, applied together in one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from e2e.conftest import adaptermerge, lorajob

from kit.jobs import Job
from kit.kubectl import Kubectl
from kit.published import download, list_keys

LOAD_ADAPTER = """
import sys; from peft import PeftModel; from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
print(model.peft_config["default"].r)
"""
LOAD_MODEL = """
import sys; from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]); AutoTokenizer.from_pretrained(sys.argv[1])
print(sum(p.numel() for p in model.parameters()))
"""


def test_merges_wait_run_and_load(kubectl: Kubectl, namespace: str, s3: Any, tmp_path: Path) -> None:
    inputs = [{"loraJobRef": {"name": "one"}, "weight": 0.7}, {"loraJobRef": {"name": "two"}, "weight": 0.3}]
    manifests = [
        lorajob(namespace, "one", lora={"rank": 4}),
        lorajob(namespace, "two", lora={"rank": 8}, training={"maxSteps": 10, "seed": 7, "maxLength": 128}),
        adaptermerge(namespace, "both", adapters=inputs, method="TIES", density=0.5),
        adaptermerge(namespace, "baked", adapters=inputs[:1], into="Model",
                     model={"uri": "s3://models/tiny", "secretRef": {"name": "s3"}}),
    ]  # fmt: skip
    kubectl.apply(*manifests, namespace=namespace)
    one, two, both, baked = (Job(kubectl, manifest, namespace) for manifest in manifests)
    both.wait_phase("Waiting", timeout=30)
    assert both.condition("InputsReady")["status"] == "False"
    assert both.jobs("merge") == []
    for job in (one, two, both, baked):
        job.wait_phase("Succeeded", timeout=600)

    status = both.status
    assert [entry["rank"] for entry in status["inputs"]] == [4, 8]
    assert [entry["sha256"] for entry in status["inputs"]] == [
        job.status["adapter"]["manifestSha256"] for job in (one, two)
    ]
    assert float(status["verification"]["maxError"]) < 1
    model = tmp_path / "model"
    model.mkdir()
    for key in list_keys(s3, "s3://models/tiny"):
        s3.download_file("models", f"tiny/{key}", str(model / key))
    download(s3, status["adapter"]["uri"], tmp_path / "both")
    assert _python(LOAD_ADAPTER, model, tmp_path / "both") == str(status["rank"])
    download(s3, baked.status["adapter"]["uri"], tmp_path / "baked")
    assert int(_python(LOAD_MODEL, tmp_path / "baked")) > 0
    assert "quantization_config" not in json.loads((tmp_path / "baked" / "config.json").read_text())


def test_a_merge_fails_when_an_input_fails(kubectl: Kubectl, namespace: str) -> None:
    broken = lorajob(namespace, "broken", output={"uri": "s3://no-such-bucket/x", "secretRef": {"name": "s3"}})
    merge = adaptermerge(namespace, "hopeless", adapters=[{"loraJobRef": {"name": "broken"}}])
    kubectl.apply(broken, merge, namespace=namespace)
    status = Job(kubectl, merge, namespace).wait_phase("Failed")
    assert "broken" in status["failure"]["message"]
    assert Job(kubectl, merge, namespace).jobs("merge") == []


def _python(script: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

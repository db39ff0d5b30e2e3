"""The demo, step by step, each with the time it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunery_api.kubectl_yaml import documents_of
from tunery_api.measured import change_text

from kit.environment import cluster_environment, images, is_existing, uri_root
from kit.installation import ROOT, install
from kit.jobs import Job
from kit.kubectl import Kubectl
from kit.published import download, list_keys, s3_client, split_uri
from kit.tenant import create_tenant
from tools.cluster import seed
from tools.demo.answers import QUESTIONS, print_answers
from tools.demo.jobs import begin, follow
from tools.demo.telling import NAMESPACE, console, ended, step

MANIFEST = ROOT / "docs" / "examples" / "quickstart.yaml"


def main() -> int:
    """Run the demo; return the exit code."""
    return ended(_demo)


def _demo() -> None:
    began = time.monotonic()
    environment = cluster()
    kubectl = installed(environment)
    job = _train(kubectl, uri_root(environment))
    with fetched(environment, job.status["adapter"]["uri"], job.manifest["spec"]["model"]["uri"]) as (adapter, model):
        told = compare(adapter, model)
    _farewell(job, told, time.monotonic() - began)


def cluster() -> dict[str, str]:
    if not is_existing():
        with step("Start the local cluster: Kubernetes, S3 server, registry, images, model, data"):
            subprocess.run([sys.executable, "-m", "tools.cluster", "up"], cwd=ROOT / "tests", check=True)
    environment = cluster_environment()
    if is_existing():
        with step(f"Upload the model and the data set below {uri_root(environment)}"):
            seed.upload(s3_client(environment), uri_root(environment))
    return environment


def installed(environment: dict[str, str], besides: str = "", *settings: str) -> Kubectl:
    """Install the chart, with more settings that `besides` tells of, and make the tenant; return kubectl."""
    kubectl = Kubectl(environment)
    with step(f"Install the chart with Helm{besides}"):
        # What an earlier demo has set stays: with another engine its server, which may still run, would be replaced.
        install(kubectl, images(environment), *settings, keep=True)
    with step(f"Make a tenant: namespace {NAMESPACE} (restricted Pod Security) and its Secret s3"):
        create_tenant(kubectl, NAMESPACE, environment)
    return kubectl


def _train(kubectl: Kubectl, root: str) -> Job:
    text = MANIFEST.read_text().replace("s3://", root)
    (manifest,) = documents_of(text)
    job = Job(kubectl, manifest, NAMESPACE)
    with step(f"Apply {MANIFEST.relative_to(ROOT)}"):
        console.print(text, style="cyan", markup=False)
        begin(job)
    with step("Fine-tune. The table shows the status of the LoRAJob"):
        follow(job)
    return job


@contextmanager
def fetched(environment: dict[str, str], adapter_uri: str, model_uri: str) -> Iterator[tuple[Path, Path]]:
    """Give adapter and model as folders on the disk, until the block ends."""
    client = s3_client(environment)
    with tempfile.TemporaryDirectory() as scratch:
        adapter, model = Path(scratch, "adapter"), Path(scratch, "model")
        with step("Fetch the adapter and its base model from S3"):
            download(client, adapter_uri, adapter)
            _download_model(client, model_uri, model)
        yield adapter, model


def compare(adapter: Path, model: Path) -> list[dict[str, str]]:
    """Load model and adapter with plain transformers and PEFT, and ask both."""
    with step("Load the adapter with plain PEFT, and ask the base model and the fine-tuned one"):
        told = subprocess.run(
            [sys.executable, "-m", "tools.demo.answers", "--json", str(model), str(adapter), *QUESTIONS],
            cwd=ROOT / "tests", env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=True, capture_output=True,
        )  # fmt: skip
    answers: list[dict[str, str]] = json.loads(told.stdout)
    return answers


def _download_model(client: Any, uri: str, folder: Path) -> None:
    bucket, prefix = split_uri(uri)
    for key in list_keys(client, uri):
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, f"{prefix}/{key}", str(path))


def _farewell(job: Job, told: list[dict[str, str]], seconds: float) -> None:
    status = job.status
    metrics = status["metrics"]
    console.print()
    print_answers(told)
    console.print()
    base, tuned = float(metrics["baseEvalLoss"]), float(metrics["evalLoss"])
    change = change_text(-float(metrics["improvement"]), float(metrics["improvementError"]))
    console.print(f"evaluation loss  {base:.3f} → {tuned:.3f}  {change} on held-out rows")
    console.print(f"adapter          {status['adapter']['uri']}")
    console.print(f"time             {seconds:.0f} s, after the environment was ready")
    console.print("\nTry next:")
    if not is_existing():
        console.print('  eval "$(make -s cluster-env)"   # once in each shell, for kubectl', markup=False)
    console.print(f"  kubectl describe lorajob {job.name} -n {NAMESPACE}", markup=False)
    console.print("  make demo-serving    # this adapter and a second one, answered side by side by vLLM", markup=False)
    console.print("  make demo-sweep      # six LoRAJobs search for better settings", markup=False)
    console.print("  kubectl explain lorajob.spec.lora", markup=False)
    if is_existing():
        console.print(f"  kubectl -n {NAMESPACE} get lorajob quickstart -o yaml", markup=False)
    else:
        merge = f"kubectl -n {NAMESPACE} apply -f docs/examples/merge-ties.yaml"
        console.print(f"  {merge}   # train two adapters and merge them", markup=False)
    console.print("  docs/quickstart.md   # a job with your own data", markup=False)
    if not is_existing():
        console.print("  make cluster-down    # remove the cluster", markup=False)


if __name__ == "__main__":
    sys.exit(main())

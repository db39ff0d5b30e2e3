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

import yaml
from rich.console import Console

from tunery_api.measured import change_text

from cluster import seed
from demo.answers import print_answers
from kit.environment import MissingEnvironment, cluster_environment, images, is_existing, uri_root
from kit.installation import ROOT, install
from kit.jobs import Job
from kit.kubectl import Kubectl, KubectlError
from kit.published import download, list_keys, s3_client, split_uri
from kit.tenant import create_tenant

NAMESPACE = "tunery-demo"
MANIFEST = ROOT / "docs" / "examples" / "quickstart.yaml"
QUESTIONS = ["Are you a robot?", "Do you like movies?"]
TIMEOUT_SECONDS = 900
COLUMNS = ("phase", "progress", "loss", "eval loss", "eta")

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run the demo; return the exit code."""
    began = time.monotonic()
    try:
        environment = cluster()
        kubectl = Kubectl(environment)
        with step("Install the chart with Helm"):
            install(kubectl, images(environment))
        with step(f"Make a tenant: namespace {NAMESPACE} (restricted Pod Security) and its Secret s3"):
            create_tenant(kubectl, NAMESPACE, environment)
        job = _train(kubectl, uri_root(environment))
        told = _compare(environment, job)
    except (MissingEnvironment, KubectlError, AssertionError, TimeoutError, subprocess.CalledProcessError) as error:
        console.print(f"[red]{type(error).__name__}[/]: {error}", markup=True)
        return 1
    _farewell(job, told, time.monotonic() - began)
    return 0


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done, and when it is done how long it took."""
    began = time.monotonic()
    console.print(f"[bold]▸ {what}[/]")
    yield
    console.print(f"  done in {time.monotonic() - began:.0f} s")


def cluster() -> dict[str, str]:
    if not is_existing():
        with step("Start the local cluster: Kubernetes, S3 server, registry, images, model, data"):
            subprocess.run([sys.executable, "-m", "cluster", "up"], cwd=ROOT / "tests", check=True)
    environment = cluster_environment()
    if is_existing():
        with step(f"Upload the model and the data set below {uri_root(environment)}"):
            seed.upload(s3_client(environment), uri_root(environment))
    return environment


def _train(kubectl: Kubectl, root: str) -> Job:
    text = MANIFEST.read_text().replace("s3://", root)
    job = Job(kubectl, yaml.safe_load(text), NAMESPACE)
    with step(f"Apply {MANIFEST.relative_to(ROOT)}"):
        kubectl.delete(job.kind, job.name, NAMESPACE)
        console.print(text, style="cyan", markup=False)
        job.apply()
    with step(f"Fine-tune: kubectl get lorajob {job.name} -n {NAMESPACE} -w"):
        follow(job)
    return job


def follow(job: Job) -> None:
    """Print a line whenever what `kubectl get lorajob` shows has changed, until the job has ended."""
    console.print("  " + "".join(f"{name.upper():<14}" for name in COLUMNS))
    shown: tuple[str, ...] = ()
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        status = job.status
        row = _row(status)
        if row != shown:
            console.print("  " + "".join(f"{cell:<14}" for cell in row))
            shown = row
        if status.get("phase") == "Succeeded":
            return
        if status.get("phase") == "Failed":
            failure = status.get("failure", {})
            raise AssertionError(f"{failure.get('reason')}: {failure.get('message')}\n{failure.get('hint')}")
        time.sleep(1)
    go_on = f"it goes on: kubectl get lorajob {job.name} -n {NAMESPACE} -w"
    raise TimeoutError(f"LoRAJob {job.name} has not ended within {TIMEOUT_SECONDS} s; {go_on}\n{job.story()}")


def _row(status: dict[str, Any]) -> tuple[str, ...]:
    progress, metrics = status.get("progress", {}), status.get("metrics", {})
    cells = (
        status.get("phase", "Pending"), progress.get("percentText"), metrics.get("loss"), metrics.get("evalLoss"),
        progress.get("eta"),
    )  # fmt: skip
    return tuple(str(cell) if cell else "" for cell in cells)


def _compare(environment: dict[str, str], job: Job) -> list[dict[str, str]]:
    """Load model and adapter from S3 with plain transformers and PEFT, and ask both."""
    client = s3_client(environment)
    with step("Load the adapter from S3 with plain PEFT, and ask the base model and the fine-tuned one"):
        with tempfile.TemporaryDirectory() as scratch:
            adapter, model = Path(scratch, "adapter"), Path(scratch, "model")
            download(client, job.status["adapter"]["uri"], adapter)
            _download_model(client, job.manifest["spec"]["model"]["uri"], model)
            told = subprocess.run(
                [sys.executable, "-m", "demo.answers", "--json", str(model), str(adapter), *QUESTIONS],
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
    console.print(f"everything took  {seconds:.0f} s")
    console.print("\nTry next:")
    prefix = "" if is_existing() else 'eval "$(make -s cluster-env)"; '
    third = "get lorajob quickstart -o yaml" if is_existing() else "apply -f docs/examples/merge-ties.yaml"
    console.print(f"  {prefix}kubectl describe lorajob {job.name} -n {NAMESPACE}", markup=False)
    console.print("  make demo-serving    # this adapter and a second one, answered side by side by vLLM", markup=False)
    console.print("  kubectl explain lorajob.spec.lora", markup=False)
    console.print(f"  kubectl -n {NAMESPACE} {third}", markup=False)


if __name__ == "__main__":
    sys.exit(main())

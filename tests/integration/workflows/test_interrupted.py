"""A run is killed, suspended and stopped: it resumes exactly, and publishes the best of its weights so far."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kit.published import download, list_keys
from kit.workflows import Tenant, assert_adapts, training
from tools.cluster.s3 import S3Server

EVERY = {"everySteps": 20}
WHY = "the loss is low enough"


def test_an_interrupted_run_resumes_exactly_and_a_stopped_one_publishes_its_best(
    tenant: Tenant, model: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    endless = training(100_000, warmup=0)
    for name in ("steady", "interrupted"):
        tenant.apply(tenant.lorajob(name, training=endless, evaluation=EVERY, checkpoint=EVERY))
    killed_at = kill(tenant, "interrupted")
    tenant.wait_checkpoint("interrupted", after=killed_at + 20)
    suspended_at = suspend(tenant, "interrupted")
    tenant.wait_checkpoint("steady", after=suspended_at + 40)
    tenant.patch_spec("steady", stop=WHY)
    tenant.wait_checkpoint("interrupted", after=suspended_at + 20)
    tenant.patch_spec("interrupted", stop=WHY)

    losses = {name: published_losses(tenant, s3_server, name, tmp_path) for name in ("steady", "interrupted")}
    assert_adapts(model, tmp_path / "interrupted")
    history = tenant.status("interrupted")["attemptHistory"]
    assert [attempt["reason"] for attempt in history] == ["OutOfMemory", "Suspended", "Stopped"]
    first, second = resumed_from(tenant, "interrupted")
    assert killed_at <= first < suspended_at <= second
    both = losses["steady"].keys() & losses["interrupted"].keys()
    assert max(both) > second
    assert [losses["interrupted"][each] for each in both] == [losses["steady"][each] for each in both]


def resumed_from(tenant: Tenant, name: str) -> list[int]:
    """Return the steps whose checkpoints the pods of a run have resumed from."""
    return [int(step) for step in re.findall(r"Resuming from the checkpoint of step (\d+)", tenant.log(name, "train"))]


def kill(tenant: Tenant, name: str) -> int:
    """Kill the pod of a run after its first checkpoint, as the kernel does for memory; return the checkpoint's step."""
    step = tenant.wait_checkpoint(name)
    (pod,) = [pod for pod in tenant.processes("train") if pod.owner == name]
    pod.kill("OOMKilled")
    return step


def suspend(tenant: Tenant, name: str) -> int:
    """Suspend a run and let it continue; return the step that it was suspended after."""
    tenant.patch_spec(name, suspend=True)
    step: int = tenant.wait_phase(name, "Suspended")["checkpoint"]["step"]
    tenant.patch_spec(name, suspend=False)
    return step


def published_losses(tenant: Tenant, s3_server: S3Server, name: str, folder: Path) -> dict[int, float]:
    """Return the evaluation losses of a stopped run, by step, once what it published is as it should be."""
    status = tenant.wait_phase(name, "Stopped")
    s3, uri = s3_server.client(), f"s3://adapters/{tenant.name}/{name}"
    manifest = download(s3, uri, folder / name)
    assert set(list_keys(s3, uri)) == {*manifest["files"], "manifest.json"}
    lineage: dict[str, Any] = manifest["lineage"]
    losses = {each["step"]: each["loss"] for each in lineage["evaluations"]}
    assert lineage["step"] == min(losses, key=lambda step: losses[step])
    assert lineage["stopped"]["afterStep"] == status["checkpoint"]["step"]
    assert WHY in lineage["stopped"]["why"]
    published = [pod for pod in tenant.processes("publish") if pod.owner == name]
    assert len(published) == 1
    return losses

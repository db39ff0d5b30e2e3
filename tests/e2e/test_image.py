"""The trainer's image has what a GPU run needs, in a pod as the operator makes it; the GPU alone is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.conftest import Launch

from kit.kubectl import Kubectl, wait_for

SCRIPT = Path(__file__).with_name("in_image.py")
NAME = "in-image"


def test_the_image_has_what_a_gpu_run_needs(launch: Launch, kubectl: Kubectl, namespace: str) -> None:
    job = launch("shape", training={"maxSteps": 1, "batchSize": 1, "gradientAccumulation": 1, "maxLength": 64})
    (trained,) = wait_for("the train pod", lambda: job.pods("train"), 120)
    kubectl.apply(like(trained, namespace))
    done = wait_for("the checks to end", lambda: ended(kubectl, namespace), 300)
    log = kubectl.run("logs", NAME, "-n", namespace)
    assert done["status"]["phase"] == "Succeeded", log
    outcomes = json.loads(log.splitlines()[-1])
    assert len(outcomes) > 10
    assert {name: fault for name, fault in outcomes.items() if fault} == {}


def like(pod: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Return a pod with the user, the read-only root and the volumes of a train pod, that runs the checks."""
    (container,) = pod["spec"]["containers"]
    kept = ("image", "imagePullPolicy", "securityContext", "env", "resources")
    mounts = [mount for mount in container["volumeMounts"] if "serviceaccount" not in mount["mountPath"]]
    checks = {key: container[key] for key in kept if key in container} | {
        "name": "checks",
        "command": ["python", "-c", SCRIPT.read_text()],
        "volumeMounts": mounts,
    }
    names = {mount["name"] for mount in mounts}
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": pod["spec"]["securityContext"],
        "volumes": [volume for volume in pod["spec"]["volumes"] if volume["name"] in names],
        "containers": [checks],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "namespace": namespace}, "spec": spec}


def ended(kubectl: Kubectl, namespace: str) -> dict[str, Any] | None:
    pod = kubectl.get("pod", NAME, namespace)
    return pod if pod and pod["status"]["phase"] in ("Succeeded", "Failed") else None

"""The cluster that the demo and the end-to-end tests run on: the local one, or the user's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
NEEDED = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "DEMO_BUCKET",
    "TUNERY_OPERATOR_IMAGE",
    "TUNERY_TRAINER_IMAGE",
    "TUNERY_SERVER_IMAGE",
)


class MissingEnvironment(Exception):
    """CLUSTER=existing, and a variable that it needs is not set."""


def is_existing() -> bool:
    """Tell whether the user asked for the cluster of the current kubeconfig."""
    return os.environ.get("CLUSTER", "local") == "existing"


def uri_root(environment: Mapping[str, str]) -> str:
    """Return what the manifests' `s3://` stands for: in a cluster of the user's all lies in one bucket."""
    return f"s3://{environment['DEMO_BUCKET']}/tunery-demo/" if is_existing() else "s3://"


def cluster_environment() -> dict[str, str]:
    """Return the environment in which kubectl, helm and boto3 reach the cluster and its S3 server.

    Raises MissingEnvironment for an existing cluster that lacks a variable, CalledProcessError when the local
    cluster is not running.
    """
    if is_existing():
        missing = [name for name in NEEDED if not os.environ.get(name)]
        if missing:
            raise MissingEnvironment(
                f"CLUSTER=existing needs {', '.join(missing)}: an S3 endpoint that pods and this machine reach, a "
                "bucket there, and the images that `make push REGISTRY=…` printed"
            )
        return dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-m", "tools.cluster", "env"], cwd=TESTS, check=True, capture_output=True, text=True
    )
    return {**os.environ, **parse_exports(done.stdout)}


def parse_exports(text: str) -> dict[str, str]:
    """Return the variables of lines such as `export NAME='value'`; $PATH in a value is this process's."""
    variables = {}
    for line in text.splitlines():
        words = shlex.split(line)
        if len(words) == 2 and words[0] == "export":
            name, _, value = words[1].partition("=")
            variables[name] = value.replace("$PATH", os.environ["PATH"])
    return variables


def images(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the product's images, by the value of the chart that names each."""
    return {
        "operator.image": environment["TUNERY_OPERATOR_IMAGE"],
        "trainer.image": environment["TUNERY_TRAINER_IMAGE"],
        "serving.server.image": environment["TUNERY_SERVER_IMAGE"],
    }


def engine_settings(environment: Mapping[str, str], engine: str) -> list[str]:
    """Return the chart's settings for an engine on CPUs: `vllm` or `stand-in`, of tests/tools/cluster/images.py.

    In a cluster of the user's TUNERY_ENGINE_IMAGE names the image; raises MissingEnvironment where nothing does.
    """
    image = environment.get("TUNERY_ENGINE_IMAGE")
    if image is None and is_existing():
        raise MissingEnvironment("CLUSTER=existing needs TUNERY_ENGINE_IMAGE, an image of vLLM that its nodes can run")
    if image is None:
        command = [sys.executable, "-m", "tools.cluster", "engine", engine]
        done = subprocess.run(command, cwd=TESTS, check=True, stdout=subprocess.PIPE, text=True)
        image = parse_exports(done.stdout)["TUNERY_ENGINE_IMAGE"]
    return [
        f"serving.engine.image={image}",
        "serving.engine.plugins={tunery_cpu_fix}",
        "serving.server.resources.cpu=300m",
        "serving.engine.runAsUser=null",
    ]

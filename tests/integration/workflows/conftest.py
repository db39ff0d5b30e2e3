"""What workflows share: an operator, a node whose pods are processes, a model and rows in the S3 server."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.fork_server import trainer_server
from kit.operator.api import Api
from kit.operator.process import OperatorProcess
from kit.operator.stage import Stage, make_namespace
from kit.process_kubelet import GROUP, NODE, PLACEMENT, USER, Process, ProcessKubelet
from kit.story import make_rows, write_rows
from kit.tiny_models import write_chat_model
from kit.workflows import BAD_ROWS, MODEL, ROWS, Tenant
from tools.cluster.controlplane import ControlPlane
from tools.cluster.daemon import ENDS_WITH_PARENT
from tools.cluster.s3 import S3Server


def popen(command: list[str], **options: Any) -> Process:
    """Start a Python program as a fork that has its imports done, any other one as a new process."""
    start = trainer_server().popen if command[0] == sys.executable else subprocess.Popen
    process: Process = start([*ENDS_WITH_PARENT, *command], **options)
    return process


@pytest.fixture(scope="module")
def kubelet(
    control_plane: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessKubelet]:
    """The node; pods have their folders in a new one."""
    kubeconfig = control_plane.client_kubeconfig("processes", USER, GROUP)
    trainer_server()  # before threads ask for it at once, which would start several
    with ProcessKubelet(kubeconfig, tmp_path_factory.mktemp("pods"), popen) as kubelet:
        yield kubelet
    api.delete(f"/api/v1/nodes/{NODE}")


@pytest.fixture(scope="module")
def operator(stage: Stage) -> Iterator[OperatorProcess]:
    """The operator, whose platform puts all pods on the node; its log must be clean at the end."""
    stage.clear()
    template = PLACEMENT | {"env": {"OMP_NUM_THREADS": "1"}}
    operator = stage.make(
        trainer=template,
        preflight=PLACEMENT,
        progress={"writeSeconds": 1},
    )
    operator.popen = subprocess.Popen  # here it starts as in its image, not as a fork
    operator.start()
    yield operator
    assert operator.stop() == 0
    operator.assert_clean_log()


@pytest.fixture(scope="module")
def model(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model in its bucket, and beside it rows, also with a bad line 17; returns its folder."""
    folder = write_chat_model(tmp_path_factory.mktemp("workflows") / "model", num_hidden_layers=1)
    for path in folder.iterdir():
        upload(s3_server, path, f"{MODEL}/{path.name}")
    rows: list[Any] = make_rows(60)
    upload(s3_server, write_rows(folder.parent / "rows.jsonl", rows), ROWS)
    rows[16] = {"prompt": "no answer"}
    upload(s3_server, write_rows(folder.parent / "line-17.jsonl", rows), BAD_ROWS)
    return folder


def upload(s3_server: S3Server, path: Path, uri: str) -> None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3_server.client().upload_file(str(path), bucket, key)


@pytest.fixture
def tenant(
    api: Api, operator: OperatorProcess, kubelet: ProcessKubelet, model: Path, s3_server: S3Server
) -> Iterator[Tenant]:
    """A namespace with the Secret of the buckets; no process of it outlives the test."""
    tenant = Tenant(api, make_namespace(api).name, kubelet)
    data = {name: base64.b64encode(value.encode()).decode() for name, value in s3_server.environment().items()}
    api.call("POST", tenant.path("secrets"), {"metadata": {"name": "s3"}, "data": data})
    yield tenant
    api.delete(f"/api/v1/namespaces/{tenant.name}")
    for pod in kubelet.of_namespace(tenant.name):
        pod.kill()

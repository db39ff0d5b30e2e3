"""Children are deleted as they were seen: another object of the same name stays."""

from __future__ import annotations

from dataclasses import replace

from kubernetes.client.configuration import Configuration
from kubernetes.config import load_kube_config

from tunery_operator.client.apply import delete_job
from tunery_operator.client.client import KubeClient
from tunery_operator.client.connection import Connection
from tunery_operator.client.permissions import GET_JOB, JOBS
from tunery_operator.observed.job import parse_job

from tools.cluster.controlplane import ControlPlane

JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "seen"},
    "spec": {
        "suspend": True,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]}},
    },
}


def test_a_job_with_another_uid_is_not_deleted(control_plane: ControlPlane) -> None:
    configuration = Configuration()
    load_kube_config(str(control_plane.kubeconfig), client_configuration=configuration)
    with KubeClient(Connection(configuration)) as client:
        job = parse_job(client.request(JOBS.create, "default", body=JOB))
        delete_job(client, "default", replace(job, uid="of-an-earlier-job"))
        assert client.get(GET_JOB, "default", "seen") is not None
        delete_job(client, "default", job)
        assert client.get(GET_JOB, "default", "seen") is None

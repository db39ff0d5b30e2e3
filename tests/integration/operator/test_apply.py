"""Children are deleted as they were seen: another object of the same name stays."""

from __future__ import annotations

from dataclasses import replace

from tunery_operator.client.apply import delete_job
from tunery_operator.client.client import KubeClient
from tunery_operator.client.permissions import GET_JOB, JOBS
from tunery_operator.observed.job import parse_job

JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "seen"},
    "spec": {
        "suspend": True,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]}},
    },
}


def test_a_job_with_another_uid_is_not_deleted(client: KubeClient) -> None:
    job = parse_job(client.request(JOBS.create, "default", body=JOB))
    delete_job(client, "default", replace(job, uid="of-an-earlier-job"))
    assert client.get(GET_JOB, "default", "seen") is not None
    delete_job(client, "default", job)
    assert client.get(GET_JOB, "default", "seen") is None

"""Failures of a LoRAJob with a hint that a user can follow: how each is made, and what its hint says, done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from e2e.conftest import ROWS, TINY, chat, lorajob, report_place

from kit.forwarding import way
from kit.hub_server import HubServer
from kit.jobs import Job
from kit.kubectl import Kubectl
from kit.published import list_keys, split_uri
from kit.tenant import s3_secret

NAMESPACE = "e2e-hints"
S3 = {"name": "s3"}
STEPS = {"maxSteps": 6, "learningRate": 1e-2, "batchSize": 2, "gradientAccumulation": 1, "maxLength": 128}


@dataclass(frozen=True)
class Place:
    """Where one row is tried: its job's name, a prefix of its own in each bucket, and what is there to make things."""

    row: str
    kubectl: Kubectl
    s3: Any
    environment: dict[str, str]
    ways: ExitStack
    """Open until all rows are done."""
    hubs: list[HubServer] = field(default_factory=list)
    """An imitation of the hub, where the row has one."""

    def job(self, name: str = "", **blocks: Any) -> Job:
        """Return the row's job, or another one of the row, not applied yet."""
        common = {
            "training": STEPS,
            "resources": {"gpus": 0, "cpu": "300m", "memory": "3Gi", "ephemeralStorage": "2Gi"},
        }
        return Job(self.kubectl, lorajob(NAMESPACE, name or self.row, **(common | blocks)), NAMESPACE)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects in the namespace of the rows."""
        self.kubectl.apply(*objects, namespace=NAMESPACE)

    def secret(self, **keys: str) -> dict[str, Any]:
        """Return the Secret with the name of the row; `keys` replace its own."""
        return s3_secret(NAMESPACE, self.environment | keys, name=self.row)

    def put(self, uri: str, body: bytes) -> None:
        """Write an object."""
        bucket, key = split_uri(uri)
        self.s3.put_object(Bucket=bucket, Key=key, Body=body)

    def copy(self, source: str, target: str) -> None:
        """Copy all below a prefix."""
        (bucket, prefix), (into, below) = split_uri(source), split_uri(target)
        for key in list_keys(self.s3, source):
            origin = {"Bucket": bucket, "Key": f"{prefix}/{key}"}
            self.s3.copy_object(Bucket=into, Key=f"{below}/{key}", CopySource=origin)

    def remove(self, uri: str) -> None:
        """Remove all below a prefix; nothing may be there."""
        bucket, prefix = split_uri(uri)
        for key in list_keys(self.s3, uri):
            self.s3.delete_object(Bucket=bucket, Key=f"{prefix}/{key}")

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port of the S3 server."""
        parts = urlsplit(self.environment["AWS_ENDPOINT_URL"])
        assert parts.hostname
        return parts.hostname, parts.port or 80


Follow = Callable[[Place, Job], Job]


@dataclass(frozen=True)
class Row:
    """One failure: the reason and the words that the status must show, what makes it, and its hint, done.

    `follow` returns the job that must succeed then.
    """

    reason: str
    said: str
    hint: str
    follow: Follow
    blocks: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Place], None] = lambda place: None


def again(do: Callable[[Place], None]) -> Follow:
    """Return a follower that does something and retries the job."""

    def follow(place: Place, job: Job) -> Job:
        do(place)
        job.retry("mended")
        return job

    return follow


def changed(**spec: Any) -> Follow:
    """Return a follower that changes fields of the job, and retries it."""

    def follow(_: Place, job: Job) -> Job:
        job.patch_spec(**spec)
        job.retry("mended")
        return job

    return follow


def anew(**blocks: Any) -> Follow:
    """Return a follower that makes a new job, of the defaults and `blocks`."""
    return lambda place, job: place.job(f"{job.name}-new", **blocks).apply()


def _rows(bad: int | None = None) -> bytes:
    rows: list[dict[str, Any]] = [chat(index) for index in range(40)]
    if bad is not None:
        rows[bad] = {"messages": [{"role": "user", "content": None}]}
    return "\n".join(json.dumps(row) for row in rows).encode()


def _uri(bucket: str, row: str) -> str:
    return f"s3://{bucket}/e2e-hints/{row}"


def _other_model(place: Place) -> None:
    """Put a model there that is none for causal language."""
    folder = _uri("models", place.row)
    place.copy(TINY, folder)
    place.put(f"{folder}/config.json", json.dumps({"model_type": "bert", "architectures": ["BertModel"]}).encode())


def _open_hub(place: Place) -> None:
    """Start a hub whose only model is gated, and name it and an account's token in the row's Secret."""
    bucket, prefix = split_uri(TINY)
    files = {
        key: place.s3.get_object(Bucket=bucket, Key=f"{prefix}/{key}")["Body"].read()
        for key in list_keys(place.s3, TINY)
    }
    hub = HubServer({"models/stories/tiny": files}, gated={"models/stories/tiny"}, host=place.endpoint[0])
    place.hubs.append(place.ways.enter_context(hub))
    place.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": place.row},
            "stringData": {"HF_TOKEN": "hf_ofanaccountthathasnotaccepted", "HF_ENDPOINT": hub.url},
        }
    )


def _accept_terms(place: Place) -> None:
    place.hubs[0].gated.clear()


def _take_name(place: Place) -> None:
    """Make the Job's name somebody else's."""
    container = {"name": "c", "image": "nothing"}
    pod = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    name = f"{place.row}-preflight"
    place.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {"suspend": True, "template": pod},
        }
    )


def _give_name_back(place: Place) -> None:
    place.kubectl.delete("job", f"{place.row}-preflight", NAMESPACE)


def _create_bucket(place: Place) -> None:
    place.s3.create_bucket(Bucket=f"e2e-hints-{place.row}")


def _no_bucket(place: Place) -> None:
    bucket = f"e2e-hints-{place.row}"
    if bucket in {each["Name"] for each in place.s3.list_buckets()["Buckets"]}:
        for page in place.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for each in page.get("Contents", []):
                place.s3.delete_object(Bucket=bucket, Key=each["Key"])
        place.s3.delete_bucket(Bucket=bucket)


CLOSED = 18099
"""A port of the node on which nothing listens, until the row's hint is followed."""


def _no_way(place: Place) -> None:
    place.apply(place.secret(AWS_ENDPOINT_URL=f"http://{place.endpoint[0]}:{CLOSED}"))


def _open_the_way(place: Place) -> None:
    """Listen there for the rest of the run, and hand every byte on to the S3 server."""
    place.ways.enter_context(way((place.endpoint[0], CLOSED), place.endpoint))


def _publish(place: Place) -> None:
    """Train an adapter to the place where the row's job looks for one."""
    output = {"uri": _uri("adapters", f"{place.row}-first"), "secretRef": S3, "overwrite": True}
    place.job(f"{place.row}-first", output=output, preflight="Skip").apply().wait_phase("Succeeded", timeout=600)


def _publish_and_damage(place: Place) -> None:
    _publish(place)
    place.put(f"{_uri('adapters', f'{place.row}-first')}/adapter_config.json", b'{"peft_type": "LORA"}')


def _publish_again(place: Place) -> None:
    place.kubectl.delete("lorajob", f"{place.row}-first", NAMESPACE)
    _publish(place)


def _first(row: str) -> dict[str, Any]:
    return {"continueFrom": {"uri": _uri("adapters", f"{row}-first"), "secretRef": S3}}


def _look_at_the_curve(place: Place, job: Job) -> Job:
    """Read what the hint names before a new job is made: a run that failed leaves its curve."""
    where = report_place(job)
    assert {"curve.jsonl", "training_curves.png"} <= set(list_keys(place.s3, where))
    assert job.failure["facts"]["curve"].startswith(f"{where}/curve.jsonl")
    return anew()(place, job)


def _occupy(place: Place) -> None:
    place.put(f"{_uri('adapters', place.row)}/manifest.json", b"{}")


ROWS_OF: dict[str, Row] = {
    "field": Row(
        "InvalidSpec", "spec.lora.targetModules[0]", "in a new LoRAJob", anew(lora={"targetModules": ["q_proj"]}),
        {"lora": {"targetModules": ["q_prj"]}},
    ),
    "secret": Row(
        "SecretNotFound", "secret", "Create the Secret with the named keys",
        again(lambda place: place.apply(place.secret())),
        {"dataset": {"uri": ROWS, "secretRef": {"name": "secret"}}},
        lambda place: place.kubectl.delete("secret", place.row, NAMESPACE),
    ),
    "model": Row(
        "ModelNotFound", _uri("models", "model"), "Upload the model",
        again(lambda place: place.copy(TINY, _uri("models", place.row))),
        {"model": {"uri": _uri("models", "model"), "secretRef": S3}},
        lambda place: place.remove(_uri("models", place.row)),
    ),
    "gated": Row(
        "ModelGated", "stories/tiny is gated", "Accept the terms on its page, with the account", again(_accept_terms),
        {"model": {"uri": "hf://stories/tiny", "secretRef": {"name": "gated"}}}, _open_hub,
    ),
    "kind": Row(
        "ModelUnsupported", "bert", "Use a causal language model", anew(),
        {"model": {"uri": _uri("models", "kind"), "secretRef": S3}}, _other_model,
    ),
    "data": Row(
        "DatasetNotFound", _uri("datasets", "data"), "Upload the data",
        again(lambda place: place.put(f"{_uri('datasets', place.row)}/rows.jsonl", _rows())),
        {"dataset": {"uri": f"{_uri('datasets', 'data')}/rows.jsonl", "secretRef": S3}},
        lambda place: place.remove(_uri("datasets", place.row)),
    ),
    "line": Row(
        "DatasetInvalid", "line 17", "Correct the named lines of the data set",
        again(lambda place: place.put(f"{_uri('datasets', place.row)}/rows.jsonl", _rows())),
        {"dataset": {"uri": f"{_uri('datasets', 'line')}/rows.jsonl", "secretRef": S3}},
        lambda place: place.put(f"{_uri('datasets', place.row)}/rows.jsonl", _rows(bad=16)),
    ),
    "keys": Row(
        "StorageAccessDenied", "keys", "Correct the keys in the named Secret",
        again(lambda place: place.apply(place.secret())),
        {"dataset": {"uri": ROWS, "secretRef": {"name": "keys"}}},
        lambda place: place.apply(place.secret(AWS_SECRET_ACCESS_KEY="wrong")),
    ),
    "bucket": Row(
        "StorageNotFound", "e2e-hints-bucket", "Create the bucket", again(_create_bucket),
        {"output": {"uri": "s3://e2e-hints-bucket/out", "secretRef": S3}}, _no_bucket,
    ),
    "endpoint": Row(
        "StorageUnavailable", str(CLOSED), "Check that the storage endpoint is up", again(_open_the_way),
        {"dataset": {"uri": ROWS, "secretRef": {"name": "endpoint"}}}, _no_way,
    ),
    "taken": Row(
        "OutputExists", _uri("adapters", "taken"), "Remove the existing files",
        again(lambda place: place.remove(_uri("adapters", place.row))),
        {"output": {"uri": _uri("adapters", "taken"), "secretRef": S3}}, _occupy,
    ),
    "diverged": Row(
        "LossDiverged", "loss", "Lower training.learningRate", _look_at_the_curve,
        {"training": STEPS | {"learningRate": 1e20, "maxSteps": 60}, "preflight": "Skip"},
    ),
    "worse": Row(
        "NotImproved", "minImprovement", "lower evaluation.minImprovement",
        anew(evaluation={"minImprovement": 0.001}),
        {"evaluation": {"minImprovement": 0.999}, "preflight": "Skip"},
    ),
    "deadline": Row(
        "DeadlineExceeded", "activeDeadlineSeconds", "Raise activeDeadlineSeconds",
        changed(activeDeadlineSeconds=900), {"activeDeadlineSeconds": 1, "preflight": "Skip"},
    ),
    "checkpoint": Row(
        "CheckpointMissing", _uri("adapters", "checkpoint"), "train from the start", anew(),
        {"resumeFrom": {"uri": _uri("adapters", "checkpoint"), "secretRef": S3}},
    ),
    "name": Row(
        "NameConflict", "name-preflight", "Delete or rename the object", again(_give_name_back), {}, _take_name,
    ),
    "missing": Row(
        "AdapterMissing", _uri("adapters", "missing-first"), "Publish", again(_publish),
        _first("missing"), lambda place: place.remove(_uri("adapters", f"{place.row}-first")),
    ),
    "corrupt": Row(
        "AdapterCorrupt", "adapter_config.json", "Publish", again(_publish_again),
        _first("corrupt"), _publish_and_damage,
    ),
}  # fmt: skip
"""By the name of the row's job."""

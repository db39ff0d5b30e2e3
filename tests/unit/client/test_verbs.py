"""Copies of an object: metadata that a tool manages is not copied, and a result has its own URI."""

from __future__ import annotations

from typing import Any

import pytest

from tunery.commands.verbs import _lost_by_stop, copy_of, with_own_output
from tunery.errors import UsageError
from tunery.objects import View


def job(name: str = "support", **spec: Any) -> View:
    metadata = {"name": name, "namespace": "team"}
    return View({"kind": "LoRAJob", "metadata": metadata, "spec": spec, "status": {}})


def test_a_copy_has_no_metadata_that_is_managed() -> None:
    view = job()
    view.body["metadata"] |= {
        "uid": "1",
        "resourceVersion": "7",
        "ownerReferences": [{"kind": "LoRASweep"}],
        "labels": {
            "team": "support",
            "kueue.x-k8s.io/queue-name": "gpus",
            "tunery.dev/sweep": "search",
            "app.kubernetes.io/instance": "argo",
            "helm.sh/chart": "x",
        },
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
            "tunery.dev/retry": "1",
            "kueue.x-k8s.io/podset-required-topology": "rack",
        },
    }
    assert copy_of(view, "support-2", {"x": 1}) == {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "LoRAJob",
        "metadata": {
            "name": "support-2",
            "namespace": "team",
            "labels": {"team": "support", "kueue.x-k8s.io/queue-name": "gpus"},
            "annotations": {"kueue.x-k8s.io/podset-required-topology": "rack"},
        },
        "spec": {"x": 1},
    }


@pytest.mark.parametrize(
    ("output", "uri"),
    [
        ({"uri": "s3://adapters/team/support"}, "s3://adapters/team/support-2"),
        ({"uri": "s3://adapters/support/", "secretRef": {"name": "s3"}}, "s3://adapters/support-2"),
        ({"secretRef": {"name": "s3"}}, None),
    ],
)
def test_a_copy_publishes_at_its_own_uri(output: dict[str, Any], uri: str | None) -> None:
    spec = {"output": output}
    before = dict(output)
    assert with_own_output(job(), "support-2", spec)["output"] == before | ({"uri": uri} if uri else {})
    assert spec == {"output": before}


@pytest.mark.parametrize(
    "output",
    [{"uri": "s3://adapters/best"}, {"uri": "s3://support"}, {"uri": "s3://adapters/support", "overwrite": True}],
)
def test_a_uri_that_the_copy_would_share_has_to_be_set(output: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="would publish at") as caught:
        with_own_output(job(), "support-2", {"output": output})
    assert "--set output.uri=" in caught.value.remedy


@pytest.mark.parametrize(
    ("spec", "status", "labels", "discard", "lost"),
    [
        ({}, {"checkpoint": {"step": 5}}, {}, False, ""),
        ({}, {}, {}, False, "no checkpoint"),
        ({"onStop": "Discard"}, {"checkpoint": {"step": 5}}, {}, False, "Discard"),
        ({}, {"checkpoint": {"step": 5}}, {}, True, "Discard"),
        ({}, {"checkpoint": {"step": 5}}, {"tunery.dev/sweep": "s"}, False, "trial"),
    ],
)
def test_a_stop_says_what_it_loses(
    spec: dict[str, Any], status: dict[str, Any], labels: dict[str, str], discard: bool, lost: str
) -> None:
    view = job(**spec)
    view.metadata["labels"] = labels
    view.body["status"] = status
    assert lost in _lost_by_stop(view, discard)
    assert bool(lost) == bool(_lost_by_stop(view, discard))

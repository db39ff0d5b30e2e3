"""The CRDs on a real API server: what it accepts, refuses, prunes and explains."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_api.kubectl_yaml import documents_of

from kit.api_server import ApiServer
from kit.examples import EXAMPLES, documents
from kit.kubectl import KubectlError
from kit.shown import PAGES, blocks
from kit.validations import Spec, manifest, server_error


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_accepted_strictly(api_server: ApiServer, namespace: str, path: Any) -> None:
    objects = documents(path)
    assert objects
    for each in objects:
        api_server.create(each, namespace, dry_run=True)


def shown_objects() -> list[dict[str, Any]]:
    """Return the whole objects in the text of the docs, those of other projects' kinds left out."""
    texts = [block.text for page in PAGES for block in blocks(page) if block.language == "yaml"]
    found = [each for text in texts if "apiVersion:" in text for each in documents_of(text)]
    return [each for each in found if "." not in each["apiVersion"] or each["apiVersion"].endswith(OWN)]


OWN = (".k8s.io/v1", "tunery.dev/v1alpha1")


def test_every_object_in_the_text_of_the_docs_is_accepted_strictly(api_server: ApiServer, namespace: str) -> None:
    objects = shown_objects()
    kinds = {each["kind"] for each in objects}
    assert kinds >= {"LoRAJob", "AdapterServer", "NetworkPolicy", "PersistentVolumeClaim", "ResourceQuota", "Role"}
    for each in objects:
        if each["kind"] != "Namespace":
            each["metadata"]["namespace"] = namespace
        api_server.create(each, dry_run=True)


@pytest.mark.parametrize(
    ("gpus", "nodes", "passes", "field"),
    [(1, 0, 3, "resources.nodes"), (0, -2, 3, "resources.nodes"), (-1, 1, 3, "resources.gpus")]
    + [(2, 1, passes, "training.gradientAccumulation") for passes in (0, -3)],
)
def test_a_number_that_is_too_small_is_refused_by_its_field_alone(
    api_server: ApiServer, namespace: str, *, gpus: int, nodes: int, passes: int, field: str
) -> None:
    blocks = {"resources": {"gpus": gpus, "nodes": nodes}, "training": {"gradientAccumulation": passes}}
    told = server_error(api_server, namespace, manifest(Kind.LORAJOB, blocks))
    assert told.count("Invalid value") == 1, told
    assert f"spec.{field}: Invalid value: " in told


@pytest.mark.parametrize("nothing", [{"lora": None}, {"suspend": None}, {"lora": {"rank": None}}], ids=str)
def test_a_null_is_refused_where_manifests_are_applied_on_the_server(
    api_server: ApiServer, namespace: str, nothing: dict[str, Any]
) -> None:
    """As docs/api.md says, to those who use Flux or Argo CD's ServerSideApply."""
    body = manifest(Kind.LORAJOB, {})
    text = json.dumps(body | {"spec": body["spec"] | nothing})
    apply = ("apply", "--dry-run=server", "-n", namespace, "-f", "-")
    api_server.run(*apply, stdin=text)
    with pytest.raises(KubectlError, match=r'in body must be of type [a-z]+: "null"'):
        api_server.run(*apply, "--server-side", stdin=text)


def test_a_status_of_a_later_version_is_stored(api_server: ApiServer, namespace: str) -> None:
    api_server.create(manifest(Kind.LORAJOB, {}, "later"), namespace)
    condition = {
        "type": "Contemplated",
        "status": "True",
        "reason": "Deep",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }
    status = {"phase": "Contemplating", "conditions": [condition]}
    stored = api_server.patch("LoRAJob", "later", {"status": status}, namespace, status=True)
    assert stored["status"].items() >= status.items()


@pytest.mark.parametrize(
    ("kind", "status", "columns"),
    [
        (Kind.LORAJOB, {"phase": "Training"}, ["Training"]),
        (Kind.ADAPTERMERGE, {"phase": "Merging"}, ["Merging", "Linear", "Adapter"]),
        (
            Kind.ADAPTERSERVER,
            {
                "phase": "Degraded", "readyText": "2/3", "adaptersText": "12/13", "url": "http://columns:8000/v1",
                "failure": {"reason": "RankTooHigh", "message": "m"},
            },
            ["Degraded", "2/3", "12/13", "RankTooHigh", "hf://models/m", "http://columns:8000/v1"],
        ),
        (
            Kind.BATCHINFERENCE,
            {"phase": "Answering", "errors": 3, "progress": {"percent": 42, "percentText": "42%", "eta": "3m"}},
            ["Answering", "42%", "3", "s", "3m"],
        ),
    ],
)  # fmt: skip
def test_columns_show_an_object_which_is_selected_by_its_phase(
    api_server: ApiServer, namespace: str, kind: Kind, status: Spec, columns: list[str]
) -> None:
    for name, phase in (("selected", status["phase"]), ("other", "Queued")):
        api_server.create(manifest(kind, {}, name), namespace)
        api_server.patch(kind, name, {"status": status | {"phase": phase}}, namespace, status=True)
    selector = f"--field-selector=status.phase={status['phase']}"
    row = api_server.run("get", kind.singular, "-n", namespace, selector, "--no-headers", "-o", "wide").split()
    assert row[0] == "selected"
    assert "other" not in row
    assert [cell for cell in row if cell in columns] == columns


@pytest.mark.parametrize("name", ["a.b", "1st", "n" * 49])
def test_the_name_of_a_server_can_be_a_host_name(api_server: ApiServer, namespace: str, name: str) -> None:
    told = server_error(api_server, namespace, manifest(Kind.ADAPTERSERVER, {}, name))
    assert "the name becomes part of a host name" in told
    assert server_error(api_server, namespace, manifest(Kind.ADAPTERSERVER, {}, "n" * 48)) == ""


def test_a_server_is_scaled_by_its_own_subresource(api_server: ApiServer, namespace: str) -> None:
    api_server.create(manifest(Kind.ADAPTERSERVER, {}, "scales"), namespace)
    api_server.run("scale", "adapterserver", "scales", "--replicas=3", "-n", namespace)
    status = {"replicas": 2, "selector": "tunery.dev/kind=adapterserver,tunery.dev/owner=scales"}
    api_server.patch("asrv", "scales", {"status": status}, namespace, status=True)
    scale = api_server.api.get(f"/apis/tunery.dev/v1alpha1/namespaces/{namespace}/adapterservers/scales/scale")
    assert scale is not None
    assert (scale["spec"], scale["status"]) == ({"replicas": 3}, status)
    with pytest.raises(KubectlError, match=r"spec\.replicas"):
        api_server.patch("asrv", "scales", {"spec": {"replicas": 65}}, namespace)


@pytest.mark.parametrize(
    "parameters",
    [
        [{"path": "a", "choices": [16, 0.5, True, "LoRA"]}],
        [{"path": f"a.b{i}", "choices": [f"{n}" * 64 for n in range(64)]} for i in range(16)],
    ],
    ids=["choices-of-any-type", "as-large-as-can-be"],
)
def test_the_choices_of_a_sweep_are_stored_as_they_are(api_server: ApiServer, namespace: str, parameters: Any) -> None:
    body = manifest(Kind.LORASWEEP, {"parameters": parameters})
    assert api_server.create(body, namespace, dry_run=True)["spec"] == body["spec"]


def test_explain_reads_well(api_server: ApiServer) -> None:
    text = api_server.run("explain", "lorajob.spec")
    merging = api_server.run("explain", "adaptermerge.spec.resources.gpus")
    assert "0, or 1 to merge on a GPU. Default: 0." in " ".join(merging.split())
    for field in ("model\t<Object> -required-", "retries\t<integer>", "Default: 3.", "The training data."):
        assert field in text

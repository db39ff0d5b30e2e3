"""The CRDs on a real API server: what it accepts, refuses, prunes and explains."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.validation import parse_lorajob
from tunery_trainer.local.as_kubectl import documents_of

from kit.api_server import ApiServer
from kit.examples import EXAMPLES, documents
from kit.kubectl import KubectlError
from kit.shown import PAGES, blocks


@pytest.fixture(scope="module")
def namespace(api_server: ApiServer) -> Iterator[str]:
    api_server.run("create", "namespace", "crd")
    yield "crd"
    api_server.delete("namespace", "crd", wait=False)


def lorajob(name: str, **blocks: Any) -> dict[str, Any]:
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "s3://data/rows.jsonl"}} | blocks
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "metadata": {"name": name}, "spec": spec}


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
    ("blocks", "said"),
    [
        pytest.param({"lora": {"rank": 0}}, "spec.lora.rank: Invalid value: 0", id="rank-0"),
        pytest.param({"lora": {"rnk": 8}}, 'rnk"', id="typo"),
        pytest.param({"lora": {"dropout": True}}, "spec.lora.dropout", id="true"),
        pytest.param({"method": "qlora"}, "spec.method: Unsupported value", id="enum"),
        pytest.param({"model": {"uri": "file:///x"}}, "spec.model.uri", id="file"),
        pytest.param({"output": {"uri": "s3://b//x"}}, "uri must be like s3://bucket/folder, with no", id="slashes"),
    ],
)
def test_what_validation_rejects(api_server: ApiServer, namespace: str, blocks: dict[str, Any], said: str) -> None:
    with pytest.raises(KubectlError) as caught:
        api_server.apply(lorajob("refused", **blocks), namespace=namespace)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("gpus", "nodes", "passes", "field"),
    [(1, 0, 3, "resources.nodes"), (0, -2, 3, "resources.nodes"), (-1, 1, 3, "resources.gpus")]
    + [(2, 1, passes, "training.gradientAccumulation") for passes in (0, -3)],
)
def test_a_number_that_is_too_small_is_refused_by_its_field_alone(
    api_server: ApiServer, namespace: str, *, gpus: int, nodes: int, passes: int, field: str
) -> None:
    blocks = {"resources": {"gpus": gpus, "nodes": nodes}, "training": {"gradientAccumulation": passes}}
    with pytest.raises(KubectlError) as caught:
        api_server.apply(lorajob("refused", **blocks), namespace=namespace)
    told = str(caught.value)
    assert told.count("Invalid value") == 1, told
    assert f"spec.{field}: Invalid value: " in told


@pytest.mark.parametrize(
    ("blocks", "taken"),
    [
        pytest.param({"retries": 5.0, "suspend": None, "method": None, "lora": {"rank": None}}, True, id="null"),
        pytest.param({"lora": {"rankPattern": {"q_proj": None}}, "scheduling": None}, True, id="null-in-a-mapping"),
        pytest.param({"lora": {"targetModules": [None]}}, False, id="null-in-a-list"),
        pytest.param({"retries": "5"}, False, id="quoted-whole-number"),
        pytest.param({"training": {"learningRate": "2e-4"}}, False, id="quoted-number"),
        pytest.param({"training": {"learningRate": 2e-4}}, True, id="number"),
        pytest.param({"resources": {"cpu": 0.5}}, False, id="fraction-of-a-cpu"),
        pytest.param({"resources": {"cpu": "0.5"}}, True, id="quoted-fraction-of-a-cpu"),
        pytest.param({"retries": True}, False, id="boolean-for-a-number"),
        pytest.param({"suspend": "true"}, False, id="quoted-boolean"),
        pytest.param({"suspend": 1}, False, id="number-for-a-boolean"),
        pytest.param({"lora": {"rankPattern": {"q_proj": "8"}}}, False, id="quoted-number-in-a-mapping"),
        pytest.param({"scheduling": {"tolerations": [{"key": "a", "tolerationSeconds": "5"}]}}, False, id="in-a-list"),
        pytest.param({"scheduling": {"tolerations": [{"key": "", "operator": "Exists"}]}}, True, id="every-taint"),
        pytest.param({"scheduling": {"tolerations": [{"key": "a" * 63}]}}, True, id="longest-key"),
        pytest.param({"scheduling": {"tolerations": [{"key": "a.b/" + "a" * 64}]}}, False, id="no-key-of-kubernetes"),
    ],
)
def test_the_parser_takes_what_the_server_takes(
    api_server: ApiServer, namespace: str, blocks: dict[str, Any], taken: bool
) -> None:
    manifest = lorajob("types", **blocks)
    with contextlib.nullcontext() if taken else pytest.raises(KubectlError):
        api_server.run("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(manifest))
    with contextlib.nullcontext() if taken else pytest.raises(InvalidSpec):
        parse_lorajob(manifest, local=True)


@pytest.mark.parametrize("nothing", [{"lora": None}, {"suspend": None}, {"lora": {"rank": None}}], ids=str)
def test_a_null_is_refused_where_manifests_are_applied_on_the_server(
    api_server: ApiServer, namespace: str, nothing: dict[str, Any]
) -> None:
    """As docs/api.md says, to those who use Flux or Argo CD's ServerSideApply."""
    text = json.dumps(lorajob("nothing", **nothing))
    apply = ("apply", "--dry-run=server", "-n", namespace, "-f", "-")
    api_server.run(*apply, stdin=text)
    with pytest.raises(KubectlError, match=r'in body must be of type [a-z]+: "null"'):
        api_server.run(*apply, "--server-side", stdin=text)


NEVER = [
    ({"training": {"seed": 2}}, "training cannot be changed. Fix: delete"),
    ({"training": None}, "training cannot be changed. Fix: delete"),
    ({"lora": {"rank": 4}}, "lora cannot be changed. Fix: delete"),
    ({"resources": {"gpus": 1}}, "resources.gpus cannot be changed. Fix: delete"),
    ({"resources": {"nodes": 2}}, "resources.nodes cannot be changed. Fix: delete"),
    ({"resources": {"cpu": "8"}}, "resources.cpu cannot be changed. Fix: delete"),
]
AT_REST: list[dict[str, Any]] = [
    {"retries": 5},
    {"scheduling": {"priorityClassName": "low"}},
    {"scheduling": {"nodeSelector": {"pool": "b"}}},
    {"scheduling": None},
    {"resources": {"memory": "48Gi"}},
    {"resources": {"memory": "48Gi", "ephemeralStorage": "90Gi", "nodes": 1}},
    {"resources": None},
]


def test_what_training_depends_on_is_immutable(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(lorajob("fixed", training={"seed": 1}), namespace=namespace)
    for patch, said in NEVER:
        with pytest.raises(KubectlError, match=said):
            _patch(api_server, namespace, "fixed", patch)
    _patch(api_server, namespace, "fixed", {"suspend": True, "ttlSecondsAfterFinished": 5, "activeDeadlineSeconds": 60})
    stored = api_server.get("lorajob", "fixed", namespace)
    assert stored is not None
    assert stored["spec"]["suspend"] is True


@pytest.mark.parametrize("running", ["False", "Unknown", None])
def test_what_the_next_pod_is_made_from_may_change_while_none_runs(
    api_server: ApiServer, namespace: str, running: str | None
) -> None:
    name = f"rests-{str(running).lower()}"
    api_server.apply(lorajob(name, scheduling={"nodeSelector": {"pool": "a"}}), namespace=namespace)
    if running is not None:
        _set_running(api_server, namespace, name, running)
    for patch in AT_REST:
        _patch(api_server, namespace, name, patch)


def test_and_not_while_one_runs(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(
        lorajob("runs", scheduling={"nodeSelector": {"pool": "a"}}, resources={"cpu": "2"}), namespace=namespace
    )
    _set_running(api_server, namespace, "runs", "True")
    for patch in [patch for patch in AT_REST if patch != {"resources": None}]:
        with pytest.raises(
            KubectlError, match=r"cannot be changed while a pod runs\. Fix: set suspend: true, wait for phase"
        ):
            _patch(api_server, namespace, "runs", patch)
    _patch(api_server, namespace, "runs", {"suspend": True, "activeDeadlineSeconds": 60})
    _set_running(api_server, namespace, "runs", "False")
    _patch(api_server, namespace, "runs", {"resources": {"memory": "48Gi"}, "suspend": False})


def test_quotes_of_a_quantity_are_no_change(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(lorajob("quoted", resources={"cpu": "2", "memory": "8589934592"}), namespace=namespace)
    _set_running(api_server, namespace, "quoted", "True")
    _patch(api_server, namespace, "quoted", {"resources": {"cpu": 2, "memory": 8589934592}})
    _patch(api_server, namespace, "quoted", {"resources": {"cpu": "2", "memory": "8589934592"}})
    for other in (3, "3", "2.5", None):
        with pytest.raises(KubectlError, match=r"resources\.cpu cannot be changed. Fix: delete"):
            _patch(api_server, namespace, "quoted", {"resources": {"cpu": other}})
    for number in (8589934591, "8G"):
        with pytest.raises(KubectlError, match=r"resources\.memory cannot be changed while a pod runs"):
            _patch(api_server, namespace, "quoted", {"resources": {"memory": number}})


def test_a_stop_is_final(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(lorajob("stops"), namespace=namespace)
    _set_running(api_server, namespace, "stops", "True")
    for wrong in ("", " \n", "x" * 257):
        with pytest.raises(KubectlError, match=r"spec\.stop"):
            _patch(api_server, namespace, "stops", {"stop": wrong})
    with pytest.raises(KubectlError, match=r"spec\.onStop"):
        _patch(api_server, namespace, "stops", {"onStop": "Keep"})
    _patch(api_server, namespace, "stops", {"stop": "gut genug: ÄÖ" + "ü" * 243, "onStop": "Discard"})
    for other in ("another reason", None):
        with pytest.raises(KubectlError, match="stop is final and can be neither changed nor removed"):
            _patch(api_server, namespace, "stops", {"stop": other})
    for other in ("Publish", None):
        _patch(api_server, namespace, "stops", {"onStop": other, "suspend": True})
    api_server.apply(lorajob("stopped-before", stop="only to be looked at"), namespace=namespace)


def test_a_status_of_a_later_version_is_stored(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(lorajob("later"), namespace=namespace)
    _set_running(api_server, namespace, "later", "True", kind="Contemplated", phase="Contemplating", reason="Deep")
    stored = api_server.get("lorajob", "later", namespace)
    assert stored is not None
    assert stored["status"]["phase"] == "Contemplating"


def test_objects_are_selected_by_phase(api_server: ApiServer, namespace: str) -> None:
    for name, phase in (("selected", "Training"), ("other", "Queued")):
        api_server.apply(lorajob(name), namespace=namespace)
        _set_running(api_server, namespace, name, "False", phase=phase)
    listed = api_server.run(
        "get", "lorajobs", "-n", namespace, "--field-selector", "status.phase=Training", "-o", "name"
    )
    assert listed.split() == ["lorajob.tunery.dev/selected"]


def _set_running(
    kubectl: ApiServer,
    namespace: str,
    name: str,
    status: str,
    kind: str = "Running",
    phase: str = "Starting",
    reason: str = "X",
) -> None:
    condition = {"type": kind, "status": status, "reason": reason, "lastTransitionTime": "2026-01-31T12:00:00Z"}
    kubectl.patch("LoRAJob", name, {"status": {"phase": phase, "conditions": [condition]}}, namespace, status=True)


def _patch(kubectl: ApiServer, namespace: str, name: str, spec: dict[str, Any]) -> None:
    kubectl.patch("LoRAJob", name, {"spec": spec}, namespace)


def test_explain_reads_well(api_server: ApiServer) -> None:
    text = api_server.run("explain", "lorajob.spec")
    merging = api_server.run("explain", "adaptermerge.spec.resources.gpus")
    assert "0, or 1 to merge on a GPU. Default: 0." in " ".join(merging.split())
    for field in ("model\t<Object> -required-", "retries\t<integer>", "Default: 3.", "The training data."):
        assert field in text


def test_defaults_stay_open_but_for_the_columns(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(lorajob("open"), namespace=namespace)
    stored = api_server.get("lorajob", "open", namespace)
    assert stored is not None
    assert set(stored["spec"]) == {"model", "dataset"}
    merge = {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "AdapterMerge",
        "metadata": {"name": "open"},
        "spec": {"adapters": [{"uri": "s3://a/b"}]},
    }
    api_server.apply(merge, namespace=namespace)
    row = api_server.run("get", "adaptermerge", "open", "-n", namespace, "--no-headers")
    assert row.split()[1:3] == ["Linear", "Adapter"]

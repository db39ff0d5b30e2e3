"""Validation: every error at once, each with its path, and never another exception."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery_api.adaptermerge import AdapterMergeSpec, MergeMethod
from tunery_api.errors import InvalidSpec
from tunery_api.fields import PLAIN_PATH, decimal_text
from tunery_api.kubectl_yaml import documents_of
from tunery_api.validation import parse_adaptermerge, parse_lorajob

MODEL = {"uri": "s3://models/SmolLM2"}
DATASET = {"uri": "s3://datasets/chat.jsonl"}


def lorajob(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "spec": {"model": MODEL, "dataset": DATASET} | spec}


def errors_of(obj: Any, **options: Any) -> list[str]:
    with pytest.raises(InvalidSpec) as caught:
        parse_lorajob(obj, **options)
    return [str(error) for error in caught.value.errors]


CREDENTIALS = "holds credentials, which belong in the Secret of secretRef. Fix: write s3://bucket/prefix"
ERRORS: dict[str, dict[str, Any]] = {
    "spec.lora: must be a mapping, is []": {"lora": []},
    "spec.lora.rank: must be at least 1, is 0": {"lora": {"rank": 0}},
    "spec.lora.rnk: unknown field; did you mean rank?": {"lora": {"rnk": 8}},
    "spec.loar: unknown field; did you mean lora?": {"loar": {}},
    "spec.stop: must give a reason, in a word or a sentence": {"stop": " \n"},
    "spec.stop: must have at most 256 characters": {"stop": "x" * 257},
    "spec.stop: must be a string, is the date 2026-11-28 (write it in quotes)": {"stop": datetime.date(2026, 11, 28)},
    "spec.retries: must be a whole number, is true": {"retries": True},
    "spec.resources.gpus: must be a whole number, is 'many'": {"resources": {"gpus": "many"}},
    "spec.suspend: must be true or false: write it without quotes, true": {"suspend": "true"},
    "spec.suspend: must be true or false, is 1": {"suspend": 1},
    "spec.dataset.uri: is required": {"dataset": {}},
    "spec.resources.memory: must be a number of bytes above 0, such as 24Gi, is '100m'":
        {"resources": {"memory": "100m"}},
    "spec.resources.ephemeralStorage: must be a number of bytes above 0, such as 24Gi, is '0'":
        {"resources": {"ephemeralStorage": "0"}},
    "spec.model.uri: must be hf://owner/name, s3://bucket/prefix or pvc://claim/path, is 'gs://x/y'":
        {"model": {"uri": "gs://x/y"}},
    f"spec.output.uri: {CREDENTIALS}": {"output": {"uri": "s3://key:secret@adapters/x"}},
    f"spec.model.uri: {CREDENTIALS}": {"model": {"uri": "s3://key:secret@models/x"}},
    f"spec.dataset.evaluation.uri: {CREDENTIALS}": {"dataset": DATASET | {"evaluation": {"uri": "s3://a:b@d/y"}}},
    f"spec.output.uri: {PLAIN_PATH}, is 's3://a/team-a/../team-b'": {"output": {"uri": "s3://a/team-a/../team-b"}},
    f"spec.output.uri: {PLAIN_PATH}, is 's3:///x'": {"output": {"uri": "s3:///x"}},
    f"spec.dataset.uri: {PLAIN_PATH}, is 'hf://a//b'": {"dataset": {"uri": "hf://a//b"}},
    "spec.lora.targetModules[0]: must look like ^[A-Za-z0-9_][A-Za-z0-9_.-]*$, is 'q proj'":
        {"lora": {"targetModules": ["q proj"]}},
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_each_error_names_its_field_and_says_what_to_do(error: str) -> None:
    assert errors_of(lorajob(**ERRORS[error])) == [error]


def test_all_errors_come_together() -> None:
    errors = errors_of(lorajob(lora={"rank": 0}, training={"batchSize": 0, "maxLenght": 5}, retries=-1))
    assert [error.split(":")[0] for error in errors] == [
        "spec.retries",
        "spec.lora.rank",
        "spec.training.batchSize",
        "spec.training.maxLenght",
    ]


def test_file_uris_are_for_runs_without_a_cluster() -> None:
    files = lorajob(model={"uri": "file:///m"}, dataset={"uri": "file://d.jsonl"})
    assert parse_lorajob(files | {"metadata": {"name": "a"}}, local=True).model.uri == "file:///m"


@pytest.mark.parametrize("uri", ["file:////m", "file:///m/", "file:///a/../m", "file:///./m/adapter"])
def test_without_a_cluster_nothing_is_published_into_the_model_however_it_is_written(uri: str) -> None:
    onto = lorajob(model={"uri": "file:///m"}, output={"uri": uri}) | {"metadata": {"name": "a"}}
    (error,) = errors_of(onto, local=True)
    assert error == "spec.output.uri: overlaps the base model, which Tunery never changes. Fix: use another URI"


DNS = "must be a DNS name"
WORD = "must be at most 63 letters"
METADATA: list[tuple[dict[str, Any], str]] = [
    ({"lables": {}}, "metadata.lables: unknown field; did you mean labels?"),
    ({"namespace": 5}, 'metadata.namespace: must be a string: write it in quotes, "5"'),
    ({"finalizers": "a"}, "metadata.finalizers: must be a list, is 'a'"),
    ({"generation": True}, "metadata.generation: must be a whole number, is true"),
    ({"labels": "x"}, "metadata.labels: must be a mapping, is 'x'"),
    ({"labels": {"team": True}}, 'metadata.labels.team: must be a string: write it in quotes, "true"'),
    ({"labels": {"a": "b c"}}, f"metadata.labels.a: {WORD}"),
    ({"labels": {"a": "x" * 64}}, f"metadata.labels.a: {WORD}"),
    ({"labels": {"a b": "c"}}, f"metadata.labels: the name {WORD}"),
    ({"labels": {"A.b/c": "d"}}, f"metadata.labels: the name {WORD}"),
    ({"labels": {"/c": "d"}}, f"metadata.labels: the name {WORD}"),
    ({"labels": {None: "c"}}, f"metadata.labels: the name {WORD}"),
    ({"labels": {"kueue.x-k8s.io/queue-name": 5}}, "metadata.labels.kueue.x-k8s.io/queue-name: must be a string"),
    ({"annotations": {"note": {"b": "c"}}}, "metadata.annotations.note: must be a string, is {'b': 'c'}"),
    ({"annotations": {"a b": "c"}}, f"metadata.annotations: the name {WORD}"),
]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"metadata": {"name": 123}}, "metadata.name: must be a string, is 123"),
        ({"metadata": {"name": True}}, "metadata.name: must be a string, is true"),
        ({"metadata": {"name": "S_x"}}, f"metadata.name: {DNS}"),
        ({"metadata": {"name": "a..b"}}, f"metadata.name: {DNS}"),
        ({"metadata": {"name": "a" * 254}}, f"metadata.name: {DNS}"),
        ({"metadata": {"generateName": "A-"}}, f"metadata.generateName: {DNS}"),
        ({"metadata": {"name": None}}, "metadata.name: is required"),
        ({"metadata": {}}, "metadata.name: is required"),
        ({"metadata": "a"}, "metadata: must be a mapping, is 'a'"),
        ({"metadata": None}, "metadata.name: is required"),
        ({"apiVersion": None}, "apiVersion: is missing"),
        ({"retries": 2}, "retries: unknown field; did you mean spec.retries?"),
        ({"foo": None}, "foo: unknown field"),
        *((({"metadata": {"name": "a", **own}}, told)) for own, told in METADATA),
    ],
)
def test_without_a_cluster_an_object_is_as_the_api_server_asks(own: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_lorajob(lorajob() | {"metadata": {"name": "a"}} | own, local=True)
    (error,) = refused.value.errors
    assert str(error).startswith(told)


@pytest.mark.parametrize("name", ["a", "a.b", "1", "a" * 253])
def test_without_a_cluster_every_name_is_taken_that_the_api_server_takes(name: str) -> None:
    assert parse_lorajob(lorajob() | {"metadata": {"name": name}}, local=True)
    assert parse_lorajob(lorajob() | {"metadata": {"generateName": f"{name[:-1]}b-"[-200:]}}, local=True)


@pytest.mark.parametrize(
    "own",
    [
        {"labels": None, "annotations": None, "namespace": None},
        {"labels": {"a": None, "b": "", "x.y/Z_1": "v.1", 1: "a", 1.5: "a"}},
        {"labels": {True: "a"}},
        {"annotations": {"X.y/Z": "any text\nat all"}},
        {"uid": "x", "resourceVersion": "1", "generation": 5, "creationTimestamp": None, "selfLink": "a"},
        {"finalizers": ["a/b"], "ownerReferences": [], "managedFields": []},
    ],
)
def test_without_a_cluster_all_metadata_is_taken_that_the_api_server_takes(own: dict[str, Any]) -> None:
    """As `kubectl get -o yaml` has it, with a status."""
    assert parse_lorajob(lorajob() | {"metadata": {"name": "a", **own}, "status": {}}, local=True)


def test_null_is_absent() -> None:
    nothing = {"suspend": None, "method": None, "lora": None, "dataset": {**DATASET, "columns": {"prompt": None}}}
    spec = parse_lorajob(lorajob(**nothing))
    assert spec.model_fields_set == {"model", "dataset"}
    assert errors_of(lorajob(model=None)) == ["spec.model: is required"]
    assert errors_of(lorajob(lora={"targetModules": [None]})) == [
        "spec.lora.targetModules[0]: must be a string, is null"
    ]


def test_what_the_manifest_left_open_stays_open_through_run_json() -> None:
    spec = parse_lorajob(lorajob(lora={"alpha": 8}))
    again = parse_lorajob({"spec": spec.to_json_dict()})
    assert again.lora.model_fields_set == {"alpha"}
    assert again == spec


def test_a_foreign_version_is_refused() -> None:
    assert errors_of(lorajob() | {"apiVersion": "tunery.dev/v2"}) == [
        "apiVersion: must be tunery.dev/v1alpha1, is 'tunery.dev/v2'"
    ]


ADAPTER = {"uri": "s3://a/b"}


def merge(adapters: Sequence[Any] = (ADAPTER,), **fields: Any) -> AdapterMergeSpec:
    return parse_adaptermerge({"spec": {"adapters": list(adapters), **fields}})


def test_credentials_in_the_uri_of_an_adapter_are_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.adapters\[1\]\.uri: holds credentials"):
        merge([ADAPTER, {"uri": "s3://key:secret@a/c"}])


def test_the_density_of_a_merge_depends_on_its_method() -> None:
    densities = {method.value: merge(method=method).effective_density() for method in MergeMethod}
    assert densities == {
        "Linear": 0.5, "MagnitudePrune": 0.5, "TIES": 0.2, "DARELinear": 0.5, "DARETIES": 0.5,
        "KnOTSTIES": 0.2, "KnOTSDARETIES": 0.5,
    }  # fmt: skip
    assert merge(method="TIES", density=0.7).effective_density() == 0.7


def test_weights_that_are_unset_are_a_share_or_1_with_methods_that_elect_a_sign() -> None:
    weights = {method.value: merge([ADAPTER] * 4, method=method).effective_weights() for method in MergeMethod}
    assert weights == {
        "Linear": [0.25] * 4, "MagnitudePrune": [0.25] * 4, "TIES": [1.0] * 4, "DARELinear": [0.25] * 4,
        "DARETIES": [1.0] * 4, "KnOTSTIES": [1.0] * 4, "KnOTSDARETIES": [1.0] * 4,
    }  # fmt: skip
    assert merge([ADAPTER | {"weight": 0.7}, ADAPTER | {"weight": -1}]).effective_weights() == [0.7, -1]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
FIELDS = st.sampled_from(["model", "dataset", "lora", "training", "output", "method", "scheduling", "adapters"])


@given(ANYTHING | st.fixed_dictionaries({"spec": st.dictionaries(FIELDS, ANYTHING, max_size=4)}))
def test_any_object_gives_a_spec_or_an_invalid_spec(obj: Any) -> None:
    for parse in (parse_lorajob, parse_adaptermerge):
        with contextlib.suppress(InvalidSpec):
            parse(obj)


@pytest.mark.parametrize("text", ["2e-4", "2E-4", "3", "3.0", ".5", "0.0002", "1e-40", "12345678901234567890123"])
def test_a_number_without_quotes_is_a_number_of_yaml_1_2(text: str) -> None:
    (written,) = documents_of(text)
    spec = parse_lorajob(lorajob(training={"learningRate": written}))
    assert spec.training.learning_rate == float(text)
    assert spec.to_json_dict()["training"] == {"learningRate": float(text)}, "in run.json, too"


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-4, "0.0002"), (1e-5, "0.00001"), (3.0, "3"), (100.0, "100"), (-0.0, "0"), (1 / 3, "0.3333333333333333")],
)
def test_a_number_is_shown_without_an_exponent(value: float, text: str) -> None:
    assert decimal_text(value) == text


def test_a_number_in_quotes_is_rejected_with_how_to_write_it() -> None:
    blocks: dict[str, Any] = {
        "training": {"epochs": "3", "learningRate": "2e-4", "maxSteps": "5"},
        "evaluation": {"minImprovement": "-0.05"},
        "lora": {"dropout": ".1"},
    }
    assert errors_of(lorajob(**blocks)) == [
        "spec.lora.dropout: must be a number: write it without quotes, .1",
        "spec.training.epochs: must be a number: write it without quotes, 3",
        "spec.training.learningRate: must be a number: write it without quotes, 2e-4",
        "spec.evaluation.minImprovement: must be a number: write it without quotes, -0.05",
        "spec.training.maxSteps: must be a whole number: write it without quotes, 5",
    ]


def test_a_value_that_is_no_number_is_rejected_with_what_it_must_be() -> None:
    blocks: dict[str, Any] = {
        "training": {"epochs": float("inf"), "learningRate": [2e-4], "warmup": "a tenth", "weightDecay": True},
        "dataset": {"uri": "s3://d/x", "evaluation": {"fraction": 5}},
        "lora": {"dropout": 1},
        "evaluation": {"minImprovement": 1},
        "resources": {"cpu": "four", "memory": 0.5},
    }
    assert errors_of(lorajob(**blocks)) == [
        "spec.dataset.evaluation.fraction: must be below 1, is 5",
        "spec.lora.dropout: must be below 1, is 1",
        "spec.training.epochs: must be a finite number, is inf",
        "spec.training.learningRate: must be a number, is [0.0002]",
        "spec.training.warmup: must be a number, is 'a tenth'",
        "spec.training.weightDecay: must be a number, is true",
        "spec.evaluation.minImprovement: must be below 1, is 1",
        "spec.resources.cpu: must be an amount of CPU of at most 1000, such as 4, \"0.5\" or 500m, is 'four'",
        "spec.resources.memory: must be a number of bytes above 0, such as 24Gi, is 0.5",
    ]


def test_a_fraction_of_a_cpu_is_written_in_quotes() -> None:
    """Kubernetes' IntOrString holds no fraction; the API server rejects one, too."""
    (told,) = errors_of(lorajob(resources={"cpu": 0.5}))
    assert told.endswith(', is 0.5; write it in quotes, "0.5"')
    assert parse_lorajob(lorajob(resources={"cpu": "0.5"})).resources.cpu == "0.5"
    assert parse_lorajob(lorajob(resources={"cpu": 4, "memory": 8589934592})).resources.memory == "8589934592"

"""Manifests: read as kubectl reads them, every error at once, settings from the command line."""

from __future__ import annotations

from typing import Any

import pytest

from tunery.errors import InvalidManifest, UsageError
from tunery.manifest import parse_documents, to_yaml, validate, with_settings

from kit import kubectl_yaml
from kit.examples import EXAMPLES
from kit.operator.objects import adaptermerge, adapterserver, batchinference, lorajob, lorasweep

TWO = """
apiVersion: tunery.dev/v1alpha1
kind: LoRAJob
metadata: {name: a}
spec: {model: {uri: "s3://m/x"}, dataset: {uri: "s3://d/x"}, training: {learningRate: 2e-4}}
---
# only a comment
---
apiVersion: tunery.dev/v1alpha1
kind: LoRAJob
metadata: {name: b}
spec: {model: {uri: "s3://m/x"}, dataset: {uri: "s3://d/x"}}
"""


def test_all_documents_are_read_and_an_exponent_is_a_number() -> None:
    manifests = validate(parse_documents(TWO, "job.yaml"), "job.yaml")
    assert [each.reference for each in manifests] == ["lorajob/a", "lorajob/b"]
    assert manifests[0].body["spec"]["training"]["learningRate"] == 0.0002


def test_the_items_of_a_list_are_objects() -> None:
    body = {"apiVersion": "v1", "kind": "List", "items": [lorajob("a"), lorasweep("b")]}
    found = validate(parse_documents(to_yaml(body), "list.yaml"), "list.yaml")
    assert [each.reference for each in found] == ["lorajob/a", "lorasweep/b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "job.yaml has no document"),
        ("---\n# nothing\n", "job.yaml has no document"),
        ("a: [", "job.yaml is not valid YAML"),
        ('{"a": ', "job.yaml is not valid JSON"),
        ("a: &a [*a]\nb: *a\n" + "[" * 3000, "job.yaml is not valid YAML"),
    ],
)
def test_a_text_that_is_no_manifest_is_a_usage_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_documents(text, "job.yaml")


def errors_of(*documents: Any) -> list[str]:
    with pytest.raises(InvalidManifest) as caught:
        validate(documents, "job.yaml")
    assert str(len(caught.value.errors)) in caught.value.message
    return caught.value.message.splitlines()[1:]


def test_every_error_of_every_document_is_shown_at_once() -> None:
    first = lorajob("a", training={"epochs": 0, "learningrate": 1}) | {"spce": {}}
    second = lorajob("b", dataset={"uri": "file://d.jsonl"})
    errors = errors_of(first, second, lorajob("c"))
    assert len(errors) == 4
    assert "  document 1 (LoRAJob a): spec.training.epochs: must be above 0, is 0" in errors
    assert any("spec.training.learningrate: unknown field; did you mean learningRate?" in each for each in errors)
    assert any("spce: unknown field; did you mean spec?" in each for each in errors)
    assert any(
        "document 2 (LoRAJob b): spec.dataset.uri: file://" in each and "Fix: use s3://" in each for each in errors
    )


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ("text", "manifest: must be a mapping"),
        ({}, "kind: must be one of LoRAJob"),
        (lorajob("a") | {"kind": "LoraJob"}, "did you mean LoRAJob?"),
        (lorajob("a") | {"kind": ["LoRAJob"]}, "kind: must be one of LoRAJob"),
        (lorajob("a") | {"apiVersion": "tunery.dev/v2"}, "apiVersion: must be tunery.dev/v1alpha1"),
        ({"apiVersion": "v1", "kind": "Secret"}, "Fix: create it by kubectl apply"),
        (lorajob("A_B"), "metadata.name: must be a DNS name"),
        ({**lorajob("a"), "metadata": None}, "metadata.name: is required"),
        ({**lorajob("a"), "spec": None}, "spec: must be a mapping, is null"),
        (adapterserver("a.b"), "metadata.name: must have at most 48"),
        (adaptermerge("m", []), "spec.adapters"),
        (batchinference("q", serverRef={}), "spec.serverRef.name: is required"),
        (lorasweep("s", parameters=[{"path": "lora.rnk", "choices": [4, 8]}]), "spec.parameters[0].path"),
    ],
)
def test_what_is_invalid_is_named_with_its_field(document: Any, error: str) -> None:
    assert any(error in each for each in errors_of(document)), errors_of(document)


def test_an_object_that_a_file_has_twice_is_an_error() -> None:
    assert errors_of(lorajob("a"), lorajob("a"), lorasweep("a")) == [
        "  document 2 (LoRAJob a): metadata.name: job.yaml has this object twice. Fix: remove or rename one"
    ]


@pytest.mark.parametrize(("option", "own", "used"), [(None, "x", "x"), ("x", "x", "x"), ("x", None, None)])
def test_the_namespace_of_a_manifest_agrees_with_the_option(option: str, own: str, used: str) -> None:
    document = lorajob("a")
    document["metadata"]["namespace"] = own
    assert validate([document], "job.yaml", option)[0].namespace == used


def test_another_namespace_than_the_option_is_a_usage_error() -> None:
    document = lorajob("a")
    document["metadata"]["namespace"] = "x"
    with pytest.raises(UsageError, match=r"metadata\.namespace in job\.yaml is x, but the option -n is y") as caught:
        validate([document], "job.yaml", "y")
    assert caught.value.remedy == "Omit -n, or write -n x"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_of_the_docs_are_valid(path: Any) -> None:
    documents = [d for d in parse_documents(path.read_text(), path.name) if d["apiVersion"].startswith("tunery.dev/")]
    assert len(validate(documents, path.name)) == len(documents) > 0


def test_settings_change_a_copy_as_a_manifest_would() -> None:
    spec = {"training": {"epochs": 3}, "method": "LoRA"}
    changed = with_settings(
        spec,
        ["training.epochs=null", "spec.training.learningRate=2e-4", "lora.targetModules=[q_proj, v_proj]", "suspend=y"],
    )
    assert changed == {
        "training": {"learningRate": 0.0002},
        "method": "LoRA",
        "lora": {"targetModules": ["q_proj", "v_proj"]},
        "suspend": True,
    }
    assert spec == {"training": {"epochs": 3}, "method": "LoRA"}


@pytest.mark.parametrize("setting", ["training.epochs", "=3", "a..b=3", "method.x=3", "a=[", "a=b: c: d"])
def test_a_setting_that_cannot_be_read_is_a_usage_error(setting: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        with_settings({"method": "LoRA"}, [setting])


@pytest.mark.parametrize(
    "value", ["1e3", "y", "no", "0x10", "1_000", ".5", "null", "12:30", "", "ä", 1, 1.5, 2e-05, 1e22, True, None, [1]]
)
def test_printed_yaml_reads_as_the_same_value(value: Any) -> None:
    text = to_yaml({"a": value, "b": [value, value]})
    assert kubectl_yaml.load(text) == {"a": value, "b": [value, value]}
    assert "!!" not in text, "no tag is needed"

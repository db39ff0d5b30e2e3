"""The promises of v1alpha1: what was written by any release is read by this one, and defaults never change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.batchinference import BatchInferenceSpec, BatchInferenceStatus
from tunery_api.kubectl_yaml import documents_of
from tunery_api.lenient import without_invalid
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.manifest import Manifest
from tunery_api.runspec import PreflightReport, ProgressUpdate, RunResult, RunSpec
from tunery_api.serverstatus import AdapterServerStatus
from tunery_api.serving import Desired, ReplicaReply, ReplicaReport, ServeSpec
from tunery_api.status import LoRAJobStatus
from tunery_api.validation import parse_adaptermerge, parse_adapterserver, parse_batchinference, parse_lorajob

RELEASED = Path(__file__).with_name("fixtures") / "v1alpha1"
CONTRACT: dict[str, type[BaseModel]] = {
    "run-train.json": RunSpec,
    "run-merge.json": RunSpec,
    "report.json": PreflightReport,
    "failure.json": PreflightReport,
    "result.json": RunResult,
    "merge-result.json": RunResult,
    "progress.json": ProgressUpdate,
    "manifest.json": Manifest,
    "status.json": LoRAJobStatus,
    "serve.json": ServeSpec,
    "adapters.json": Desired,
    "replica-report.json": ReplicaReport,
    "replica-reply.json": ReplicaReply,
    "server-status.json": AdapterServerStatus,
    "run-batch.json": RunSpec,
    "batch-result.json": RunResult,
    "batch-progress.json": ProgressUpdate,
    "batch-status.json": BatchInferenceStatus,
}


def released(name: str) -> Any:
    """Return what a release wrote, as it was."""
    return next(documents_of((RELEASED / name).read_text()))


def test_every_fixture_is_tried() -> None:
    assert {path.name for path in RELEASED.iterdir()} == {
        *CONTRACT, "lorajob.yaml", "adaptermerge.yaml", "adapterserver.yaml", "batchinference.yaml", "defaults.json",
    }  # fmt: skip


def test_objects_that_were_accepted_are_accepted() -> None:
    assert parse_lorajob(released("lorajob.yaml")).lora.rank == 16
    assert len(parse_adaptermerge(released("adaptermerge.yaml")).adapters) == 2
    assert len(parse_adapterserver(released("adapterserver.yaml")).adapters or ()) == 3
    assert parse_batchinference(released("batchinference.yaml")).concurrency == 4


@pytest.mark.parametrize(("name", "model"), CONTRACT.items(), ids=CONTRACT.keys())
def test_what_was_written_is_read_in_full(name: str, model: type[BaseModel]) -> None:
    text = (RELEASED / name).read_text()
    read = model.model_validate_json(text)
    kept = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert kept == json.loads(text)


def _with_more(value: Any) -> Any:
    """Return a copy with a field in each object that no version knows yet; `facts` is a map of texts."""
    if isinstance(value, dict):
        known = {name: item if name == "facts" else _with_more(item) for name, item in value.items()}
        return {**known, "fromALaterVersion": {"x": 1}}
    return [_with_more(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("name", "model"),
    [entry for entry in CONTRACT.items() if entry[1] not in (RunSpec, ServeSpec, Manifest)],
    ids=[name for name, model in CONTRACT.items() if model not in (RunSpec, ServeSpec, Manifest)],
)
def test_what_a_later_version_adds_is_read_over(name: str, model: type[BaseModel]) -> None:
    old = released(name)
    read = model.model_validate(_with_more(old))
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == old


def test_a_run_reads_over_what_is_new_but_not_over_a_setting_that_the_user_asked_for() -> None:
    run = released("run-train.json")
    assert RunSpec.model_validate({**run, "format": "later", "identity": {**run["identity"], "cluster": "c"}})
    with pytest.raises(ValueError, match="sharding"):
        RunSpec.model_validate({**run, "loraJob": {**run["loraJob"], "sharding": "Auto"}})


def test_a_status_loses_only_what_is_wrong() -> None:
    status = released("status.json")
    assert without_invalid(LoRAJobStatus, status, strict=True) == status
    broken = {**status, "progress": {**status["progress"], "step": "7", "lastUpdateTime": "yesterday"}}
    kept = without_invalid(LoRAJobStatus, broken, strict=True)
    expected = {name: value for name, value in status["progress"].items() if name not in ("step", "lastUpdateTime")}
    assert kept == {**status, "progress": expected}


def _defaults(model: type[BaseModel], path: str) -> Iterator[tuple[str, Any]]:
    for name, info in model.model_fields.items():
        where = f"{path}.{info.alias or name}"
        inner = _model_in(info.annotation)
        if inner is not None:
            yield from _defaults(inner, where)
        default = info.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield where, default.model_dump(mode="json", by_alias=True, exclude_unset=True)
        elif not info.is_required():
            yield where, default


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def test_defaults_never_change_within_a_version() -> None:
    """Objects do not store what they left open: another default would change what was asked for long ago.

    A new field may be added to the file; a line that is there stays as it is until the next version of the API.
    """
    specs = {
        "LoRAJob": LoRAJobSpec,
        "AdapterMerge": AdapterMergeSpec,
        "AdapterServer": AdapterServerSpec,
        "BatchInference": BatchInferenceSpec,
    }
    now = dict(entry for kind, spec in specs.items() for entry in _defaults(spec, f"{kind}.spec"))
    assert json.loads(json.dumps(now)) == released("defaults.json")


@pytest.mark.parametrize(
    ("quantization", "text"),
    [
        ({"type": "NF4", "doubleQuant": False}, "NF4 without double quantisation"),
        ({"type": "NF4", "loadedAs": "BFloat16"}, "NF4, loaded as BFloat16"),
        (
            {"type": "NF4", "doubleQuant": True, "loadedAs": "BFloat16"},
            "NF4 with double quantisation, loaded as BFloat16",
        ),
        ({"type": "Int8", "doubleQuant": True, "loadedAs": "Float32"}, "Int8, loaded as Float32"),
        ({"type": "MXFP4", "loadedAs": "Float8", "blocks": 32}, "MXFP4, loaded as Float8"),
        (None, "None"),
    ],
)
def test_the_quantisation_of_a_base_is_shown(quantization: Any, text: str) -> None:
    manifest = released("manifest.json") | {"lineage": {"quantization": quantization}}
    assert str(Manifest.model_validate(manifest).lineage.quantization) == text


@pytest.mark.parametrize("lineage", ["x", [], None, {"hyperparameters": 5}, {"quantization": 1}])
def test_a_damaged_lineage_is_refused_as_one(lineage: Any) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(released("manifest.json") | {"lineage": lineage})

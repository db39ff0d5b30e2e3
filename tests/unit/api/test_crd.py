"""The generated CRDs: structural, bounded, documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunery_api import generate
from tunery_api.crd import custom_resource_definition, structural_schema
from tunery_api.fields import ApiModel
from tunery_api.kinds import KINDS, Kind, KindDefinition
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.lorasweep import LoRASweepSpec


def schemas(kind: KindDefinition) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema of a kind's spec and status with its path."""
    root = custom_resource_definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    stack = [(part, root["properties"][part]) for part in ("spec", "status")]
    while stack:
        path, schema = stack.pop()
        yield path, schema
        stack += [(f"{path}.{name}", child) for name, child in schema.get("properties", {}).items()]
        stack += [(f"{path}[]", schema["items"])] if "items" in schema else []
        stack += [(f"{path}{{}}", schema["additionalProperties"])] if "additionalProperties" in schema else []


CHOICES = ("parameters[].choices[]", "parameters[].when.in[]", "initial[]{}")
"""Values of any searched field, the only ones without a type: a scalar is a number, a string or a boolean."""


@pytest.mark.parametrize("kind", KINDS.values(), ids=[kind.singular for kind in KINDS])
def test_every_schema_is_structural_and_bounded(kind: KindDefinition) -> None:
    allowed = {
        "type", "description", "properties", "required", "items", "additionalProperties", "enum", "pattern", "format",
        "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
        "default", "x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
        "exclusiveMinimum", "exclusiveMaximum", "not", "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields", "nullable",
    }  # fmt: skip
    for path, schema in schemas(kind):
        assert set(schema) <= allowed, path
        if "type" not in schema:
            assert path.endswith(CHOICES) or "x-kubernetes-int-or-string" in schema, path
            assert schema.get("maxItems", 0) == schema.get("maxProperties", 0) == 0, f"{path} takes more than a scalar"
        if schema.get("type", "string") == "string":
            assert "enum" in schema or "maxLength" in schema, f"{path} has no maximum"
        if schema.get("type") == "array":
            assert "maxItems" in schema, f"{path} has no maximum"
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, f"{path} has no maximum"


@pytest.mark.parametrize("kind", KINDS.values(), ids=[kind.singular for kind in KINDS])
def test_no_list_has_room_for_null(kind: KindDefinition) -> None:
    """An entry with a type is none; of one without, a rule of the block says so, which sees only what may be null."""
    for path, schema in schemas(kind):
        rules = [each["rule"] for each in schema.get("x-kubernetes-validations", ())]
        for name, field in schema.get("properties", {}).items():
            entries = field.get("items", {"type": "any"})
            own = {"in": "__in__"}.get(name, name)
            refused = any(rule.endswith(f"dyn(self).{own}.all(item, item != null)") for rule in rules)
            assert refused if entries.get("nullable") else "type" in entries, f"{path}.{name}"


@pytest.mark.parametrize("kind", KINDS.values(), ids=[kind.singular for kind in KINDS])
def test_every_field_is_explained(kind: KindDefinition) -> None:
    silent = [
        path for path, schema in schemas(kind) if not path.endswith(("[]", "{}")) and not schema.get("description")
    ]
    assert silent == []


def test_the_template_of_a_sweep_has_the_rules_of_blocks_and_none_of_a_whole_lorajob() -> None:
    template = structural_schema(LoRASweepSpec)["properties"]["template"]
    job = structural_schema(LoRAJobSpec)
    assert job["x-kubernetes-validations"]
    assert "x-kubernetes-validations" not in template
    assert template["properties"]["training"] == job["properties"]["training"]


def test_a_union_is_refused() -> None:
    class Union(ApiModel):
        value: int | str

    broken = KINDS[Kind.LORAJOB]._replace(status=Union)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot have a union"):
        custom_resource_definition(broken)


COLUMNS = {
    Kind.LORAJOB: (
        "Phase, Progress, Reason, Loss, Method, Age",
        "Model, Task, Eval Loss, ETA, Pods, Health, Queue, Adapter",
    ),
    Kind.ADAPTERMERGE: ("Phase, Progress, Reason, Method, Into, Age", "Deviation, Queue, Adapter"),
    Kind.ADAPTERSERVER: ("Phase, Ready, Adapters, Reason, Age", "Model, URL"),
    Kind.BATCHINFERENCE: ("Phase, Progress, Reason, Errors, Server, Age", "ETA, Queue, Output"),
    Kind.LORASWEEP: ("Phase, Reason, Trials, Running, Best, Trial, Age", "Improvement, GPU-s, Saved, Queue, Adapter"),
}
"""Of `kubectl get`, and what `-o wide` adds."""


@pytest.mark.parametrize("kind", Kind, ids=[kind.singular for kind in Kind])
def test_columns_are_the_documented_ones(kind: Kind) -> None:
    columns = custom_resource_definition(KINDS[kind])["spec"]["versions"][0]["additionalPrinterColumns"]
    always, wide = COLUMNS[kind]
    assert ", ".join(column["name"] for column in columns if not column.get("priority")) == always
    assert ", ".join(column["name"] for column in columns if column.get("priority")) == wide


@pytest.mark.slow
def test_asking_for_help_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, code in ((["--help"], 0), ([], 2), (["--chek", "."], 2)):
        with pytest.raises(SystemExit) as ended:
            generate.main(arguments)
        assert ended.value.code == code
    assert list(tmp_path.iterdir()) == []
    assert generate.main(["--check", "."]) == 1
    assert generate.main(["."]) == generate.main(["--check", "."]) == 0

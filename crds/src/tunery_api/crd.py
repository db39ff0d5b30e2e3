"""Convert the pydantic models of a kind into its CustomResourceDefinition with a structural schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from tunery_api.fields import LEAST, SERVER_DEFAULT, UNOBSERVED, ApiModel, parse_quantity
from tunery_api.immutability import immutability_rules
from tunery_api.kinds import KindDefinition
from tunery_api.names import GROUP, HOST_NAME, LONGEST_HOST_NAME, VERSION
from tunery_api.rules import RULES

_SCALE: Final[Mapping[str, str]] = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}
UNSEEN: Final[Mapping[str, Any]] = {"observedGeneration": UNOBSERVED}
"""The status until the operator has read the object: kstatus and similar tools then wait for it. They treat an object
without a status as ready."""
_DROPPED: Final = frozenset({"title", "default", "const", "$defs", "additionalProperties", "propertyNames"})
_EXCLUSIVE: Final[Mapping[str, str]] = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
"""OpenAPI 3.0 has a boolean next to the bound; JSON Schema has the exclusive bound itself."""


def custom_resource_definition(definition: KindDefinition) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind, ready to be written as YAML."""
    kind = definition.kind
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.value,
                "listKind": f"{kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [definition.short],
                "categories": ["ai"],
            },
            "versions": [_version(definition)],
        },
    }


def _version(definition: KindDefinition) -> dict[str, Any]:
    spec = structural_schema(definition.spec)
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}} | ({"scale": dict(_SCALE)} if definition.scales else {}),
        "selectableFields": [{"jsonPath": path} for path in definition.selectable],
        "additionalPrinterColumns": [_column(column) for column in definition.columns],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": definition.description,
                "required": ["spec"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"type": "object"},
                    "spec": spec,
                    "status": structural_schema(definition.status) | {"default": dict(UNSEEN)},
                },
                "x-kubernetes-validations": [
                    *_name_rules(definition),
                    *_start_rules(definition),
                    *immutability_rules(definition, spec),
                ],
            }
        },
    }


def _name_rules(definition: KindDefinition) -> list[dict[str, str]]:
    """Return the rule of a name that becomes part of a host name."""
    if not definition.host_name:
        return []
    message = (
        f"the name becomes part of a host name: at most {LONGEST_HOST_NAME} lower-case letters, digits and -, starting "
        "with a letter and ending with a letter or digit"
    )
    rule = f"self.metadata.name.matches('{HOST_NAME}') && self.metadata.name.size() <= {LONGEST_HOST_NAME}"
    return [{"rule": rule, "message": message}]


def _start_rules(definition: KindDefinition) -> list[dict[str, Any]]:
    """Return the rule that a sweep doesn't learn from itself. Rules of a spec can't read the object's name.

    It applies only on creation: an existing object that breaks it can still be updated, as can its status and
    finalizers. CRD ratcheting doesn't help at the root, where something always changes.
    """
    if "warm_start_from" not in definition.spec.model_fields:
        return []
    another = "!has(self.spec.warmStartFrom) || self.spec.warmStartFrom.all(s, s.name != self.metadata.name)"
    rule = f"oldSelf.hasValue() || {another}"
    message = "warmStartFrom names this sweep, which already learns from its own trials. Fix: remove that entry"
    return [{"rule": rule, "message": message, "optionalOldSelf": True}]


def _column(column: Any) -> dict[str, Any]:
    shown = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    return shown | ({"priority": column.priority} if column.priority else {})


class _WithRules(GenerateJsonSchema):
    """A schema generator that adds each class's CEL rules to the class's schema."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        rules = [rule.validation(schema["cls"]) for rule in RULES.of(schema["cls"])]
        if rules:
            result["x-kubernetes-validations"] = rules
        return result


def _rule(rule: str, message: str, *, once: bool = False) -> dict[str, Any]:
    if once:
        return {"rule": f"oldSelf.hasValue() || {rule}", "message": message, "optionalOldSelf": True}
    return {"rule": rule, "message": message}


def structural_schema(model: type[ApiModel]) -> dict[str, Any]:
    """Return the structural schema of `model`: no references, no unions, everything bounded.

    Raises ValueError if the model has something that a CRD can't express.
    """
    schema = model.model_json_schema(by_alias=True, schema_generator=_WithRules)
    return _structural(schema, schema.get("$defs", {}))


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    node = _inlined(node, definitions)
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            result[key] = {name: _structural(child, definitions) for name, child in value.items()}
        elif key == "items":
            result[key] = _structural(value, definitions)
        elif key in _EXCLUSIVE:
            result |= {_EXCLUSIVE[key]: value, key: True}
        elif key not in _DROPPED:
            result[key] = value
    if isinstance(node.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    elif node.get("patternProperties"):
        # pydantic writes a map whose keys have a pattern like this; a CRD can only limit the number of keys.
        del result["patternProperties"]
        result["additionalProperties"] = _structural(next(iter(node["patternProperties"].values())), definitions)
    missing = list(_rules_beyond_schema(result.get("properties", {})))
    if missing:
        result["x-kubernetes-validations"] = [*result.get("x-kubernetes-validations", []), *missing]
    if "const" in node:
        result["enum"] = [node["const"]]
    _append_default(result, node)
    return result


def _rules_beyond_schema(properties: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield rules for values that the schemas accept and Python rejects: null entries, and too few bytes.

    A list entry without a type accepts null. A rule sees null only in a nullable entry.
    """
    for name, field in properties.items():
        entries = field.get("items")
        if entries is not None and "type" not in entries:
            entries["nullable"] = True
            own = f"dyn(self).{'__in__' if name == 'in' else name}"
            yield _rule(
                f"!has({own}) || {own}.all(item, item != null)", f"{name} has an entry that is null; write a value"
            )
        if least := field.pop(LEAST, None):
            message = f"{name} must be at least {least}, a quantity such as 24Gi; without a unit it is bytes"
            yield _rule(_at_least(f"self.{name}", least), message)


def _at_least(own: str, least: str) -> str:
    """Return the CEL rule for the minimum of a quantity. An unquoted fraction is invalid."""
    whole = f"{own} >= {int(parse_quantity(least))}"
    text = f"isQuantity({own}) && !quantity({own}).isLessThan(quantity('{least}'))"
    return f"!has({own}) || (type({own}) == int ? {whole} : type({own}) == string && {text})"


def _inlined(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve `$ref`, and collapse `X | None` to X; the keys next to them take precedence."""
    beside = {key: value for key, value in node.items() if key not in {"$ref", "anyOf", "allOf"}}
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        return _inlined(target, definitions) | beside
    if any({"type", "$ref"} & option.keys() for option in node.get("anyOf", ())):
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"a CRD cannot have a union; use optional fields and CEL: {node}")
        return _inlined(options[0], definitions) | beside
    return beside


def _append_default(result: dict[str, Any], node: Mapping[str, Any]) -> None:
    """Append the default to the description.

    The schema has a default only for printer columns: the operator could not tell a schema default from a set value,
    and a preset fills unset fields only.
    """
    default = node.get("default")
    if result.pop(SERVER_DEFAULT, False):
        result["default"] = default
    if default in (None, "") or isinstance(default, (dict, list)) or "Default" in node.get("description", ""):
        return
    shown = {True: "true", False: "false"}.get(default, default) if isinstance(default, bool) else default
    result["description"] = f"{node.get('description', '')} Default: {shown}.".strip()

"""Provide the CEL transition rules of a kind: which fields are immutable, always or while a pod runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic.fields import FieldInfo

from tunery_api.fields import ApiModel
from tunery_api.kinds import KindDefinition

_AT_REST: Final = (
    "!(has(self.status) && has(self.status.conditions) && "
    "self.status.conditions.exists(c, c.type == 'Running' && c.status == 'True'))"
)


def immutability_rules(kind: KindDefinition, schema: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return one rule for each field of this schema that is immutable, always or while a pod runs.

    The rules are above the fields: a rule on an optional field isn't evaluated when the field is added or removed.
    The API server evaluates them on each status update too, and each field access costs, so there are few accesses.
    """
    spec, rules = kind.spec, []
    for name in _names(spec.model_fields.values()):
        if name in spec.MUTABLE:
            continue
        if name == "resources":
            rules += [_resource(kind, field) for field in _names(_block(spec, name).model_fields.values())]
            continue
        same = _same(name, hidden=_is_hidden(schema["properties"][name]))
        if name in spec.MUTABLE_AT_REST:
            rules.append(_rule(f".spec.{name}", f"{same} || {_AT_REST}", _while_running_message(name)))
        elif name in spec.SET_ONCE:
            rules.append(_rule(f".spec.{name}", f"!has(oldSelf.spec.{name}) || {same}", _set_once_message(kind, name)))
        else:
            rules.append(_rule(f".spec.{name}", same, _immutable_message(kind, name)))
    return rules


def _is_hidden(schema: Mapping[str, Any]) -> bool:
    """Return whether a field has values without a type: CEL declares no such field, but dyn() can access it."""
    inner = schema.get("items") or schema.get("additionalProperties")
    if inner:
        return _is_hidden(inner)
    return "type" not in schema and "x-kubernetes-int-or-string" not in schema


def _block(spec: type[ApiModel], name: str) -> type[ApiModel]:
    block = spec.model_fields[name].annotation
    assert isinstance(block, type) and issubclass(block, ApiModel)  # noqa: S101, PT018 - a block of the API, for types
    return block


def _names(fields: Iterable[FieldInfo]) -> list[str]:
    return [str(info.alias) for info in fields]


def _resource(kind: KindDefinition, field: str) -> dict[str, str]:
    """Return the rule of one field of `resources`; the whole block may be unset."""
    none, at = {"gpus": "-1", "nodes": "1"}.get(field, "''"), "{at}.spec.resources"
    value = f"{at}.{field}" if field in ("gpus", "nodes", "gpuResource") else f"string({at}.{field})"
    one = f"(has({at}) && has({at}.{field}) ? {value} : {none})"
    name, same = f"resources.{field}", " == ".join(one.replace("{at}", each) for each in ("self", "oldSelf"))
    if field in kind.spec.MUTABLE_RESOURCES:
        return _rule(".spec.resources", f"{same} || {_AT_REST}", _while_running_message(name))
    return _rule(".spec.resources", same, _immutable_message(kind, name))


def _same(name: str, *, hidden: bool) -> str:
    # `self.spec.?name == oldSelf.spec.?name` would exceed the cost limit: the API server ignores an optional's bounds.
    new, old = (f"dyn({at}.spec).{name}" if hidden else f"{at}.spec.{name}" for at in ("self", "oldSelf"))
    return f"(has({new}) ? has({old}) && {new} == {old} : !has({old}))"


def _while_running_message(name: str) -> str:
    return (
        f"{name} cannot be changed while a pod runs. Fix: set suspend: true, wait for phase Suspended, then change it"
    )


def _set_once_message(kind: KindDefinition, name: str) -> str:
    return f"{name} is final and can be neither changed nor removed. Fix: continue in another {kind.kind}"


def _immutable_message(kind: KindDefinition, name: str) -> str:
    return f"{name} cannot be changed. Fix: delete the {kind.kind} and apply it again, or use another name"


def _rule(path: str, rule: str, message: str) -> dict[str, str]:
    return {"rule": rule, "message": message, "fieldPath": path}

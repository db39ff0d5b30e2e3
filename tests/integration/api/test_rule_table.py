"""Python and the API server evaluate each row of the table alike, and show the same sentence at the same field."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, get_args, get_origin

import pytest

from tunery_api.cel import Condition, CustomCondition, Rule, Several, field_info
from tunery_api.fields import ApiModel
from tunery_api.kinds import KINDS
from tunery_api.rules import RULES

from kit.api_server import ApiServer
from kit.validations import BASES, Spec, manifest, python_errors, server_error

TEXTS: Final[Mapping[str, list[Any]]] = {
    "uri": ["s3://a/b.jsonl", "hf://a/b"],
    "name": ["a", "a..b", "..", "."],
    "key": ["a", "a..b", "..", "."],
    "gpuResource": ["nvidia.com/gpu", "amd.com/gpu"],
    "path": ["lora.rank"],
    "sha256": ["a" * 64],
    "manifestSha256": ["a" * 64],
    "min": [1],
    "max": [9],
    "maxRank": [8, 24, 64],
    "adapter": ["m"],
    "targetModules": [["q_proj"]],
    "modulesToSave": [["lm_head"]],
    "rankPattern": [{"a": 1}],
    "alphaPattern": [{"a": 1}],
    "matchLabels": [{"a": "b"}, {}],
    "parameters": [[], [{"path": "lora.rank", "choices": [4]}]],
    "choices": [[4]],
    "models": [["m"]],
}
"""Values of fields whose type says too little, by name."""
FIELDS_BESIDE: Final[Mapping[str, list[Any]]] = {
    "OutputSpec.uri": [
        "s3://a/b",
        "s3://a/tunery-checkpoints",
        "s3://a/tunery-checkpoints/b",
        "s3://a/b/tunery-checkpoints",
    ],
    "BatchInput.uri": ["s3://a/b.jsonl", "s3://a/*.jsonl", "s3://a/b.jsonl.zst", "s3://a/b.csv", "configmap://a/b"],
}


def field(block: type[ApiModel], path: str) -> list[Any]:
    """Return values of a field below a block."""
    info, name = field_info(block, path), path.rpartition(".")[2]
    if (own := FIELDS_BESIDE.get(f"{block.__name__}.{path}")) is not None:
        return own
    if name in TEXTS:
        return TEXTS[name]
    if is_list(info.annotation):
        return [[minimal(blocks_in(info.annotation)[0])] if blocks_in(info.annotation) else ["main"], []]
    for each in leaves(info.annotation):
        if issubclass(each, StrEnum):
            return [member.value for member in each]
        if each is bool:
            return [True, False]
        if issubclass(each, ApiModel):
            return [minimal(each)]
        if issubclass(each, (int, float)):
            return [1, 0, 2]
    return ["main"]


def minimal(block: type[ApiModel]) -> Spec:
    """Return the smallest block of a class."""
    required = {str(info.alias): info for info in block.model_fields.values() if info.is_required()}
    spec = {name: copy.deepcopy(field(block, name)[0]) for name in required}
    first = [rule.conditions[0] for rule in RULES.of(block)]
    one_of = [each.paths[0] for each in first if isinstance(each, Several) and each.none]
    return spec | {path: field(block, path)[0] for path in one_of}


def paths_of(condition: Condition) -> tuple[str, ...]:
    if isinstance(condition, CustomCondition):
        return ()
    return condition.paths if isinstance(condition, Several) else (condition.path,)  # type: ignore[attr-defined, no-any-return]


def place_of(
    block: type[ApiModel], root: type[ApiModel], path: tuple[str | int, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    """Yield where blocks of a class are in a spec, and their own class."""
    if issubclass(root, block):
        yield (root, *path)
    for info in root.model_fields.values():
        for inner in blocks_in(info.annotation):
            yield from place_of(block, inner, (*path, str(info.alias), *((0,) if is_list(info.annotation) else ())))


def with_values(spec: Spec, place: tuple[str | int, ...], root: type[ApiModel], values: Mapping[str, Any]) -> Spec:
    """Return a spec in which a block, and all above it, exists and has these values."""
    spec = copy.deepcopy(spec)
    at: Any = spec
    block = root
    for step, following in itertools.zip_longest(place, place[1:]):
        if isinstance(step, int):
            at = at[step]
            continue
        block = blocks_in(field_info(block, step).annotation)[0]
        at = at.setdefault(step, [minimal(block)] if following == 0 else minimal(block))
    for path, value in values.items():
        *above, last = path.split(".")
        inner, owner = at, block
        for name in above:
            owner = blocks_in(field_info(owner, name).annotation)[0]
            inner = inner.setdefault(name, minimal(owner))
        inner.pop(last, None)
        if value is not None:
            inner[last] = copy.deepcopy(value)
    return spec


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(map(is_list, get_args(annotation)))


def leaves(annotation: Any) -> list[type]:
    """Return the classes in the annotation of a field."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [found for each in get_args(annotation) for found in leaves(each)]


def blocks_in(annotation: Any) -> list[type[ApiModel]]:
    """Return the class of the blocks in a field, or nothing."""
    return [each for each in leaves(annotation) if issubclass(each, ApiModel)]


def cases_of(rule: Rule) -> Iterator[dict[str, Any]]:
    """Yield objects with every combination of the values of a rule's fields."""
    paths = list(dict.fromkeys(path for each in rule.conditions for path in paths_of(each)))
    for kind, definition in KINDS.items():
        found = next(place_of(rule.block, definition.spec), None)
        if found is None:
            continue
        block, *place = found
        required = {str(info.alias) for info in block.model_fields.values() if info.is_required()}
        options = [[*field(block, path), *([] if path in required else [None])] for path in paths]
        for values in itertools.product(*options):
            filled = dict(zip(paths, values, strict=True))
            spec = with_values(BASES[kind], tuple(place), definition.spec, filled)
            yield manifest(kind, dict.fromkeys(BASES[kind]) | spec)
        return
    raise AssertionError(f"no kind has a {rule.block.__name__}")


MESSAGES: Final = {rule.message for rule in RULES.rules}


def id_of(rule: Rule) -> str:
    return f"{rule.block.__name__}.{rule.field}"


@pytest.mark.parametrize("rule", [rule for rule in RULES.rules if any(map(paths_of, rule.conditions))], ids=id_of)
def test_python_and_the_api_server_agree_on_every_combination(
    api_server: ApiServer, namespace: str, rule: Rule
) -> None:
    seen = []
    for body in cases_of(rule):
        errors, told = python_errors(body), server_error(api_server, namespace, body)
        assert bool(errors) == bool(told), (body, errors, told)
        broken = [error.split(": ", 1) for error in errors if error.split(": ", 1)[1] in MESSAGES]
        assert all(f"{path}: Invalid value: " in told and message in told for path, message in broken), (body, told)
        seen.append(rule.message in [message for _, message in broken])
    if not any(isinstance(each, CustomCondition) for each in rule.conditions):
        assert set(seen) == {True, False}, "some cases break the rule, and some satisfy it"

"""Python and the API server evaluate each row of the table alike, and show the same sentence at the same field."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, get_args, get_origin

import pytest

from tunery_api.cel import Condition, CustomCondition, Rule, Several, field_info
from tunery_api.errors import InvalidSpec
from tunery_api.fields import ApiModel
from tunery_api.kinds import KINDS, Kind
from tunery_api.rules import RULES
from tunery_api.validation import parse_adaptermerge, parse_adapterserver, parse_batchinference, parse_lorajob
from tunery_search.validation import parse_lorasweep

from kit.api_server import ApiServer
from kit.kubectl import KubectlError

Spec = dict[str, Any]
MODEL: Final = {"uri": "hf://models/m"}
ONE: Final = {"uri": "s3://adapters/one"}
ADAPTER: Final = {"name": "one"} | ONE
ALIAS: Final = {"name": "b", "targets": [{"adapter": "one"}]}
PARSERS: Final = {
    Kind.LORAJOB: parse_lorajob,
    Kind.ADAPTERMERGE: parse_adaptermerge,
    Kind.LORASWEEP: parse_lorasweep,
    Kind.ADAPTERSERVER: parse_adapterserver,
    Kind.BATCHINFERENCE: parse_batchinference,
}
BASES: Final[Mapping[Kind, Spec]] = {
    Kind.LORAJOB: {"model": MODEL, "dataset": {"uri": "s3://d/rows.jsonl"}},
    Kind.ADAPTERMERGE: {"adapters": [ONE]},
    Kind.LORASWEEP: {"template": {"model": MODEL, "dataset": {"uri": "s3://d/rows.jsonl"}}, "preset": "Guide"},
    Kind.ADAPTERSERVER: {"model": MODEL},
    Kind.BATCHINFERENCE: {"serverRef": {"name": "s"}, "input": {"uri": "s3://d/rows.jsonl"}},
}
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
BY_HAND: Final[list[tuple[Kind, Spec]]] = [
    (Kind.LORAJOB, {"lora": {"targetModules": ["attention"]}}),
    (Kind.LORAJOB, {"lora": {"targetModules": ["attention", "up_proj"]}}),
    (Kind.LORAJOB, {"lora": {"targetModules": ["q_proj", "up_proj"]}}),
    *(
        (Kind.LORAJOB, {"method": "AdaLoRA", "adalora": ranks})
        for ranks in (
            {"initialRank": 8},
            {"initialRank": 9},
            {"targetRank": 1},
            {"initialRank": 4, "targetRank": 4},
            {"initialRank": 5, "targetRank": 4},
        )
    ),
    *(
        (Kind.LORAJOB, {"resources": resources, "training": {"gradientAccumulation": passes}})
        for resources in ({}, {"gpus": 0}, {"gpus": 4, "nodes": 2}, {"gpus": 0, "nodes": 3}, {"gpus": 1, "nodes": 3})
        for passes in (1, 2, 3, 8, 12, 1024)
    ),
    *((Kind.LORAJOB, {"task": task, "training": {"neftuneNoiseAlpha": 0}}) for task in ("SFT", "DPO")),
    *((Kind.LORAJOB, {"task": task, "training": {"neftuneNoiseAlpha": 5}}) for task in ("SFT", "DPO")),
    *(
        (kind, spec | {"output": {"uri": uri}})
        for uri in ("s3://a/b", "s3://a/b/", "s3://a/b/c", "s3://a", "s3://a/bc", "s3://c/b")
        for kind, spec in (
            (Kind.LORAJOB, {"model": {"uri": "s3://a/b"}}),
            (Kind.LORAJOB, {"continueFrom": {"uri": "s3://a/b"}}),
            (Kind.ADAPTERMERGE, {"into": "Model", "model": {"uri": "s3://a/b"}}),
            (Kind.ADAPTERMERGE, {"adapters": [ONE, {"uri": "s3://a/b"}]}),
            (Kind.LORASWEEP, {"template": BASES[Kind.LORASWEEP]["template"] | {"model": {"uri": "s3://a/b"}}}),
            (Kind.LORASWEEP, {"template": BASES[Kind.LORASWEEP]["template"] | {"continueFrom": {"uri": "s3://a/b"}}}),
        )
    ),
    *(
        (Kind.ADAPTERMERGE, {"adapters": [ONE | one, {"loraJobRef": {"name": "x"}} | two]})
        for one in ({}, {"weight": 0.5})
        for two in ({}, {"weight": 1})
    ),
    *(
        (Kind.ADAPTERMERGE, {"adapters": [source], "model": MODEL} | more)
        for source in (ONE, {"loraJobRef": {"name": "x"}})
        for more in ({}, {"into": "Model"}, {"evaluation": {"dataset": {"uri": "s3://d/x.jsonl"}}})
    ),
    *(
        (Kind.ADAPTERSERVER, {"engine": engine})
        for engine in (
            {"maxLoadedAdapters": 7},
            {"maxLoadedAdapters": 8},
            {"maxAdaptersInBatch": 33},
            {"args": ["--seed=1", "--enforce-eager"]},
            {"args": ["--seedy"]},
            {"args": ["--seed=1", "--generation-config=/etc"]},
        )
    ),
    *(
        (Kind.ADAPTERSERVER, {"adapters": [ADAPTER], "aliases": [{"name": name, "targets": targets}, ALIAS]})
        for name in ("one", "x")
        for targets in ([{"adapter": "b"}], [{"adapter": "one", "weight": 0}], [{"adapter": "m"}, {"adapter": "one"}])
    ),
    *(
        (Kind.ADAPTERSERVER, {"model": MODEL | {"servedName": name}, "adapters": [ADAPTER]})
        for name in ("one", "x")
    ),
    *(
        (Kind.LORASWEEP, {"parameters": [{"path": "training.weightDecay"} | values]})
        for values in (
            {},
            {"choices": [1e-4]},
            {"choices": [1e-4], "range": {"min": 1e-5, "max": 1e-3}},
            *({"range": {"min": 1e-5, "max": end, "log": True}} for end in (1e-5, 1e-3, 1e-6)),
            *({"range": {"min": 0, "max": 1e-3, "log": log}} for log in (True, False)),
        )
    ),
]  # fmt: skip


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


def cases_of(rule: Rule) -> Iterator[tuple[Kind, Spec]]:
    """Yield specs with every combination of the values of a rule's fields."""
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
            yield kind, with_values(BASES[kind], tuple(place), definition.spec, filled)
        return
    raise AssertionError(f"no kind has a {rule.block.__name__}")


def refused_here(kind: Kind, spec: Spec) -> set[tuple[str, str]]:
    try:
        PARSERS[kind]({"spec": spec})
    except InvalidSpec as error:
        return {(each.path, each.message) for each in error.errors}
    return set()


@pytest.fixture(scope="module")
def namespace(api_server: ApiServer) -> Iterator[str]:
    api_server.run("create", "namespace", "rule-table")
    yield "rule-table"
    api_server.delete("namespace", "rule-table", wait=False)


def refused_there(api_server: ApiServer, namespace: str, kind: Kind, spec: Spec) -> str:
    body = {"apiVersion": "tunery.dev/v1alpha1", "kind": kind.value, "metadata": {"name": "case"}, "spec": spec}
    try:
        api_server.create(body, namespace, dry_run=True)
    except KubectlError as error:
        return str(error)
    return ""


MESSAGES: Final = {rule.message for rule in RULES.rules}


def id_of(rule: Rule) -> str:
    return f"{rule.block.__name__}.{rule.field}"


def check(api_server: ApiServer, namespace: str, kind: Kind, spec: Spec) -> set[str]:
    """Compare what is refused here and there; return the messages."""
    here, there = refused_here(kind, spec), refused_there(api_server, namespace, kind, spec)
    assert bool(here) == bool(there), (spec, here, there)
    told = {(path, message) for path, message in here if message in MESSAGES}
    assert {each for each in told if f"{each[0]}: Invalid value: " not in there or each[1] not in there} == set(), spec
    return {message for _, message in told}


@pytest.mark.parametrize("rule", [rule for rule in RULES.rules if any(map(paths_of, rule.conditions))], ids=id_of)
def test_every_combination_of_its_fields_is_judged_alike(api_server: ApiServer, namespace: str, rule: Rule) -> None:
    seen = [check(api_server, namespace, kind, spec) for kind, spec in cases_of(rule)]
    if any(isinstance(each, CustomCondition) for each in rule.conditions):
        return
    assert any(rule.message in messages for messages in seen), "no case breaks the rule"
    assert any(rule.message not in messages for messages in seen), "no case satisfies the rule"


def test_rules_by_hand_are_judged_alike(api_server: ApiServer, namespace: str) -> None:
    seen = [check(api_server, namespace, kind, BASES[kind] | spec) for kind, spec in BY_HAND]
    rules = [rule for rule in RULES.rules if any(isinstance(each, CustomCondition) for each in rule.conditions)]
    for rule in rules:
        assert any(rule.message in messages for messages in seen), f"no case breaks {id_of(rule)}: {rule.message}"
        assert any(rule.message not in messages for messages in seen)

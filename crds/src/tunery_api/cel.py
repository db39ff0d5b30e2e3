"""Provide Rule, a cross-field rule that is compiled to CEL for the API server and evaluated by Python."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_args, get_origin

from pydantic.fields import FieldInfo

from tunery_api.errors import FieldError
from tunery_api.fields import ApiModel

Raw = Mapping[str, Any]
"""A block as a dict of the manifest, without unset fields."""


class Condition(Protocol):
    """A condition on a block, with the same meaning in CEL and Python."""

    def cel(self, block: type[ApiModel]) -> str:
        """Return the condition as a CEL expression on `self`, a block of this class."""

    def holds(self, block: type[ApiModel], raw: Raw) -> bool:
        """Return whether the condition is true for a block."""


@dataclass(frozen=True)
class Given:
    """The field is set; negated: it is unset."""

    path: str
    negated: bool = False

    def cel(self, block: type[ApiModel]) -> str:
        *above, last = self.path.split(".")
        owner = ".".join(("self", *above))
        blocks = [f"has(self.{'.'.join(above[: depth + 1])})" for depth in range(len(above))]
        text = " && ".join([*blocks, f"has({owner}.{last})"])
        return f"!({text})" if self.negated else text

    def holds(self, block: type[ApiModel], raw: Raw) -> bool:
        return (value_at(raw, self.path) is None) is self.negated


@dataclass(frozen=True)
class Is:
    """The field, or its default, has one of the values; negated: it has none of them."""

    path: str
    values: tuple[str | bool | float, ...]
    negated: bool = False

    def cel(self, block: type[ApiModel]) -> str:
        known = f"[{', '.join(map(_literal, self.values))}]"
        text = f"{_cel_value(block, self.path)} in {known}"
        return f"!({text})" if self.negated else text

    def holds(self, block: type[ApiModel], raw: Raw) -> bool:
        value = value_at(raw, self.path)
        found = (_default(block, self.path) if value is None else value) in self.values
        return found is not self.negated


@dataclass(frozen=True)
class Matches:
    """The field contains a match of an RE2 pattern; negated: it contains none."""

    path: str
    pattern: str
    negated: bool = False

    def cel(self, block: type[ApiModel]) -> str:
        # The API server estimates the cost from the length, which an optional does not have.
        text = f"has(self.{self.path}) && self.{self.path}.matches('{self.pattern}')"
        return f"!({text})" if self.negated else text

    def holds(self, block: type[ApiModel], raw: Raw) -> bool:
        value = value_at(raw, self.path)
        text = _default(block, self.path) if value is None else value
        return (re.search(self.pattern, str(text)) is None) is self.negated


@dataclass(frozen=True)
class Several:
    """More than one of the fields is set; with `none`: not exactly one is set."""

    paths: tuple[str, ...]
    none: bool = False

    def cel(self, block: type[ApiModel]) -> str:
        each = ", ".join(Given(path).cel(block) for path in self.paths)
        return f"[{each}].filter(set, set).size() {'!= 1' if self.none else '> 1'}"

    def holds(self, block: type[ApiModel], raw: Raw) -> bool:
        count = sum(value_at(raw, path) is not None for path in self.paths)
        return count > 1 or (self.none and count == 0)


@dataclass(frozen=True)
class Empty:
    """The list or map is unset or empty."""

    path: str

    def cel(self, block: type[ApiModel]) -> str:
        return f"!(has(self.{self.path}) && self.{self.path}.size() > 0)"

    def holds(self, block: type[ApiModel], raw: Raw) -> bool:
        return not value_at(raw, self.path)


@dataclass(frozen=True)
class CustomCondition:
    """A condition with arithmetic or a loop, written in both languages."""

    text: str
    python: Callable[[Any], bool]

    def cel(self, block: type[ApiModel]) -> str:
        return self.text

    def holds(self, block: type[ApiModel], raw: Raw) -> bool:
        return self.python(raw)


@dataclass(frozen=True)
class Rule:
    """A rule that a block breaks if all of its conditions hold."""

    block: type[ApiModel]
    """The class of the block; the rule applies to its subclasses too."""
    field: str
    """The path of the error within the block; empty: the block itself."""
    conditions: tuple[Condition, ...]
    says: str
    fix: str
    on_create: bool = False
    """Evaluate the rule only when the block is created: an existing invalid block can still be updated."""

    @property
    def message(self) -> str:
        """The message of Python and the API server, after the path of the field."""
        return f"{self.says}. Fix: {self.fix}"

    def validation(self, block: type[ApiModel]) -> dict[str, Any]:
        """Return the entry of x-kubernetes-validations for a block of this class."""
        text = f"!({' && '.join(each.cel(block) for each in self.conditions)})"
        entry: dict[str, Any] = {"rule": text, "message": self.message}
        if self.field:
            entry["fieldPath"] = f".{self.field}"
        if self.on_create:
            entry |= {"rule": f"oldSelf.hasValue() || {text}", "optionalOldSelf": True}
        return entry

    def is_broken(self, block: type[ApiModel], raw: Raw) -> bool:
        """Return whether a block of this class breaks the rule."""
        return all(each.holds(block, raw) for each in self.conditions)


def given(path: str) -> Given:
    """Return the condition that a field is set."""
    return Given(path)


def absent(path: str) -> Given:
    """Return the condition that a field is unset."""
    return Given(path, negated=True)


def is_(path: str, *values: str | bool | float) -> Is:
    """Return the condition that a field has one of the values."""
    return Is(path, values)


def is_not(path: str, *values: str | bool | float) -> Is:
    """Return the condition that a field has none of the values."""
    return Is(path, values, negated=True)


def never(block: type[ApiModel], field: str, *conditions: Condition, says: str, fix: str = "remove it") -> Rule:
    """Return the rule that the conditions must not all hold."""
    return Rule(block, field, conditions, says, fix)


def requires(block: type[ApiModel], field: str, *others: str, fix: str = "remove it") -> Rule:
    """Return the rule that a field needs one of the others."""
    return Rule(block, field, (given(field), *map(absent, others)), f"needs {' or '.join(others)}", fix)


def excludes(block: type[ApiModel], field: str, other: str) -> Rule:
    """Return the rule that two fields are not set together."""
    says = f"cannot be set together with {other}"
    return Rule(block, field, (given(field), given(other)), says, "remove one of the two")


def exactly_one(block: type[ApiModel], *paths: str) -> Rule:
    """Return the rule that exactly one of the fields is set."""
    says = f"needs exactly one of {listed(paths, 'and')}"
    return Rule(block, "", (Several(paths, none=True),), says, "set one of them")


def at_most_one(block: type[ApiModel], *paths: str) -> Rule:
    """Return the rule that at most one of the fields is set."""
    return Rule(block, "", (Several(paths),), f"takes at most one of {listed(paths, 'and')}", "keep one of them")


def at_least_one(block: type[ApiModel], *paths: str, says: str, fix: str) -> Rule:
    """Return the rule that at least one of the lists or maps isn't empty."""
    return Rule(block, "", tuple(map(Empty, paths)), says, fix)


def allowed_when(block: type[ApiModel], field: str, path: str, *values: str, fix: str = "remove it") -> Rule:
    """Return the rule that a field may be set only if another has one of the values."""
    says = f"is for {path}: {listed(values, 'or')} only"
    return Rule(block, field, (given(field), is_not(path, *values)), says, fix)


def listed(words: Iterable[str], joint: str) -> str:
    """Return words as a list in a sentence: `a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} {joint} {last}" if first else last


def _needed(rule: Rule, block: type[ApiModel]) -> frozenset[str]:
    """Return the fields that must be set for the conditions to hold."""
    conditions = (each for each in rule.conditions if isinstance(each, Given | Is) and not each.holds(block, {}))
    return frozenset(_parts(each.path)[0] for each in conditions)


class RuleTable:
    """All rules, grouped by the class of their block."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules
        self._by_block: dict[type[ApiModel], list[tuple[Rule, frozenset[str]]]] = {}

    def of(self, block: type[ApiModel]) -> list[Rule]:
        """Return the rules of a class of blocks, including those of its base classes."""
        return [rule for rule in self.rules if issubclass(block, rule.block)]

    def _with_needed(self, block: type[ApiModel]) -> list[tuple[Rule, frozenset[str]]]:
        """Return the rules of a class, each with the fields that must be set for a block to break it."""
        if block not in self._by_block:
            self._by_block[block] = [(rule, _needed(rule, block)) for rule in self.of(block)]
        return self._by_block[block]

    def errors(self, block: type[ApiModel], raw: Raw, path: str = "spec") -> Iterator[FieldError]:
        """Yield an error for each rule that a block, or a nested one, breaks."""
        for rule, needed in self._with_needed(block):
            if needed <= raw.keys() and rule.is_broken(block, raw):
                yield FieldError(f"{path}.{rule.field}" if rule.field else path, rule.message)
        for name, inner in _blocks(block):
            value = raw.get(name)
            if isinstance(value, dict):
                yield from self.errors(inner, value, f"{path}.{name}")
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    yield from self.errors(inner, item, f"{path}.{name}[{index}]")


@functools.cache
def _blocks(block: type[ApiModel]) -> list[tuple[str, type[ApiModel]]]:
    """Return the fields of a class that are blocks or lists of blocks."""
    found = ((str(info.alias), _block_in(info.annotation)) for info in block.model_fields.values())
    return [(name, inner) for name, inner in found if inner is not None]


def _classes(annotation: Any) -> list[type]:
    """Return the classes in `X`, `X | None`, `list[X]` or `Annotated[X, …]`; values of a dict are ignored."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    inner = () if get_origin(annotation) is dict else get_args(annotation)
    return [found for each in inner for found in _classes(each)]


def _block_in(annotation: Any) -> type[ApiModel] | None:
    return next((each for each in _classes(annotation) if issubclass(each, ApiModel)), None)


@functools.cache
def _infos(block: type[ApiModel], path: str) -> list[FieldInfo]:
    """Return the fields along a path below a block."""
    infos: list[FieldInfo] = []
    current: type[ApiModel] | None = block
    for name in path.split("."):
        assert current is not None, f"{block.__name__} has no {path}"  # noqa: S101 - a row of the table is wrong
        infos.append(next(info for info in current.model_fields.values() if info.alias == name))
        current = _block_in(infos[-1].annotation)
    return infos


def field_info(block: type[ApiModel], path: str) -> FieldInfo:
    """Return the field at a path below a block."""
    return _infos(block, path)[-1]


@functools.cache
def _default(block: type[ApiModel], path: str) -> str | bool | float:
    """Return the value of an unset field; an empty string, False or 0.0 if it has no default."""
    info = field_info(block, path)
    if info.is_required() or info.default is None:
        types = _classes(info.annotation)
        return False if bool in types else 0.0 if float in types else ""
    default: str | bool | float = info.default
    return default


def _cel_value(block: type[ApiModel], path: str) -> str:
    infos = _infos(block, path)
    if len(infos) == 1 and infos[0].is_required():
        return f"self.{path}"
    return f"self.?{path.replace('.', '.?')}.orValue({_literal(_default(block, path))})"


def _literal(value: str | bool | float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else str(value)


def value_at(raw: Raw, path: str) -> Any:
    """Return the value at a path below a block; None if it is unset."""
    first, *others = _parts(path)
    value = raw.get(first)
    for name in others:
        if value is None:
            return None
        value = value.get(name)
    return value


@functools.cache
def _parts(path: str) -> list[str]:
    return path.split(".")

"""Read YAML and JSON as kubectl does, so that a manifest means here what it means to the API server."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar, Final, NoReturn

import yaml
from yaml.constructor import ConstructorError
from yaml.error import Mark
from yaml.parser import ParserError
from yaml.scanner import ScannerError

_NUMBER: Final = re.compile(
    r"^[-+]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+"
    r"|(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9][0-9_]*)?|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
)
_BOOLEAN: Final = re.compile(r"^(y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_WHOLE: Final = 1e21
"""Below this limit kubectl's JSON writes a whole number without an exponent: 1e3 is an integer to the API server."""
_TAG: Final = "tag:yaml.org,2002:"
_OWN: Final = frozenset(f"{_TAG}{name}" for name in ("bool", "int", "float", "timestamp", "value"))
"""Types that PyYAML and kubectl resolve differently: 1e-4 is a string in PyYAML, 12:30 and 2026-11-28 in kubectl."""
_SEPARATOR: Final = re.compile(r"^---(.*)$", re.MULTILINE)
_NOT_ALONE: Final = "kubectl takes nothing but a comment behind ---: write the document on the lines below it"
_DIRECTIVE: Final = "kubectl takes no line such as %YAML 1.2: take it away"


def documents_of(text: str) -> Iterator[Any]:
    """Yield the documents of a text: concatenated JSON if it begins with a brace, else YAML.

    Raises JSONDecodeError or YAMLError.
    """
    yield from _of_json(text) if text.lstrip().startswith("{") else _of_yaml(text)


def _of_yaml(text: str) -> Iterator[Any]:
    begin = 0
    for end, behind in [*((found.start(), found[1]) for found in _SEPARATOR.finditer(text)), (len(text), "")]:
        # Errors name lines of the complete text. Nothing after `...` is read.
        yield from islice(yaml.load_all("\n" * text.count("\n", 0, begin) + text[begin:end], KubectlLoader), 1)
        if behind.strip() and not behind.lstrip().startswith("#"):
            raise ParserError(None, None, _NOT_ALONE, Mark("the manifest", end, text.count("\n", 0, end), 0, None, 0))
        begin = end + len("---") + len(behind)


def _of_json(text: str) -> Iterator[Any]:
    at = _next(text, 0)
    while at < len(text):
        try:
            document, end = _JSON.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # an invalid number, whose error has no position
            raise json.JSONDecodeError(str(error), text, at) from error
        yield document
        at = _next(text, end)


def _next(text: str, at: int) -> int:
    """Return the index of the next character that is not whitespace."""
    return len(text) - len(text[at:].lstrip())


class KubectlLoader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as kubectl does; PyYAML would read a string."""

    # Final for its stubs alone.
    ESCAPE_REPLACEMENTS: ClassVar = {  # type: ignore[misc]
        letter: text for letter, text in yaml.SafeLoader.ESCAPE_REPLACEMENTS.items() if letter != "/"
    }

    def scan_to_next_token(self) -> None:
        """Skip tabs too, except for those that would indent."""
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    def fetch_directive(self) -> None:
        """Reject directives: kubectl splits the text at --- first, which separates a directive from its document."""
        raise ScannerError(None, None, _DIRECTIVE, self.get_mark())

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Let a later anchor of the same name replace an earlier one."""
        if not self.check_event(yaml.AliasEvent):
            self.anchors.pop(self.peek_event().anchor, None)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    _merging: tuple[yaml.Node, ...] = ()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names at its position: later keys win. In PyYAML, merged keys never win."""
        if node in self._merging:
            raise ConstructorError(None, None, "a mapping is merged into itself", node.start_mark)
        above, self._merging = self._merging, (*self._merging, node)
        pairs: dict[yaml.Node, yaml.Node] = {}
        for key, value in node.value:
            if key.tag == f"{_TAG}null":
                raise ConstructorError(None, None, "a key is a text: write ~ or null in quotes", key.start_mark)
            found = self._merged(value) if key.tag == f"{_TAG}merge" else [(key, value)]
            for name, item in found:
                pairs.pop(name, None)  # a key that is merged twice has its last position
                pairs[name] = item
        node.value, self._merging = list(pairs.items()), above

    def _merged(self, node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Yield the fields to merge; in a list of mappings the first one wins."""
        for each in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(each, yaml.MappingNode):
                raise ConstructorError(None, None, "<< takes a mapping or a list of mappings", each.start_mark)
            self.flatten_mapping(each)
            yield from each.value


def _number(loader: KubectlLoader, node: yaml.ScalarNode) -> int | float | str:
    written = str(loader.construct_scalar(node))
    text = written.replace("_", "").lower()
    if text.endswith((".inf", ".nan")):
        raise ConstructorError(None, None, f"{written} is no number that JSON has", node.start_mark)
    try:
        whole = int(text, 8 if re.fullmatch(r"[-+]?0[0-7]+", text) else 0)
    except ValueError:
        return _float(written, text)
    if -(2**63) <= whole < 2**64:
        return whole
    return _float(written, text) if re.fullmatch("[-+]?[0-9]+", text) else written  # such as 0x10000000000000000


def _float(written: str, text: str) -> int | float | str:
    value = float(text)
    return _plain(value) if math.isfinite(value) else written  # such as 1e999


def _plain(value: float) -> int | float:
    return int(value) if abs(value) < _WHOLE and value.is_integer() else value


def _number_of_json(text: str) -> int | float:
    value = float(text)
    return _plain(value) if math.isfinite(value) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that an API server takes")


def _without_tag(loader: KubectlLoader, node: yaml.Node) -> Any:
    """Return a node with a tag that kubectl ignores: a string, a list or a mapping, as it is written."""
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    return loader.construct_yaml_seq(node) if isinstance(node, yaml.SequenceNode) else loader.construct_yaml_map(node)


def _binary(loader: KubectlLoader, node: yaml.ScalarNode) -> str:
    return loader.construct_yaml_binary(node).decode("utf-8", "replace")


def _boolean(loader: KubectlLoader, node: yaml.ScalarNode) -> bool:
    return str(loader.construct_scalar(node)).lower() in ("y", "yes", "true", "on")


def _resolvers() -> dict[str, list[tuple[str, Any]]]:
    """Return PyYAML's resolvers without the types that kubectl resolves differently."""
    known = yaml.SafeLoader.yaml_implicit_resolvers.items()
    return {letter: [(tag, form) for tag, form in forms if tag not in _OWN] for letter, forms in known}


KubectlLoader.yaml_implicit_resolvers = _resolvers()
KubectlLoader.add_implicit_resolver(f"{_TAG}float", _NUMBER, list("-+.0123456789"))
KubectlLoader.add_implicit_resolver(f"{_TAG}bool", _BOOLEAN, list("yYnNtTfFoO"))
KubectlLoader.add_constructor(f"{_TAG}float", _number)
KubectlLoader.add_constructor(f"{_TAG}bool", _boolean)
KubectlLoader.add_constructor(f"{_TAG}binary", _binary)
for _tag in (None, f"{_TAG}set", f"{_TAG}omap", f"{_TAG}pairs"):
    KubectlLoader.add_constructor(_tag, _without_tag)
_JSON: Final = json.JSONDecoder(parse_float=_number_of_json, parse_constant=_refuse)

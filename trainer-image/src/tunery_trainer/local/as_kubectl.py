"""YAML and JSON as kubectl reads them: whoever reads a manifest here takes it for what the API server would be sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import yaml
from yaml.constructor import ConstructorError

_NUMBER: Final = re.compile(
    r"^[-+]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+"
    r"|(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9][0-9_]*)?|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
)
_BOOLEAN: Final = re.compile(r"^(y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_WHOLE: Final = 1e21
"""Below it a whole number has no exponent in kubectl's JSON: the API server takes 1e3 for an integer."""
_TAG: Final = "tag:yaml.org,2002:"
_OWN: Final = frozenset(f"{_TAG}{name}" for name in ("bool", "int", "float", "timestamp", "value"))
"""What PyYAML and kubectl tell apart differently: 1e-4 and y are texts for PyYAML, 12:30 and 2026-11-28 for kubectl."""


def documents_of(text: str) -> Iterator[Any]:
    """Yield the documents of a text: JSON, one behind the other, where it begins with a brace, and YAML else.

    Raises JSONDecodeError or YAMLError.
    """
    if not text.lstrip().startswith("{"):
        yield from yaml.load_all(text, KubectlLoader)
        return
    at = _next(text, 0)
    while at < len(text):
        document, end = _JSON.raw_decode(text, at)
        yield document
        at = _next(text, end)


def _next(text: str, at: int) -> int:
    """Return where the next thing begins that is no space."""
    return len(text) - len(text[at:].lstrip())


class KubectlLoader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as kubectl does, and the API server then refuses it: PyYAML would take it for a text."""

    def scan_to_next_token(self) -> None:
        """Pass over tabs, too, but for those that would indent."""
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    _merging: tuple[yaml.Node, ...] = ()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what `<<` names where it stands: what comes later wins, for PyYAML what is merged never does."""
        if node in self._merging:
            raise ConstructorError(None, None, "a mapping is merged into itself", node.start_mark)
        above, self._merging = self._merging, (*self._merging, node)
        pairs: dict[yaml.Node, yaml.Node] = {}
        for key, value in node.value:
            found = self._merged(value) if key.tag == f"{_TAG}merge" else [(key, value)]
            for name, item in found:
                pairs.pop(name, None)  # one that is merged twice stands where it is merged last
                pairs[name] = item
        node.value, self._merging = list(pairs.items()), above

    def _merged(self, node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Yield the fields to merge; of a list of mappings the first one wins."""
        for each in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(each, yaml.MappingNode):
                raise ConstructorError(None, None, "<< takes a mapping or a list of mappings", each.start_mark)
            self.flatten_mapping(each)
            yield from each.value


def _number(loader: KubectlLoader, node: yaml.ScalarNode) -> int | float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    try:
        return int(text, 8 if re.fullmatch(r"[-+]?0[0-7]+", text) else 0)
    except ValueError:
        return _number_of(text.replace(".inf", "inf").replace(".nan", "nan"))


def _number_of(text: str) -> int | float:
    value = float(text)
    return int(value) if abs(value) < _WHOLE and value.is_integer() else value


def _boolean(loader: KubectlLoader, node: yaml.ScalarNode) -> bool:
    return str(loader.construct_scalar(node)).lower() in ("y", "yes", "true", "on")


def _resolvers() -> dict[str, list[tuple[str, Any]]]:
    """Return PyYAML's own without those that kubectl has others for."""
    known = yaml.SafeLoader.yaml_implicit_resolvers.items()
    return {letter: [(tag, form) for tag, form in forms if tag not in _OWN] for letter, forms in known}


KubectlLoader.yaml_implicit_resolvers = _resolvers()
KubectlLoader.add_implicit_resolver(f"{_TAG}float", _NUMBER, list("-+.0123456789"))
KubectlLoader.add_implicit_resolver(f"{_TAG}bool", _BOOLEAN, list("yYnNtTfFoO"))
KubectlLoader.add_constructor(f"{_TAG}float", _number)
KubectlLoader.add_constructor(f"{_TAG}bool", _boolean)
_JSON: Final = json.JSONDecoder(parse_float=_number_of)

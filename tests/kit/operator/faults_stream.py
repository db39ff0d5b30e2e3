"""What a fault makes of the lines of a watch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from kit.operator.faults import Break, Call, Duplicate, End, ErrorEvent, Fault, Garbage, Hold, Rule, Swallow, Swap


class StreamEnds(Exception):
    """The watch ends here; `partial` still goes out, and `abrupt` says how the connection is closed."""

    def __init__(self, partial: bytes = b"", *, abrupt: bool = False) -> None:
        self.partial = partial
        self.abrupt = abrupt
        super().__init__("the watch ends")


class Stream:
    """One open watch."""

    def __init__(self, call: Call, rules: Callable[[], list[Rule]]) -> None:
        self.call = call
        self._rules = rules
        self._kept: list[bytes] = []
        """Lines that wait: for their successor (Swap) or for the fault to be lifted (Hold)."""
        self.dropped = False
        self.silent = False
        """Whether nothing arrives any more, though the connection stands."""

    def lines(self, line: bytes) -> Iterator[bytes]:
        """Yield what goes out for a line that came in; raises StreamEnds."""
        if self.silent:
            return
        rule = next((rule for rule in self._rules() if self._concerns(rule, line)), None)
        if rule is None or not rule.count():
            yield from self.rest()
            yield line
            return
        yield from self._struck(rule.fault, line)

    def _concerns(self, rule: Rule, line: bytes) -> bool:
        if not rule.active or not rule.of_streams or rule.verb != "watch" or rule.resource != self.call.resource:
            return False
        if rule.namespace is not None:
            return rule.namespace == _meta(line).get("namespace")
        # A bookmark that overtakes what is held back would make a later watch begin too late.
        return isinstance(rule.fault, Swallow | Hold) or not _is_bookmark(line)

    def _struck(self, fault: Fault, line: bytes) -> Iterator[bytes]:
        match fault:
            case Break():
                raise StreamEnds(line[: len(line) // 2], abrupt=True)
            case End():
                raise StreamEnds()
            case ErrorEvent():
                raise StreamEnds(fault.line())
            case Garbage():
                yield b"}{ this is no JSON\n"
                yield line
            case Duplicate():
                yield line
                yield line
            case Hold():
                self._kept.append(line)
            case Swap():
                yield from self._swapped(fault, line)

    def _swapped(self, fault: Swap, line: bytes) -> Iterator[bytes]:
        if not self._kept:
            self._kept.append(line)
            return
        same = _meta(self._kept[0]).get("uid") == _meta(line).get("uid")
        yield line
        if same is fault.same_object:
            yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """Yield what was kept back."""
        while self._kept:
            yield self._kept.pop(0)

    def due(self) -> bool:
        """Tell whether something is kept back that no fault holds any more."""
        return bool(self._kept) and not any(
            rule.active and rule.of_streams and rule.resource == self.call.resource for rule in self._rules()
        )


def _meta(line: bytes) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads(line)["object"]["metadata"]
    except (ValueError, KeyError, TypeError):
        return {}
    return meta


def _is_bookmark(line: bytes) -> bool:
    return line.startswith(b'{"type":"BOOKMARK"')

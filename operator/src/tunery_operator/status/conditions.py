"""The conditions of one object: set by type, and dated only when their status flips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from tunery_api.scrub import CUT, scrub, shorten
from tunery_api.status import ConditionStatus, ConditionType
from tunery_operator.observed.metadata import format_time

_SHORT: Final = 160
"""Bytes of a message that may stand in several conditions."""


class Conditions:
    """The conditions of a status while it is being computed."""

    def __init__(
        self, old: Iterable[Mapping[str, Any]], generation: int, now: datetime, types: type[StrEnum] = ConditionType
    ) -> None:
        self._order = {type_.value: index for index, type_ in enumerate(types)}
        self._by_type: dict[str, dict[str, Any]] = {c["type"]: dict(c) for c in old}
        self._generation = generation
        self._now = format_time(now)

    def set(self, type_: StrEnum, status: bool | None, reason: str, message: str = "") -> None:
        """Set a condition to True, False or (None) Unknown."""
        value = _STATUS[status].value
        old = self._by_type.get(type_.value)
        flipped = old is None or old["status"] != value
        condition = {
            "type": type_.value,
            "status": value,
            "reason": reason,
            "lastTransitionTime": self._now if flipped or old is None else old["lastTransitionTime"],
            "observedGeneration": self._generation,
        }
        if message:
            condition["message"] = scrub(message)
        self._by_type[type_.value] = condition

    def abridge(self, message: str, told_by: StrEnum) -> None:
        """Cut a long message short in every condition but the one that has the most of it."""
        whole = scrub(message)
        if len(whole.encode()) <= _SHORT:
            return
        much = "more" if whole.endswith(CUT) else "all"
        short = f"{shorten(whole, _SHORT)} (condition {told_by} has {much} of it)"
        for type_, condition in self._by_type.items():
            if type_ != told_by.value and condition.get("message") == whole:
                condition["message"] = short

    def status(self, type_: StrEnum) -> str | None:
        """Return True, False or Unknown as a string, or None where the condition is not set."""
        condition = self._by_type.get(type_.value)
        return condition["status"] if condition else None

    def is_true(self, type_: StrEnum) -> bool:
        """Tell whether the condition is True."""
        return self.status(type_) == ConditionStatus.TRUE.value

    def is_false(self, type_: StrEnum) -> bool:
        """Tell whether the condition is False."""
        return self.status(type_) == ConditionStatus.FALSE.value

    def reason(self, type_: StrEnum) -> str | None:
        """Return the reason of a condition, or None where it is not set."""
        condition = self._by_type.get(type_.value)
        return condition["reason"] if condition else None

    def message(self, type_: StrEnum) -> str:
        """Return the message of a condition; empty where it has none, or is not set."""
        message: str = self._by_type.get(type_.value, {}).get("message", "")
        return message

    def drop(self, type_: StrEnum) -> None:
        """Take a condition away: nothing is to be said of it any more."""
        self._by_type.pop(type_.value, None)

    def confirm(self) -> None:
        """Say of every condition that it holds of this generation, also of those that were not set anew.

        Who waits for one (kubectl wait) waits until it is of the newest. Those of a later version are left alone.
        """
        for type_, condition in self._by_type.items():
            if type_ in self._order:
                self._by_type[type_] = {**condition, "observedGeneration": self._generation}

    def to_list(self) -> list[dict[str, Any]]:
        """Return the conditions in the order of their types; those of a later version come last."""
        return sorted(self._by_type.values(), key=lambda c: (self._order.get(c["type"], len(self._order)), c["type"]))


_STATUS = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}

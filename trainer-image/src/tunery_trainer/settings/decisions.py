"""The record of a spec being decided: each setting, and whether manifest, preset or rule gave it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from tunery_api.fields import ApiModel, decimal_text
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import Method, PresetValues
from tunery_api.status import ResolvedValue
from tunery_trainer.settings.types import SettingSource

_MAX_TEXT: Final = 256
"""Longest value that status.resolved.values takes."""
T = TypeVar("T")


@dataclass(frozen=True)
class Fallback(Generic[T]):
    """What is taken where neither manifest nor preset says it."""

    value: T
    source: SettingSource
    """A rule or a default."""


@dataclass
class Decisions:
    """The spec being decided, and the record of where each value came from."""

    spec: LoRAJobSpec
    method: Method
    preset: PresetValues | None
    values: list[ResolvedValue] = field(default_factory=list)

    def note(self, name: str, value: Any, source: SettingSource) -> None:
        """Record a value; a number of the manifest to its last digit, one that was computed as a person reads it."""
        exact = source is SettingSource.MANIFEST and isinstance(value, float)
        text = text_of(decimal_text(value) if exact else value)
        self.values.append(ResolvedValue(name=name, value=text, source=source.value))

    def explain(self, reason: str | None) -> None:
        """Record why the value that was recorded last is what it is."""
        self.values[-1] = self.values[-1].model_copy(update={"reason": reason})

    def pick(self, name: str, manifest: T | None, preset: T | None, otherwise: Fallback[T]) -> T:
        """Return the first of manifest, preset and `otherwise` that is there, and record which it was."""
        value, source = otherwise.value, otherwise.source
        if manifest is not None:
            value, source = manifest, SettingSource.MANIFEST
        elif preset is not None:
            value, source = preset, SettingSource.PRESET
        self.note(name, value, source)
        return value

    def plain(self, block: ApiModel, prefix: str, name: str) -> Any:
        """Return a field whose default stands in the schema, and record whether the manifest set it."""
        alias = type(block).model_fields[name].alias or name
        value = getattr(block, name)
        self.note(
            f"{prefix}.{alias}",
            value,
            SettingSource.MANIFEST if name in block.model_fields_set else SettingSource.DEFAULT,
        )
        return value


def text_of(value: Any) -> str:
    """Return a value as status.resolved.values shows it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        value = ", ".join(value)
    text = f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"

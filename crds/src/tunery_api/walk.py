"""Every field of a spec with its path, and a spec with every field changed: whoever looks for one kind of field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Model = TypeVar("Model", bound=BaseModel)


class Field(NamedTuple):
    """One field of a model, or one entry of a field that is a list."""

    path: str
    """As in the manifest: `spec.adapters[0].uri`."""
    name: str
    """As in Python."""
    value: Any
    info: FieldInfo
    """What the model says of it."""


def fields(model: BaseModel, path: str) -> Iterator[Field]:
    """Yield every field of a model that stands at `path`, and after each block what is inside."""
    for name, info in type(model).model_fields.items():
        for at, value in _items(getattr(model, name), f"{path}.{info.alias or name}"):
            yield Field(at, name, value, info)
            if isinstance(value, BaseModel):
                yield from fields(value, at)


def _items(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    return [(path, value)]


def with_fields(model: Model, change: Callable[[str, Any], Any]) -> Model:
    """Return a copy of a model in which each field that is set holds `change(name, value)`, inner models' too."""
    return model.model_copy(
        update={name: _changed(name, getattr(model, name), change) for name in model.model_fields_set}
    )


def _changed(name: str, value: Any, change: Callable[[str, Any], Any]) -> Any:
    if isinstance(value, BaseModel):
        return with_fields(value, change)
    if isinstance(value, list):
        return [_changed(name, item, change) for item in value]
    return change(name, value)

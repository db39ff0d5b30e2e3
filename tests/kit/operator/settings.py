"""Provide the operator's settings for tests, by the names of the chart's values."""

from __future__ import annotations

from typing import Any

from tunery_operator.config import Settings

Json = dict[str, Any]
_BASE: Json = {
    "operator": {"logging": {"format": "text"}},
    "trainer": {"image": "example/trainer:1"},
    "serving": {"server": {"image": "example/server:1"}, "engine": {"image": "example/engine:1"}},
}


def values(**sections: Any) -> Json:
    """Return the values of a platform with three images, with sections laid over them."""
    return _merged(_BASE, sections)


def settings(**sections: Any) -> Settings:
    """Return the settings that these values make."""
    return Settings.model_validate(values(**sections))


def _merged(below: Json, above: Json) -> Json:
    both = {name: _merged(below[name], above[name]) for name in below if isinstance(above.get(name), dict)}
    return below | above | both

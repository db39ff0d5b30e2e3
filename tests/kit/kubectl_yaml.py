"""Read YAML as kubectl does: `2e-3` is a number, which PyYAML's own loaders read as a string."""

from __future__ import annotations

from typing import Any

import yaml

from tunery_api.kubectl_yaml import KubectlLoader


def load(text: str) -> Any:
    """Return the only document of a text."""
    return yaml.load(text, KubectlLoader)


def load_all(text: str) -> list[Any]:
    """Return the documents of a text."""
    return list(yaml.load_all(text, KubectlLoader))

"""A tiny model once, and a folder with manifest, model and data for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.stories.tiny import make_model, make_rows, manifest, write_manifest, write_rows

Case = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def case(tmp_path: Path, tiny_model: Path) -> Case:
    """Writes a manifest with the given changes beside model and data, and gives its path back."""
    (tmp_path / "model").symlink_to(tiny_model)
    write_rows(tmp_path / "data.jsonl", make_rows())

    def write(**changes: Any) -> Path:
        return write_manifest(tmp_path, manifest(tmp_path, **changes))

    return write

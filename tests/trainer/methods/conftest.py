"""The tiny models, each written once a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

from trainer.methods.families import write_family


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a family's model."""
    folders: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in folders:
            folders[family] = write_family(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder_of


@pytest.fixture(scope="session")
def llama(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order: with two threads PiSSA's rounding was seen to differ by 2e-5 between runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

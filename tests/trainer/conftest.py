"""What the trainer's tests share: tiny models, a manifest beside its model and data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

os.environ["HF_HUB_OFFLINE"] = "1"

from tunery_trainer.model import memory

from kit.counted_once import Count, counted_once
from kit.story import Case, Write, make_rows, manifest, write_manifest, write_rows
from kit.tiny_models import CHATML, build_tokenizer, write_chat_model, write_family


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order: with two threads PiSSA's rounding was seen to differ by 2e-5 between runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def remembering() -> Count:
    """What counts a pass of an estimate, each once a session."""
    return counted_once(memory.count)


@pytest.fixture(autouse=True)
def estimates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, remembering: Count) -> None:
    """Whoever does not test estimates themselves has each counted once."""
    if not request.path.is_relative_to(Path(__file__).parent / "model"):
        monkeypatch.setattr(memory, "count", remembering)


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a family's model, written once a session."""
    folders: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in folders:
            folders[family] = write_family(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder_of


@pytest.fixture(scope="session")
def llama(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama that chats."""
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """With ChatML as its own chat template and `<|im_end|>` as its end of sequence."""
    return build_tokenizer(CHATML)


@pytest.fixture
def case(tmp_path: Path, tiny_model: Path) -> Case:
    """Writes a manifest with the given changes beside model and data, and gives its path back."""
    (tmp_path / "model").symlink_to(tiny_model)
    write_rows(tmp_path / "data.jsonl", make_rows())

    def write(**changes: Any) -> Path:
        return write_manifest(tmp_path, manifest(tmp_path, **changes))

    return write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows (objects, or raw lines as strings) as a .jsonl file and gives its path back."""

    def write_rows(name: str, rows: Sequence[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write_rows

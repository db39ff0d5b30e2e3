"""Inputs come from a hub, too: a local one. Models are tiny."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.tiny_models import write_chat_model, write_family


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client speak to the local hub: other tests of the session switch it off for good."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama."""
    return write_family(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama that chats."""
    return write_chat_model(tmp_path_factory.mktemp("model"))

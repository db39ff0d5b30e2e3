"""What the tests of serving share: a tiny base that vLLM can run too, its adapters, good and bad, and the engines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from kit.engine_adapters import BASE, MAX_HELD, MAX_LORAS, MAX_RANK, Shelf
from kit.engine_process import EngineProcess, Kind
from kit.tiny_models import write_chat_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama that chats; vLLM's attention on CPUs has no heads narrower than 32."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return write_chat_model(tmp_path_factory.mktemp("base"), initializer_range=0.1, **heads)


@pytest.fixture(scope="session")
def shelf(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(base, tmp_path_factory.mktemp("adapters"))


def kinds() -> list[Kind]:
    """Return the engines that the contract is tested on: vLLM too where TUNERY_ENGINE says so."""
    return [Kind.STAND_IN, *([Kind.VLLM] if os.environ.get("TUNERY_ENGINE") == "vllm" else [])]


@pytest.fixture(scope="session", params=kinds())
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def made(kind: Kind, base: Path, folder: Path, **more: str) -> EngineProcess:
    """Return an engine that is not started yet."""
    options = [
        *(str(base), "--served-model-name", BASE, "--dtype", "float32", "--max-model-len", "512"),
        *("--enable-lora", "--max-loras", str(MAX_LORAS), "--max-cpu-loras", str(MAX_HELD)),
        *("--max-lora-rank", str(MAX_RANK), "--api-server-count", "1", "--disable-fastapi-docs"),
        *("--shutdown-timeout", "30"),
    ]
    return EngineProcess(kind, folder, options, more)


@pytest.fixture(scope="session")
def engine(kind: Kind, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine that tests share: each loads adapters under names of its own."""
    found = made(kind, base, tmp_path_factory.mktemp("engine")).start()
    yield found
    found.kill()


@pytest.fixture
def new_engine(kind: Kind, base: Path, tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Returns an engine of the test's own that is not started yet."""
    engines: list[EngineProcess] = []

    def make(**more: str) -> EngineProcess:
        engines.append(made(kind, base, tmp_path, **more))
        return engines[-1]

    yield make
    for one in engines:
        one.kill()

"""Which failures of loading weights are the model's, and which the machine's."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers.core_model_loading as loader
from bitsandbytes.nn.modules import Params4bit
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.model.load import load_base
from tunery_trainer.process.failures import explain

from kit.training import resolved_for

NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


@pytest.fixture
def folder(tmp_path: Path, llama: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "model")


def failure(folder: Path, **blocks: Any) -> TuneryError:
    """Return what the user is told where the model in `folder` is loaded."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any, as the program takes any)
        load_base(folder, resolved_for(folder, {"method": "LoRA"} | blocks), "cpu")
    return explain(caught.value)


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 160}))
    found = failure(folder)
    assert found.reason is FailureReason.MODEL_UNSUPPORTED
    assert "down_proj.weight is [64, 96] in the files and [64, 160] by config.json" in found.message


def test_a_tensor_that_is_missing_is_named_and_never_drawn_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = failure(folder)
    assert found.reason is FailureReason.MODEL_UNSUPPORTED
    assert "the files lack model.layers.1.self_attn.q_proj.weight, which config.json asks for" in found.message


def test_a_type_that_nobody_knows_is_the_models(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"F32"', b'"X32"'))
    found = failure(folder)
    assert found.reason is FailureReason.MODEL_UNSUPPORTED
    assert "unknown variant `X32`" in found.message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(NO_MEMORY), FailureReason.OUT_OF_MEMORY),
        (MemoryError(), FailureReason.OUT_OF_MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), FailureReason.OUT_OF_MEMORY),
        (SafetensorError("Error: Cannot allocate memory (os error 12)"), FailureReason.OUT_OF_MEMORY),
        (OSError(errno.EIO, "Input/output error"), FailureReason.STORAGE_UNAVAILABLE),
        (SafetensorError("Input/output error (os error 5)"), FailureReason.STORAGE_UNAVAILABLE),
        (PermissionError(errno.EACCES, "Permission denied"), FailureReason.STORAGE_ACCESS_DENIED),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), FailureReason.MODEL_NOT_FOUND),
        (SafetensorError("Too many levels of symbolic links (os error 40)"), FailureReason.MODEL_NOT_FOUND),
        (RuntimeError("can't start new thread"), FailureReason.INTERNAL_ERROR),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), FailureReason.GPU_FAULT),
        (RuntimeError("shape '[3, 5]' is invalid for input of size 16"), FailureReason.MODEL_UNSUPPORTED),
        (SafetensorError("Error while deserializing header: header too large"), FailureReason.MODEL_UNSUPPORTED),
    ],
)
def test_what_the_loader_raises_is_what_it_says(folder: Path, error: BaseException, reason: FailureReason) -> None:
    with patch.object(loader, "_materialize_copy", failing(error)):
        assert failure(folder).reason is reason


@pytest.mark.slow(only=["error3-ModelUnsupported"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(NO_MEMORY), FailureReason.OUT_OF_MEMORY),
        (MemoryError(), FailureReason.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), FailureReason.GPU_OUT_OF_MEMORY),
        (ValueError("blocksize 63 is not supported"), FailureReason.MODEL_UNSUPPORTED),
    ],
)
def test_what_ends_a_quantisation_is_told_though_transformers_hides_it(
    folder: Path, error: BaseException, reason: FailureReason
) -> None:
    with patch.object(Params4bit, "_quantize", failing(error)):
        found = failure(folder, method="QLoRA")
    assert found.reason is reason
    if reason is FailureReason.MODEL_UNSUPPORTED:
        assert "blocksize 63 is not supported" in found.message

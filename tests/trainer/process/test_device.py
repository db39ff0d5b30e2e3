"""A GPU that is not there, that fails, or that is too small: each has its reason and its retry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.reasons import ExitCode, FailureReason, exit_code_for
from tunery_api.runspec import RunResult
from tunery_trainer.model import load as model
from tunery_trainer.model.load import load_base
from tunery_trainer.process.device import device_facts
from tunery_trainer.process.failures import explain
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import DeviceFacts, DeviceKind

from kit.story import Case, manifest, run_here

MEMORY, UNAVAILABLE, FAULT, BUG = (
    FailureReason.GPU_OUT_OF_MEMORY,
    FailureReason.GPU_UNAVAILABLE,
    FailureReason.GPU_FAULT,
    FailureReason.INTERNAL_ERROR,
)
FAULTS = [
    ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB", MEMORY),
    ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", MEMORY),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", MEMORY),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", MEMORY),
    ("Triton Error [CUDA]: out of memory", MEMORY),
    ("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", UNAVAILABLE),
    ("The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver", UNAVAILABLE),
    ("No CUDA GPUs are available", UNAVAILABLE),
    ("CUDA unknown error - this may be due to an incorrectly set up environment", UNAVAILABLE),
    ("CUDA error: all CUDA-capable devices are busy or unavailable", UNAVAILABLE),
    ("CUDA error: no kernel image is available for execution on the device", UNAVAILABLE),
    ("CUDA error: system not yet initialized", UNAVAILABLE),
    ("Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display driver", UNAVAILABLE),
    ("CUDA driver version is insufficient for CUDA runtime version", UNAVAILABLE),
    ("Torch not compiled with CUDA enabled", UNAVAILABLE),
    ("CUDA error: uncorrectable ECC error encountered", FAULT),
    ("CUDA error: an illegal memory access was encountered", FAULT),
    ("CUDA error: unspecified launch failure", FAULT),
    ("CUDA error: the launch timed out and was terminated", FAULT),
    ("CUDA error: misaligned address", FAULT),
    ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`", FAULT),
    ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", FAULT),
    ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", FAULT),
    ("Triton Error [CUDA]: an illegal memory access was encountered", FAULT),
    ("CUDA error: device-side assert triggered", BUG),
    ("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(...)`", BUG),
    ("Failed to find C compiler. Please specify via CC environment variable", BUG),
    ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", BUG),
]


@pytest.mark.parametrize(("text", "reason"), FAULTS)
def test_a_fault_has_its_reason_and_its_retry(text: str, reason: FailureReason) -> None:
    failure = explain(RuntimeError(text))
    assert failure.reason is reason
    assert text.splitlines()[0] in failure.message
    retried = failure.exit_code in (ExitCode.RETRYABLE, ExitCode.BUG)
    assert retried is (reason is not MEMORY)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_torchs_own_types_are_of_the_gpu_whatever_they_say(kind: type[RuntimeError]) -> None:
    expected = MEMORY if kind is torch.OutOfMemoryError else FAULT
    assert explain(kind("something that no version has said yet")).reason is expected


def test_a_gpu_that_fails_while_the_model_is_loaded_does_not_blame_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")

    facts = model.model_facts(tiny_model)
    spec = LoRAJobSpec.model_validate(manifest(tmp_path)["spec"])
    device = DeviceFacts(DeviceKind.CPU, None, bfloat16=False)
    resolved = resolve(spec, facts, device, method_choices(spec, 100, device)[0])
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", failing)
    with pytest.raises(torch.AcceleratorError) as caught:
        load_base(tiny_model, resolved, "cpu")
    assert explain(caught.value).reason is FAULT


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_pod_that_holds_a_gpu_never_trains_on_the_cpu(case: Case) -> None:
    """The real thing: a CUDA build of torch on a machine without a driver."""
    path = case(resources={"gpus": 1})
    folder, message = path.parent, path.parent / "termination"
    spec = manifest(folder)["spec"] | {"resources": {"gpus": 1}}
    run = {
        "identity": {"kind": "LoRAJob", "namespace": "team", "name": "tiny", "uid": "u-1"},
        "loraJob": spec,
        "outputUri": spec["output"]["uri"],
        "workDir": str(folder / "work"),
    }
    (folder / "run.json").write_text(json.dumps(run))
    done = run_here("train", folder / "run.json", TUNERY_TERMINATION_PATH=str(message))
    assert done.returncode == exit_code_for(UNAVAILABLE) == ExitCode.RETRYABLE, done.stderr
    failure = RunResult.model_validate_json(message.read_text()).failure
    assert failure is not None
    assert failure.reason == UNAVAILABLE
    assert "Found no NVIDIA driver" in failure.message
    assert "nvidia-smi is not in the container" in failure.message
    assert "Training" not in done.stdout


def test_what_the_platform_tells_never_exceeds_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 40 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert device_facts(80 * 2**30).memory_bytes == 40 * 2**30
    assert device_facts(20 * 2**30).memory_bytes == 20 * 2**30
    assert device_facts(None).memory_bytes == 40 * 2**30

"""A GPU that is not there, that fails, or that is too small: each has its reason and its retry."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.reasons import ExitCode, FailureReason, exit_code_for
from tunery_api.runspec import RunResult
from tunery_common.errors import TuneryError
from tunery_trainer.model import load as model
from tunery_trainer.model.load import load_base
from tunery_trainer.process import device
from tunery_trainer.process.device import device_facts
from tunery_trainer.process.failures import explain
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import DeviceFacts, DeviceKind

from kit.projects import ROOT
from kit.story import manifest, run_here

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
    ("CUDA unknown error - this may be due to an incorrectly set up environment", FAULT),
    ("CUDA error: all CUDA-capable devices are busy or unavailable", FAULT),
    ("CUDA-capable device(s) is/are busy or unavailable", FAULT),
    ("CUDA error: no kernel image is available for execution on the device", UNAVAILABLE),
    ("no CUDA-capable device is detected", UNAVAILABLE),
    ("CUDA error: system not yet initialized", FAULT),
    ("CUDA error: MPS client failed to connect to the MPS control daemon or the MPS server", FAULT),
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
    assert retried is (reason in (FAULT, BUG))


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
    cpu = DeviceFacts(DeviceKind.CPU, None, bfloat16=False)
    resolved = resolve(spec, facts, cpu, method_choices(spec, 100, cpu)[0])
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", failing)
    with pytest.raises(torch.AcceleratorError) as caught:
        load_base(tiny_model, resolved, "cpu")
    assert explain(caught.value).reason is FAULT


def run_of(folder: Path, task: str, resources: dict[str, Any]) -> dict[str, Any]:
    """Return the run.json of a LoRAJob or an AdapterMerge; nothing that it names is there but the output."""
    nowhere = {"uri": f"file://{folder}/nowhere"}
    common = {"output": {"uri": f"file://{folder}/out"}, "resources": resources}
    train = manifest(folder, model=nowhere, dataset=nowhere)["spec"] | common
    merge = common | {"adapters": [nowhere | {"uri": f"{nowhere['uri']}-{one}"} for one in "ab"]}
    kind, spec = ("LoRAJob", {"loraJob": train}) if task == "train" else ("AdapterMerge", {"adapterMerge": merge})
    return {
        "identity": {"kind": kind, "namespace": "team", "name": "tiny", "uid": "u-1"},
        **spec,
        "adapters": [{"uri": one["uri"]} for one in merge["adapters"]] if task == "merge" else [],
        "outputUri": common["output"]["uri"],
        "workDir": str(folder / "work"),
    }


NODES = {
    "no driver": (None, None, "driver found: none"),
    "a driver that is too old": ("550.54.15", "NVIDIA A100-SXM4-40GB, 550.54.15, 40960 MiB", "driver found: 550.54.15"),
    "no runtime": ("580.95.05", None, "driver found: 580.95.05"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("task", ["train", "merge"])
@pytest.mark.parametrize("node", NODES)
def test_a_pod_that_holds_a_gpu_never_goes_on_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, node: str
) -> None:
    """The real thing: a CUDA build of torch on a machine without a driver; what the node says of one is put there."""
    module, smi, found = NODES[node]
    proc, program = tmp_path / "version", tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    if module:
        proc.write_text(
            f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {module}  Tue Mar  5 22:23:56 UTC 2024\nGCC 12.3\n"
        )
    if smi:
        program.write_text(f"#!/bin/sh\necho {smi}\n")
        program.chmod(0o755)
    monkeypatch.setattr(device, "_KERNEL_MODULE", proc)
    device.driver_version.cache_clear()
    message = tmp_path / "termination"
    (tmp_path / "run.json").write_text(json.dumps(run_of(tmp_path, task, {"gpus": 1})))
    path = f"{program.parent}:/usr/bin:/bin"
    done = run_here(task, tmp_path / "run.json", TUNERY_TERMINATION_PATH=str(message), PATH=path)
    device.driver_version.cache_clear()
    assert done.returncode == exit_code_for(UNAVAILABLE) == ExitCode.USER_ERROR, done.stderr
    failure = RunResult.model_validate_json(message.read_text()).failure
    assert failure is not None
    assert failure.reason == UNAVAILABLE, "and not of the model and the data, which are not there"
    assert "Found no NVIDIA driver" in failure.message
    assert f"({found}; needed: 580 or later; " in failure.message
    assert (smi or "nvidia-smi is not in the container") in failure.message
    assert "Device" not in done.stdout
    assert any("resources.gpus" in each.fields for each in failure.remedies)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("CUDA error: all CUDA-capable devices are busy or unavailable", FAULT),
        ("CUDA out of memory. Tried to allocate 2.00 MiB.", FAULT),
        ("The NVIDIA driver on your system is too old (found version 12040).", UNAVAILABLE),
        ("a word that no version has said yet", UNAVAILABLE),
    ],
)
def test_what_may_pass_in_a_minute_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, said: str, reason: FailureReason
) -> None:
    def failing() -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "init", failing)
    with pytest.raises(TuneryError, match=r"spec\.resources\.gpus asks for a GPU") as caught:
        device.require_gpu()
    assert caught.value.reason is reason
    assert said in caught.value.message


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)",
    ],
)
def test_the_device_is_told_with_what_runs_it(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 11.4.0\n")
    monkeypatch.setattr(device, "_KERNEL_MODULE", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    device.driver_version.cache_clear()
    words = device.device_words(DeviceKind.CUDA)
    device.driver_version.cache_clear()
    assert words == f"NVIDIA H100 80GB HBM3 (cuda:0, driver 580.95.05, CUDA {torch.version.cuda})"


def test_what_the_image_needs_of_a_node_is_what_the_guide_says() -> None:
    """An update of torch that brings another CUDA cannot leave the table of drivers behind."""
    lock = tomllib.loads((ROOT / "trainer-image" / "uv.lock").read_text())
    packages = {package["name"]: package for package in lock["package"]}
    needed = {each["name"] for each in packages["torch"]["dependencies"]}
    assert "cuda-toolkit" in needed, "torch brings its CUDA in another way: look at what says its version now"
    toolkit = packages["cuda-toolkit"]["version"]
    cuda = ".".join(toolkit.split(".")[:2])
    page = (ROOT / "docs" / "install.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| CUDA ([\d.]+) \| ([^|]+) \|", page, re.MULTILINE)
    assert rows, "the table of drivers is gone"
    assert rows[0][1:] == (cuda, device.needed_driver(cuda))
    assert f"torch {packages['torch']['version'].split('+')[0]}" in rows[0][0]
    if torch.version.cuda:
        assert torch.version.cuda == cuda, "the tests' torch has another CUDA than the image's"
        oldest = min(int(arch.split("_")[1]) for arch in torch._C._cuda_getArchFlags().split())
        assert f"compute capability {oldest // 10}.{oldest % 10} or later" in page


def test_what_the_platform_tells_never_exceeds_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 40 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert device_facts(80 * 2**30).memory_bytes == 40 * 2**30
    assert device_facts(20 * 2**30).memory_bytes == 20 * 2**30
    assert device_facts(None).memory_bytes == 40 * 2**30

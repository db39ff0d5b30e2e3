"""What this process computes on: the device's facts, whether its GPU works, and what an exception says of it."""

from __future__ import annotations

import functools
import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunSpec
from tunery_common.errors import TuneryError, first_line
from tunery_trainer.process.environment import cpu_limit
from tunery_trainer.process.place import simulated
from tunery_trainer.settings.types import DeviceFacts, DeviceKind

_MEMORY: Final = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|Triton Error \[CUDA\]: out of memory"
    r"|(CUBLAS|CUSOLVER|CUSPARSE|CUDNN)_STATUS_ALLOC_FAILED"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|Error out of memory at line \d+ in file|CUBLAS ERROR: Status 3\b",  # bitsandbytes, before it exits
    re.IGNORECASE,
)
MAX_CAUSE: Final = 200
"""Bytes of what an allocator says that a message repeats."""
_UNAVAILABLE: Final = re.compile(
    r"NVIDIA driver on your system|Found no NVIDIA driver|No CUDA GPUs are available"
    r"|no kernel image is available|driver version is insufficient"
    r"|unsupported display driver|CUDA is required but not available|not compiled with CUDA enabled"
    r"|no CUDA-capable device|CUDA-capable device is detected|CUDA_ERROR_NO_DEVICE",
    re.IGNORECASE,
)
"""What the same node says at each try."""
_FAULT: Final = re.compile(
    r"CUDA error|CUDA unknown error|cuBLAS error|cuDNN error|(CUBLAS|CUSOLVER|CUSPARSE|CUDNN|NCCL)_STATUS_|NCCL error"
    r"|Triton Error \[CUDA\]|CUDA_ERROR_|cudaError|ECC error|GPU is lost|MPS client|system not yet initialized"
    r"|busy or unavailable|CUDA-capable devices? (is|are) (busy|unavailable)"
    r"|Error .+ at line \d+ in file \S+\.cu",  # bitsandbytes, before it exits
    re.IGNORECASE,
)
_OWN: Final = re.compile(
    r"device-side assert|CUDA_ERROR_ASSERT|CUBLAS_STATUS_INVALID_VALUE|invalid argument", re.IGNORECASE
)
"""What a wrong index or a wrong call says: a defect of the program, on any GPU."""
_SMI: Final = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
_SMI_SECONDS: Final = 20.0
_KERNEL_MODULE: Final = Path("/proc/driver/nvidia/version")
"""What the node's driver says of itself, in a container without NVIDIA's runtime, too."""
_VERSION: Final = re.compile(r"\b\d{3}\.\d+(?:\.\d+)?\b")

DRIVERS: Final = {12: 525, 13: 580}
"""The oldest branch of NVIDIA's driver that runs what was built with a major version of CUDA: NVIDIA's table of minor
version compatibility, in the notes to each release of the CUDA Toolkit."""


def gpu_reason(error: BaseException) -> FailureReason | None:
    """Return what `error` says of the GPU: GPUOutOfMemory, GPUUnavailable or GPUFault; None: it is of something else.

    Read from the text: torch raises most of them as RuntimeError, and other libraries have no types of their own.
    """
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or _MEMORY.search(text):
        return FailureReason.GPU_OUT_OF_MEMORY
    if _UNAVAILABLE.search(text):
        return FailureReason.GPU_UNAVAILABLE
    if _OWN.search(text):
        return None
    faulty = type(error).__name__ == "AcceleratorError" or _FAULT.search(text)
    return FailureReason.GPU_FAULT if faulty else None


def out_of_memory(error: BaseException) -> bool:
    """Tell whether a GPU, or the process on a CPU, had no memory left for a tensor."""
    on_gpu = gpu_reason(error) is FailureReason.GPU_OUT_OF_MEMORY
    # oneDNN, which computes 16-bit products on CPUs, says no more than that it could not begin.
    said = any(text in str(error) for text in ("DefaultCPUAllocator", "could not create a primitive"))
    return on_gpu or said or isinstance(error, MemoryError)


def peak_bytes() -> int:
    """Return the most memory that this process has held: of the GPU what torch reserved, on a CPU its resident set."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_facts(memory_bytes: int | None) -> DeviceFacts:
    """Return the facts of the device that this process would train on; `memory_bytes` as the platform told them.

    A platform knows one number for all GPUs of a name: the one that is here may be smaller, or be shared.
    """
    import torch

    if torch.cuda.is_available():
        real = torch.cuda.get_device_properties(0).total_memory
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return DeviceFacts(DeviceKind.CUDA, min(memory_bytes or real, real), bfloat16)
    return DeviceFacts(DeviceKind.CPU, memory_bytes, torch.cpu._is_avx512_bf16_supported())


def require_gpu() -> None:
    """Compute one product on the GPU; raises TuneryError with the driver's words where that fails.

    GPUUnavailable, or GPUFault where the same node may do it in a minute. A job that asked for a GPU must never train
    on the CPU while it holds one.
    """
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        # is_available() is true for a GPU that this build has no kernels for.
        product = torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
        works = bool(product.sum().item() == 8**3)
    except (RuntimeError, AssertionError) as error:
        stays = gpu_reason(error) in (None, FailureReason.GPU_UNAVAILABLE)
        reason = FailureReason.GPU_UNAVAILABLE if stays else FailureReason.GPU_FAULT
        raise _unusable(reason, torch.version.cuda, first_line(error)) from error
    if not works:
        raise _unusable(FailureReason.GPU_FAULT, torch.version.cuda, "a product of ones came out wrong")


def triton_compiles() -> bool:
    """Tell whether Triton finds the compiler that it needs for its driver stub at the first kernel."""
    from triton.runtime.build import _find_compiler

    try:
        return bool(_find_compiler("c"))
    except RuntimeError:
        return False


def device_words(kind: DeviceKind) -> str:
    """Return what this process computes on, as status.resolved.device tells it."""
    if kind is DeviceKind.CPU:
        cores = cpu_limit()
        return f"CPU ({cores} {'core' if cores == 1 else 'cores'})"
    import torch

    driver = driver_version()
    parts = ("cuda:0", f"driver {driver}" if driver else None, f"CUDA {torch.version.cuda}")
    return f"{torch.cuda.get_device_name(0)} ({', '.join(part for part in parts if part)})"


def needed_driver(cuda: str) -> str:
    """Return the oldest driver that runs CUDA `cuda`, such as 13.2, for people."""
    branch = DRIVERS.get(int(cuda.split(".")[0]))
    return f"{branch} or later" if branch else f"one for CUDA {cuda}"


@functools.cache
def driver_version() -> str | None:
    """Return the version of NVIDIA's driver on this node; None where there is none, or nothing tells it."""
    try:
        found = _VERSION.search(_KERNEL_MODULE.read_text("utf-8", errors="replace").split("\n", 1)[0])
    except OSError:
        found = None
    found = found or _VERSION.search(_smi_words())
    return found.group() if found else None


def _unusable(reason: FailureReason, cuda: str | None, cause: str) -> TuneryError:
    needed = needed_driver(cuda) if cuda else "none, as this torch was built without CUDA"
    return TuneryError(
        reason,
        f"spec.resources.gpus asks for a GPU, and CUDA {cuda} cannot use one here: {cause} "
        f"(driver found: {driver_version() or 'none'}; needed: {needed}; {_smi_words()})",
    )


def _smi_words() -> str:
    """Return what nvidia-smi says of the GPUs in one line."""
    if shutil.which(_SMI[0]) is None:
        return "nvidia-smi is not in the container: it was started without NVIDIA's runtime"
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {first_line(error)}"
    return f"nvidia-smi: {' | '.join((done.stdout or done.stderr).strip().splitlines()) or 'says nothing'}"


def expected_device(run: RunSpec, gpus: int) -> DeviceFacts:
    """Return what preflight expects training to run on: this machine without a cluster, else what the job asks for."""
    if run.local or not gpus:
        return actual_device(run, gpus)
    return DeviceFacts(DeviceKind.CUDA, run.gpu_memory_bytes, bfloat16=True)


def actual_device(run: RunSpec, gpus: int) -> DeviceFacts:
    """Return the device of this process: the GPU that the job asked for; without a cluster what there is.

    Raises TuneryError(GPUUnavailable): a pod that holds a GPU never trains on the CPU.
    """
    import torch

    if gpus and not run.local and not simulated():
        require_gpu()
    return device_facts(run.gpu_memory_bytes if torch.cuda.is_available() else run.memory_bytes)

"""What this process computes on: the device's facts, whether its GPU works, and what an exception says of it."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunSpec
from tunery_common.errors import TuneryError, first_line
from tunery_trainer.settings.types import DeviceFacts, DeviceKind

_MEMORY: Final = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|Triton Error \[CUDA\]: out of memory"
    r"|(CUBLAS|CUSOLVER|CUSPARSE|CUDNN)_STATUS_ALLOC_FAILED"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|Error out of memory at line \d+ in file|CUBLAS ERROR: Status 3\b",  # bitsandbytes, before it exits
    re.IGNORECASE,
)
_UNAVAILABLE: Final = re.compile(
    r"NVIDIA driver on your system|Found no NVIDIA driver|No CUDA GPUs are available|CUDA unknown error"
    r"|no kernel image is available|driver version is insufficient|system not yet initialized"
    r"|unsupported display driver|CUDA-capable devices? (is|are) (busy|unavailable|detected)"
    r"|devices are busy or unavailable|CUDA is required but not available|not compiled with CUDA enabled"
    r"|no CUDA-capable device|CUDA_ERROR_NO_DEVICE|CUDA_ERROR_SYSTEM_NOT_READY|MPS client",
    re.IGNORECASE,
)
_FAULT: Final = re.compile(
    r"CUDA error|cuBLAS error|cuDNN error|(CUBLAS|CUSOLVER|CUSPARSE|CUDNN|NCCL)_STATUS_|NCCL error"
    r"|Triton Error \[CUDA\]|CUDA_ERROR_|cudaError|ECC error|GPU is lost"
    r"|Error .+ at line \d+ in file \S+\.cu",  # bitsandbytes, before it exits
    re.IGNORECASE,
)
_OWN: Final = re.compile(
    r"device-side assert|CUDA_ERROR_ASSERT|CUBLAS_STATUS_INVALID_VALUE|invalid argument", re.IGNORECASE
)
"""What a wrong index or a wrong call says: a defect of the program, on any GPU."""
_SMI: Final = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
_SMI_SECONDS: Final = 20.0


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
    """Compute one product on the GPU; raises TuneryError(GPUUnavailable) with the driver's words where that fails.

    A job that asked for a GPU must never train on the CPU while it holds one.
    """
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        # is_available() is true for a GPU that this build has no kernels for.
        product = torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
        works = bool(product.sum().item() == 8**3)
    except (RuntimeError, AssertionError) as error:
        raise _unavailable(first_line(error)) from error
    if not works:
        raise _unavailable("a product of ones came out wrong")


def triton_compiles() -> bool:
    """Tell whether Triton finds the compiler that it needs for its driver stub at the first kernel."""
    from triton.runtime.build import _find_compiler  # type: ignore[import-untyped]

    try:
        return bool(_find_compiler("c"))
    except RuntimeError:
        return False


def _unavailable(cause: str) -> TuneryError:
    import torch

    return TuneryError(
        FailureReason.GPU_UNAVAILABLE,
        f"spec.resources.gpus asks for a GPU, and CUDA {torch.version.cuda} cannot use one here: {cause} "
        f"({_driver_words()})",
    )


def _driver_words() -> str:
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

    if gpus and not run.local:
        require_gpu()
    return device_facts(run.gpu_memory_bytes if torch.cuda.is_available() else run.memory_bytes)

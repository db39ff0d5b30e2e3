"""What a GPU run needs of its image, tried without a GPU: `python -` runs this file inside the trainer's image.

Prints a JSON object: the name of each check, and null or what is wrong. Everything is real but the driver, of which
there is an empty imitation: no node of the tests has one.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ARCHITECTURES = (75, 80, 86, 89, 90, 100)
"""Compute capabilities from the T4 to Blackwell."""
GPU_MODULES = (
    "bitsandbytes",
    "torch.nn.attention.varlen",
    "triton",
    "trl.kernels.chunked_logprob",
    "tunery_trainer.training.run",
)


def main() -> None:
    checks: dict[str, Callable[[], None]] = {
        "compiler": compiles_against_python,
        "driver stub": triton_loads_its_driver_stub,
        **{f"import {name}": lambda name=name: importlib.import_module(name) for name in GPU_MODULES},
        **{f"kernels for sm_{number}": lambda number=number: kernels_compile(number) for number in ARCHITECTURES},
        "bitsandbytes for CUDA": bitsandbytes_loads,
    }
    print(json.dumps({name: outcome(check) for name, check in checks.items()}))


def outcome(check: Callable[[], None]) -> str | None:
    try:
        check()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever it is, it is what is missing)
        return f"{type(error).__name__}: {error}"
    return None


def compiles_against_python() -> None:
    from triton.runtime.build import _find_compiler

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "it.c")
        source.write_text("#include <Python.h>\nint it(void) { return PY_MAJOR_VERSION; }\n")
        library = build(source, Path(folder, "it.so"), _find_compiler("c"))
        assert ctypes.CDLL(str(library)).it() == sys.version_info.major


def build(source: Path, library: Path, compiler: str = "gcc") -> Path:
    import sysconfig

    include = sysconfig.get_paths(scheme="posix_prefix")["include"]
    command = [compiler, "-shared", "-fPIC", f"-I{include}", source, "-o", library, f"-Wl,-soname,{library.name}"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def triton_loads_its_driver_stub() -> None:
    """Triton compiles its stub at the first kernel, links it to libcuda.so.1 and loads it."""
    import triton.backends.nvidia.driver as driver

    stub = Path(driver.__file__).with_name("driver.c").read_text()
    folder = Path(tempfile.mkdtemp())
    source = folder / "cuda.c"
    functions = sorted(set(re.findall(r"\bcu[A-Z]\w+(?=\()", stub)) | {"cuInit", "cuDeviceGetCount"})
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in functions))
    library = build(source, folder / "libcuda.so.1")
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    assert driver.CudaUtils().load_binary


def kernels_compile(capability: int) -> None:
    """TRL's kernels of the loss, as they are called in training, down to what the GPU runs."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from trl.kernels import chunked_logprob

    flags = {"HAS_SOFTCAP": False, "BLOCK_SIZE": 1024}
    forward = {f"HAS_{name.upper()}": True for name in chunked_logprob.OPTIONAL_OUTPUTS}
    backward = {"HAS_LOGPROB_GRAD": True, "HAS_ENTROPY_GRAD": False}
    for kernel, more in ((chunked_logprob._forward_kernel, forward), (chunked_logprob._backward_kernel, backward)):
        constants = flags | more
        signature = {name: "constexpr" if name in constants else type_of(name) for name in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): v for name, v in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]


def type_of(argument: str) -> str:
    if argument == "mm_ptr":
        return "*bf16"
    if argument == "targets_ptr":
        return "*i64"
    if argument.endswith("_ptr"):
        return "*fp32"
    return "i32" if argument in ("mm_stride", "vocab_start", "n_cols") else "fp32"


def bitsandbytes_loads() -> None:
    """The native code for torch's CUDA, with all that it links to."""
    import bitsandbytes
    import torch

    version = (torch.version.cuda or "").replace(".", "")
    library = Path(bitsandbytes.__file__).with_name(f"libbitsandbytes_cuda{version}.so")
    assert ctypes.CDLL(str(library)).cquantize_blockwise_bf16_nf4


main()

"""How the engine, vLLM, is called: its flags, and the variables that only it reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tunery_api.adapterserver import AdapterServerSpec, EnginePrecision
from tunery_api.fields import parse_quantity
from tunery_api.serving import ENGINE_SOCKET

DRAIN_SECONDS: Final = 60
"""How long the engine finishes requests once it was told to end."""
_DTYPES: Final = {
    EnginePrecision.BFLOAT16: "bfloat16",
    EnginePrecision.FLOAT16: "float16",
    EnginePrecision.FLOAT32: "float32",
}
_CACHE_SHARE: Final = 4
"""On the CPU the keys and values of requests get one part in so many of the memory: the weights take most of it."""


def arguments(spec: AdapterServerSpec) -> tuple[str, ...]:
    """Return the flags of `vllm serve`."""
    return tuple(_arguments(spec))


def _arguments(spec: AdapterServerSpec) -> Iterator[str]:
    chosen = spec.engine
    yield f"--uds={ENGINE_SOCKET}"
    yield f"--served-model-name={spec.model.effective_served_name()}"
    yield "--enable-lora"
    yield f"--max-loras={chosen.max_adapters_in_batch}"
    # Twice, so that an update's old and new version have room and the engine itself never throws one out.
    yield f"--max-cpu-loras={2 * chosen.max_loaded_adapters}"
    yield f"--max-lora-rank={chosen.max_rank}"
    # With more than one, vLLM refuses to load adapters while it runs.
    yield "--api-server-count=1"
    yield "--disable-fastapi-docs"
    yield f"--shutdown-timeout={DRAIN_SECONDS}"
    if chosen.max_length is not None:
        yield f"--max-model-len={chosen.max_length}"
    if chosen.precision in _DTYPES:
        yield f"--dtype={_DTYPES[chosen.precision]}"
    if spec.resources.gpus:
        yield f"--gpu-memory-utilization={chosen.gpu_memory_fraction}"
    yield from chosen.args or ()


def environment(spec: AdapterServerSpec, plugins: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of the engine's container."""
    common = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_PLUGINS": ",".join(plugins),
        "VLLM_NO_USAGE_STATS": "1",
        # What lies in /model is all that it may read: a name that is wrong is no download.
        "HF_HUB_OFFLINE": "1",
        # The user has no entry in the image's passwd, where libraries look for its name.
        "USER": "tunery",
        # One process on one node: what its parts say to each other stays within the pod, as far as it can be told to.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if spec.resources.gpus:
        return common
    gibibytes = int(parse_quantity(spec.resources.memory) // 2**30)
    space = max(1, gibibytes // _CACHE_SHARE)
    return {
        **common,
        "VLLM_CPU_KVCACHE_SPACE": str(space),
        # What torch would compile needs a compiler, which the image may lack.
        "TORCHDYNAMO_DISABLE": "1",
        # By itself it starts a thread for each core of the node but one, and binds them: more than the pod may use, and
        # to the cores that another server's engine on that node has bound its own to.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, int(parse_quantity(spec.resources.cpu)))),
    }

"""The process environment, set before any heavy import: where caches lie, how many threads, which GPU."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO, cast

from tunery_api.redact import RedactingFormatter, redact_credentials
from tunery_trainer.process.memory import CGROUP

_CACHES: Final = {
    "HF_HOME": "huggingface",
    "HF_HUB_CACHE": "huggingface/hub",
    "HF_DATASETS_CACHE": "huggingface/datasets",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "WANDB_DIR": "wandb",
    "WANDB_CACHE_DIR": "wandb/cache",
    "WANDB_CONFIG_DIR": "wandb/config",
    "WANDB_DATA_DIR": "wandb/data",
    "WANDB_ARTIFACT_DIR": "wandb/artifacts",
    "XDG_CACHE_HOME": "xdg",
}
"""Each library's own variable, and the folder below <work dir>/cache: the root file system is read-only."""

_ALWAYS: Final = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "BITSANDBYTES_NOWELCOME": "1",
    # Threads that wait for each other sleep. GNU's OpenMP lets them spin, which takes the processor from those that
    # they wait for wherever there are fewer free ones than threads: steps on a shared node took ten times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "MPLBACKEND": "Agg",
    "WANDB_SILENT": "true",
    "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",  # our own reporter speaks that protocol, with more in it
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
}

_OF_LAUNCHERS: Final = ("ACCELERATE_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_", "MPI_LOCAL")
"""What begins so is for processes that train together, as `mpirun`, `srun` and `accelerate launch` set it."""

_KERNELS: Final = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}
"""How many kernels oneDNN keeps on a CPU, and torch beside it. Each shape of a product in BFloat16 has one of half a
MiB, and they would keep 1,024: where rows have many lengths memory grew with every step, beyond what was estimated."""

_MAX_LINE: Final = 16 * 1024
"""Bytes of one log record, its trace included."""
_QUOTA_AND_PERIOD: Final = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Where cgroup version 2 and version 1 say them, below the mount."""
_NO_QUOTA: Final = frozenset({"max", "-1"})


VISIBLE_ENV: Final = "TUNERY_VISIBLE_DEVICES"
"""The GPUs of the container, before each process is shown its own."""


def prepare_environment(work_dir: Path, gpus: int, processes: int = 1) -> None:
    """Set the variables of this process; must run before torch and transformers are imported.

    `gpus` is how many GPUs the job asked for: 0 hides all; of several this process is shown the first, and each of the
    `processes` that train with it another one. They share the CPUs.
    """
    for variable, folder in _CACHES.items():
        path = work_dir / "cache" / folder
        path.mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(path)
    be_quiet()
    for variable in [name for name in os.environ if name.startswith(_OF_LAUNCHERS)]:
        del os.environ[variable]  # the libraries would take this process for one of several, and wait for the others
    threads = str(max(1, cpu_limit() // processes))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(variable, threads)
    for variable, kernels in _KERNELS.items():
        os.environ.setdefault(variable, kernels)
    # Of several tasks in one process, as in a run without a cluster, only the first finds what there was to see.
    visible = os.environ.get(VISIBLE_ENV) or os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    os.environ[VISIBLE_ENV] = visible if gpus else ""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0] if gpus else ""


def be_quiet() -> None:
    """Keep the libraries' advice to their programmers from burying what the user has to read."""
    os.environ.update(_ALWAYS)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # warns where Triton is absent
    _log_to_stderr()


def _log_to_stderr() -> None:
    """Send the log to stderr, without credentials; a handler that is there already (in tests) stays alone.

    Of the libraries warnings only; what our own code has to say is said to be read.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s", _MAX_LINE))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("tunery_trainer").setLevel(logging.INFO)


def guard_output() -> None:
    """Hide credentials in all that Python code writes to stdout and stderr from now on.

    Libraries print, log by handlers of their own, and let threads die with a trace: none of that comes by our log.
    What cannot be encoded, as half of a surrogate pair in the data, is written as an escape.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 (it is closed with the process)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, cast("TextIO", _HidingStream(stream)))


def outlive_readers() -> None:
    """Go on where nobody reads what is printed any more: a Ctrl-C ends the `tee` of a pipe before what it waits for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _HidingStream):
            stream.outlives = True


class _HidingStream:
    """A text stream in all but what is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.outlives = False
        """Whether what cannot be written any more, as nobody reads it, is dropped."""

    def write(self, text: str) -> int:
        """Write `text` without credentials."""
        with self._heard():
            self._stream.write(redact_credentials(text))
        return len(text)

    def flush(self) -> None:
        """Write what is waiting."""
        with self._heard():
            self._stream.flush()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            if not self.outlives:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # what is waiting goes there, too

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines` without credentials."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def go_offline() -> None:
    """Forbid every library the hub, now that model and data are local."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        # The library reads its variable once, at import, and a download has imported it.
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def cpu_limit(cgroup: Path = CGROUP) -> int:
    """Return how many CPUs this process may use: the cgroup's quota (version 2 or 1), else its affinity; at least 1."""
    usable = len(os.sched_getaffinity(0))
    for files in _QUOTA_AND_PERIOD:
        try:
            quota, period = " ".join((cgroup / file).read_text("utf-8") for file in files).split()
        except (OSError, ValueError):
            continue
        if quota not in _NO_QUOTA:
            return max(1, min(usable, round(int(quota) / int(period))))
    return usable

"""Estimate: what a job would take, without a cluster, without weights, and without the network."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from tunery_api.fields import parse_quantity
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import fetch_dataset
from tunery_common.inputs.location import DataFiles, Location
from tunery_common.storage.credentials import ambient
from tunery_trainer.inputs.local_model import local_model
from tunery_trainer.local import read_lorajob
from tunery_trainer.process.device import device_facts
from tunery_trainer.process.environment import be_quiet, go_offline
from tunery_trainer.process.place import SIMULATED_ENV, most_that_share, simulated
from tunery_trainer.reporting.estimate_text import as_json, as_text
from tunery_trainer.resuming.here import Start, start_here
from tunery_trainer.settings.types import DeviceFacts, DeviceKind
from tunery_trainer.tasks.frame import of_loading
from tunery_trainer.tasks.question import Question

_MOMENT_SECONDS: Final = 1.0


def run_estimate(question: Question) -> None:
    """Print what the job takes, in parts, and the table of all methods on all kinds of GPU.

    Raises TuneryError for a manifest that is wrong, where the model's config.json is not here, is of no model that can
    be trained, or of one that cannot do what the manifest asks for; and for a data set that is here, what preflight
    would.
    """
    spec = read_lorajob(question.manifest, question.name)
    processes = _simulated(question, spec)
    folder = local_model(spec.model.uri, spec.model.revision, question.model)
    start = start_here(spec, question.start)
    device = _device(question, start, processes)
    files = _files_here(spec)
    be_quiet()
    go_offline()
    with _told_where_slow(of_loading("Estimate")):
        from tunery_trainer.plan.look_ahead import look_ahead

        if device.kind is DeviceKind.CPU and _is_here(spec):
            # Of this machine it is known how its CPU computes.
            device = replace(device, bfloat16=device_facts(None).bfloat16)
    with _told_where_slow("Estimate   the model is outlined, and the rows of the data that are here are read"):
        found = look_ahead(start, folder, device, files)
    if question.machine_readable:
        print(json.dumps(as_json(found, question.tokens_per_second), indent=2), flush=True)
    else:
        print(as_text(found, question.tokens_per_second), flush=True)


@contextmanager
def _told_where_slow(what: str) -> Iterator[None]:
    """Say on stderr what is done, where it takes longer than a moment."""
    timer = threading.Timer(_MOMENT_SECONDS, lambda: print(what, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _simulated(question: Question, spec: LoRAJobSpec) -> int:
    """Return how many processes train on the CPU in place of GPUs, 0 for none.

    Raises TuneryError(InvalidSpec) for a number that is none, and for a GPU's memory where none would be used.
    """
    processes = simulated()
    if question.gpu_memory is not None and (processes or not spec.resources.gpus):
        why = SIMULATED_ENV if processes else "spec.resources.gpus"
        message = f"--gpu-memory is of a GPU, and {why} is {processes}: the job would train on the CPU"
        instead = retry(f"Unset {SIMULATED_ENV}") if processes else recreate("Set resources.gpus", "resources.gpus")
        raise TuneryError(FailureReason.INVALID_SPEC, message, retry("Omit --gpu-memory"), instead)
    return processes


def _device(question: Question, start: Start, processes: int) -> DeviceFacts:
    """Return what the job would train on: GPUs of the named memory, or containers' CPUs, simulated devices too."""
    spec, asked = start.spec, start.spec.resources
    if asked.gpus and not processes:
        return DeviceFacts(DeviceKind.CUDA, question.gpu_memory, bfloat16=True).together(asked.gpus, asked.nodes)
    nodes = asked.nodes
    if processes and _is_here(spec):  # as `run` does
        nodes = 1
        processes = most_that_share(processes, nodes, start.taken.to_share(spec))
    facts = DeviceFacts(DeviceKind.CPU, int(parse_quantity(asked.memory)), bfloat16=False)
    return facts.together(max(1, processes), nodes)


def _is_here(spec: LoRAJobSpec) -> bool:
    """Say whether the job is one of this machine: no cluster takes an output in its files."""
    return (spec.output.uri or "").startswith("file://")


def _files_here(spec: LoRAJobSpec) -> DataFiles | None:
    """Return the data set's files where they lie on this machine, else None."""
    evaluation = spec.dataset.evaluation
    own = evaluation.uri if evaluation else None
    uris = [spec.dataset.uri, *([own] if own else [])]
    if not all(uri.startswith("file://") for uri in uris):
        return None
    train, *others = (fetch_dataset(Location(uri, ambient(), allow_file=True), Path()) for uri in uris)
    return DataFiles(train, others[0] if others else None)

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

from tunery_api.errors import InvalidSpec
from tunery_api.fields import parse_quantity
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import fetch_dataset
from tunery_common.inputs.location import DataFiles, Location
from tunery_common.storage.credentials import ambient
from tunery_trainer.inputs.local_model import local_model
from tunery_trainer.local import read_lorajob
from tunery_trainer.process.device import device_facts
from tunery_trainer.process.environment import be_quiet, go_offline
from tunery_trainer.reporting.estimate_text import as_json, as_text
from tunery_trainer.resuming.here import start_here
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
    spec = _read(question)
    device = _device(question, spec)
    folder = local_model(spec.model.uri, spec.model.revision, question.model)
    start = start_here(spec, question.start)
    files = _files_here(spec)
    be_quiet()
    go_offline()
    with _told_where_slow(of_loading("Estimate")):
        from tunery_trainer.plan.look_ahead import look_ahead

        if device.kind is DeviceKind.CPU and (spec.output.uri or "").startswith("file://"):
            # No cluster takes such an output: of this machine it is known how its CPU computes.
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


def _read(question: Question) -> LoRAJobSpec:
    try:
        return read_lorajob(question.manifest, question.name)
    except InvalidSpec as error:
        raise TuneryError(FailureReason.INVALID_SPEC, str(error), "Correct it, and ask again.") from error


def _device(question: Question, spec: LoRAJobSpec) -> DeviceFacts:
    """Return what the job would train on: GPUs of the named memory, or containers' CPUs."""
    asked = spec.resources
    if asked.gpus:
        return DeviceFacts(DeviceKind.CUDA, question.gpu_memory, bfloat16=True, devices=asked.gpus, nodes=asked.nodes)
    if question.gpu_memory is not None:
        message = "--gpu-memory is of a GPU, and spec.resources.gpus is 0: the job would train on the CPU"
        raise TuneryError(FailureReason.INVALID_SPEC, message, "Leave it out, or set spec.resources.gpus.")
    return DeviceFacts(DeviceKind.CPU, int(parse_quantity(asked.memory)), bfloat16=False, nodes=asked.nodes)


def _files_here(spec: LoRAJobSpec) -> DataFiles | None:
    """Return the data set's files where they lie on this machine, else None."""
    evaluation = spec.dataset.evaluation
    own = evaluation.uri if evaluation else None
    uris = [spec.dataset.uri, *([own] if own else [])]
    if not all(uri.startswith("file://") for uri in uris):
        return None
    train, *others = (fetch_dataset(Location(uri, ambient(), allow_file=True), Path()) for uri in uris)
    return DataFiles(train, others[0] if others else None)

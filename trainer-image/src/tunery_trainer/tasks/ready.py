"""What training needs, brought to the disk and decided, on every node alike."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from tunery_trainer.data.notebook import Notebook
from tunery_trainer.inputs.adapter import get_starting_adapter
from tunery_trainer.inputs.workspace import Workspace, get_data, get_model
from tunery_trainer.process.environment import go_offline
from tunery_trainer.process.place import Place
from tunery_trainer.reporting.downloads import Downloads
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.status_parts import library_versions
from tunery_trainer.resuming.resume import with_taken
from tunery_trainer.settings.parallelism import parallelism_of
from tunery_trainer.settings.units import compared, human_bytes
from tunery_trainer.tasks.devices import devices_found

if TYPE_CHECKING:
    from tunery_trainer.data.prepare import PreparedData
    from tunery_trainer.plan.training_plan import TrainingPlan


class Ready(NamedTuple):
    """All that training needs, on the disk and decided."""

    plan: TrainingPlan
    data: PreparedData


def gather(work: Workspace, place: Place, notebook: Notebook, reporter: ProgressReporter) -> Ready:
    """Bring model and data to the disk, decide every setting, and prepare the rows."""
    spec, taken = with_taken(work)
    device = devices_found(work, place, reporter)  # before a download that a pod without a working GPU has no use for
    downloads = Downloads(reporter)
    base = get_model(work, weights=True, progress=downloads.of("model"))
    start_from = get_starting_adapter(work, weights=True)
    files = get_data(work, downloads.of("data set"))
    reporter.downloaded()
    go_offline()
    from tunery_trainer.plan.basis import Basis
    from tunery_trainer.plan.prepared_rows import prepare_rows
    from tunery_trainer.plan.request import request_data
    from tunery_trainer.plan.training_plan import plan_training

    basis = Basis(work.run.identity, spec, base, device, start_from, taken)
    request = request_data(basis, files)
    print(f"Tokenizing {spec.dataset.uri}", flush=True)
    data = prepare_rows(request, basis.tokenizer, work.cache, work.folder("prepared"), notebook)
    ready = Ready(plan_training(basis, request.rows, data.report), data)
    _print(ready)
    return ready


def decided(ready: Ready) -> dict[str, Any]:
    """Return what every node has to come to alike, or they would train different things."""
    files = ready.plan.basis.base.files
    return {
        **ready.plan.origin.model_dump(mode="json"),
        # What follows from the memory of the devices, too.
        **{f"training.{name}": str(value) for name, value in asdict(ready.plan.settings.training).items()},
        "rows": ready.data.report.sha256,
        # Of a hub the commit says it; a claim is one volume, and its digest takes its time.
        "base": files.digest_if_known() if files else None,
        "versions": library_versions(),
    }


def _print(ready: Ready) -> None:
    """Print for who follows the log what is about to be trained, and on what."""
    plan, data = ready
    spec, base = plan.basis.spec, plan.basis.base
    at = f" at {base.revision}" if base.revision else ""
    print(f"Model      {spec.model.uri}{at}, {human_bytes(base.weight_bytes)} of weights")
    print(f"Data       {spec.dataset.uri}, {len(data.train)} sequences to train on, {len(data.evaluation)} held out")
    devices = plan.basis.device
    device = devices.words if devices.world > 1 else f"the {'GPU' if plan.basis.on_gpu else 'CPU'}"
    how = parallelism_of(sharded=plan.settings.training.sharded, devices=devices.world)
    print(f"Method     {plan.settings.method}, {plan.steps} steps on {device}{f', {how}' if how else ''}", flush=True)
    if plan.memory and devices.memory_bytes:  # which may be another than preflight has counted with
        needed, there = compared(plan.memory.total * devices.sharing, devices.memory_bytes * devices.sharing)
        activations = "recomputed" if plan.settings.training.gradient_checkpointing else "kept"
        processes = f" for {devices.sharing} processes," if devices.sharing > 1 else ""
        print(f"Memory     about {needed}{processes} of {there}; activations {activations}", flush=True)

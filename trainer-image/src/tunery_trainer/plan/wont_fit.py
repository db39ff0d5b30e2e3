"""Raise WontFit for a plan that takes more memory than there is, with changes that fit by the same estimate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import QUANTIZED_TWIN
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, edit, recreate, retry
from tunery_api.training import Parallelism
from tunery_api.validation import lorajob_errors
from tunery_common.errors import TuneryError
from tunery_trainer.plan.training_plan import TrainingPlan
from tunery_trainer.resuming.taken_settings import NOTHING
from tunery_trainer.settings.memory import MemoryEstimate, needed_for, usable
from tunery_trainer.settings.parallelism import in_8_bits, no_choice
from tunery_trainer.settings.types import DeviceKind
from tunery_trainer.settings.units import compared

_SHORTEST: Final = 64
"""Tokens: shorter rows are not worth a suggestion."""
_HALVINGS: Final = 4
"""Lengths between the shortest and the asked one that are tried: of 64 to 8,192 within a third."""
_GPUS: Final = (2, 4, 8, 16)
"""Of a node."""
_NOTHING_ELSE: Final = f": nothing else fits, not even rows of {_SHORTEST} tokens"


def check_memory(plan: TrainingPlan, *, local: bool = False) -> None:
    """Raise TuneryError(WontFit) where a plan takes more than its device has, with what would fit."""
    estimate, devices = plan.memory, plan.basis.device
    if plan.fits and not local:
        _check_container(plan)
    if plan.fits or estimate is None or devices.memory_bytes is None:
        return
    whose = "this machine" if local else "the container"
    device = ("each GPU" if devices.world > 1 else "the GPU") if devices.kind is DeviceKind.CUDA else whose
    change = _change_that_fits(plan, local=local)
    amounts = (estimate.total, devices.memory_bytes, usable(devices.memory_bytes))
    needed, there, counted = compared(*(amount * devices.sharing for amount in amounts))
    processes = f" for {devices.sharing} processes" if devices.sharing > 1 else ""
    raise TuneryError(
        FailureReason.WONT_FIT,
        f"training needs about {needed}{processes}; {device} has {there}, of which {counted} are counted on",
        *_remedies(plan, estimate, change, local=local),
    )


def _check_container(plan: TrainingPlan) -> None:
    """Raise TuneryError(WontFit) where a base is quantised before it is spread, and the container cannot hold that."""
    container = plan.container
    if container is None or container.fits:
        return
    needed, asked = compared(container.needed, container.asked)
    raise TuneryError(
        FailureReason.WONT_FIT,
        f"each of {plan.basis.device.devices} processes quantises the base before it is spread over the GPUs, which "
        f"takes about {needed} of the container's memory; it has {asked}",
        _raise_memory(-(-container.needed // 2**30)),
    )


def _remedies(plan: TrainingPlan, estimate: MemoryEstimate, change: Remedy | None, *, local: bool) -> Iterator[Remedy]:
    """Yield the change that fits, and more memory: of a GPU, of the container, or of this machine where `local`."""
    enough, alone = _gibibytes(plan, estimate), "" if change else _NOTHING_ELSE
    if change is not None:
        yield change
    if local:
        yield retry(f"Use a {'GPU' if plan.basis.on_gpu else 'machine'} with {enough} GiB of memory{alone}")
    elif plan.basis.on_gpu:
        yield recreate(f"Request a GPU with {enough} GiB of memory{alone}")
    else:
        yield _raise_memory(enough)


def _raise_memory(gibibytes: int) -> Remedy:
    return edit(f"Raise resources.memory to {gibibytes}Gi", "resources.memory")


def _gibibytes(plan: TrainingPlan, estimate: MemoryEstimate) -> int:
    """Return how many GiB would be enough: of each GPU, or of what processes on a CPU share."""
    return -(-needed_for(estimate.total) * plan.basis.device.sharing // 2**30)


def change_that_fits(plan: TrainingPlan) -> str | None:
    """Return the change to the manifest by which a plan would fit in a cluster, as a clause; None: none was found.

    Without a GPU more memory comes first, as it does where preflight refuses such a plan.
    """
    memory = [] if plan.basis.on_gpu or plan.memory is None else [_raise_memory(_gibibytes(plan, plan.memory))]
    other = _change_that_fits(plan, local=False)
    return "; or ".join(_clause(each) for each in (*memory, *([other] if other else []))) or None


def _clause(remedy: Remedy) -> str:
    return remedy.text[0].lower() + remedy.text[1:]


def _change_that_fits(plan: TrainingPlan, *, local: bool) -> Remedy | None:
    """Return a change that takes no other device; on this machine, `local`, no manifest adds GPUs."""
    largest = plan.memory.largest_batch(plan.basis.device.memory_bytes or 0) if plan.memory else None
    if largest:
        return recreate(f"Set training.batchSize to {largest}, or omit it", "training.batchSize")
    asked = plan.basis.spec.training
    named = ["training.gradientCheckpointing"] if asked.gradient_checkpointing is False else []
    named += ["training.batchSize"] if asked.batch_size is not None else []
    named += ["training.parallelism"] if _could_be_spread(plan) else []
    omit = recreate(f"Omit {' and '.join(named)}", *named)
    spec = _changed(
        plan.basis.spec,
        batch_size=None,
        gradient_checkpointing=asked.gradient_checkpointing or None,
        parallelism=Parallelism.AUTO if _could_be_spread(plan) else asked.parallelism,
    )
    freed = plan.of_another(spec, plan.settings.method)
    if named and _fits(freed):
        return omit
    others = [*_others(freed or plan), *([] if local else _more_gpus(freed or plan))]
    if not others:
        return None
    either = _joined(" or ", others)
    return _joined(", and ", [omit, either]) if named else either


def _joined(conjunction: str, remedies: Iterable[Remedy]) -> Remedy:
    """Return several changes as one."""
    first, *others = remedies
    text = conjunction.join([first.text, *map(_clause, others)])
    return recreate(text, *dict.fromkeys(field for each in (first, *others) for field in each.fields))


def _others(plan: TrainingPlan) -> Iterator[Remedy]:
    """Yield what fits of a plan of one row: a quantised base, shorter rows, or else both."""
    if plan.basis.taken is not NOTHING:  # a checkpoint goes on by its own method, in rows of its own length
        return
    spec, named = plan.basis.spec, QUANTIZED_TWIN.get(plan.basis.spec.method)
    stored = spec.model_copy(update={"method": named}) if named else None
    if stored and lorajob_errors(stored):
        stored = None
    quantised = plan.of_another(stored, stored.method) if stored else None
    if _fits(quantised):
        yield recreate(f"Use method: {named}", "method")
    shorter = _shorter(plan)
    if shorter:
        yield _shorten_rows(shorter)
    elif quantised is not None and not _fits(quantised) and (shorter := _shorter(quantised)):
        yield _joined(" and ", [recreate(f"Use method: {named}", "method"), _shorten_rows(shorter)])


def _shorten_rows(tokens: int) -> Remedy:
    return recreate(f"Set training.maxLength to {tokens}", "training.maxLength")


def _could_be_spread(plan: TrainingPlan) -> bool:
    """Say whether it is the manifest alone that has the whole base in each GPU."""
    asked, device = plan.basis.spec.training.parallelism, plan.basis.device
    return asked is Parallelism.DDP and device.world > 1 and no_choice(device, plan.settings.quantization) is None


def _more_gpus(plan: TrainingPlan) -> Iterator[Remedy]:
    """Yield the smallest number of GPUs over which the base of a plan of one row fits, if they can share its steps."""
    device, spec, shared = plan.basis.device, plan.basis.spec, plan.basis.taken.to_share(plan.basis.spec) or 0
    if not plan.basis.on_gpu or spec.training.parallelism is Parallelism.DDP or in_8_bits(plan.settings.quantization):
        return
    for gpus in _GPUS:
        estimate = plan.if_spread(gpus) if gpus > device.devices and not shared % (gpus * device.nodes) else None
        if estimate and device.memory_bytes and estimate.fits(device.memory_bytes):
            yield recreate(f"Set resources.gpus to {gpus}", "resources.gpus")
            return


def _shorter(plan: TrainingPlan) -> int | None:
    """Return about the largest maxLength with which a plan of one row fits; None where no row worth having does."""
    if not _fits(_cut(plan, _SHORTEST)):
        return None
    fits, not_any_more = _SHORTEST, plan.row_length
    for _ in range(_HALVINGS):
        middle = 8 * (math.isqrt(fits * not_any_more) // 8)
        fits, not_any_more = (middle, not_any_more) if _fits(_cut(plan, middle)) else (fits, middle)
    return fits


def _cut(plan: TrainingPlan, length: int) -> TrainingPlan | None:
    return plan.of_another(_changed(plan.basis.spec, max_length=length), plan.settings.method)


def _fits(plan: TrainingPlan | None) -> bool:
    return plan is not None and plan.memory is not None and plan.fits


def _changed(spec: LoRAJobSpec, **training: Any) -> LoRAJobSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update=training)})

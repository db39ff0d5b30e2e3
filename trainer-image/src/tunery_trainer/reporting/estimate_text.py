"""What a job would take, for people and for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any, Final

from tunery_api.training import Precision
from tunery_trainer.settings.look import Estimated
from tunery_trainer.settings.memory import ALLOCATOR_SLACK, ContainerMemory, MemoryEstimate, usable
from tunery_trainer.settings.parallelism import PARALLELISM, parallelism_of, told_of_devices
from tunery_trainer.settings.types import SettingSource
from tunery_trainer.settings.units import compared, human_bytes

_WIDTH: Final = 120
_MINUTE, _HOUR = 60, 3600
_PARTS: Final = {
    "weights_bytes": "base weights",
    "adapter_bytes": "adapter",
    "gradients_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "activations_bytes": "activations",
    "workspace_bytes": "head and workspace",
    "overhead_bytes": "process",
    "slack_bytes": "allocator's slack",
}


def as_json(found: Estimated, rate: float | None) -> dict[str, Any]:
    """Return it for programs: the names of status.estimate, and bytes of each device.

    `rate` is in tokens a second of all devices, where it is known.
    """
    training = found.settings.training
    parts = found.memory.in_parts(found.steps, found.tokens).to_json_dict()
    return {
        "model": found.model,
        "parameters": found.parameters,
        "precision": training.precision.value,
        "method": found.settings.method.value,
        "methodReason": found.settings.method_reason,
        "rank": found.settings.adapter.rank or None,
        "targetModules": list(found.targets),
        "trainableParameters": found.trained,
        "leftOut": found.left_out,
        "quantization": found.settings.quantization.type.value if found.settings.quantization else None,
        "devices": found.device.world,
        "nodes": found.device.nodes,
        "parallelism": parallelism_of(sharded=training.sharded, devices=found.device.world),
        "batchSize": training.batch_size,
        "gradientAccumulation": training.gradient_accumulation,
        "gradientCheckpointing": training.gradient_checkpointing,
        "rowTokens": found.memory.length,
        "rows": found.rows,
        "seconds": found.seconds(rate),
        "containerBytes": found.container.needed if found.container else None,
        "containerAvailableBytes": found.container.asked if found.container else None,
        "fits": found.fits,
        "changes": list(found.changes),
        "memory": found.memory.to_status(found.available).to_json_dict(),
        "estimate": parts,
        "maxLength": training.max_length,
        "table": [
            {
                "method": line.method,
                "quantization": line.quantization or None,
                "totalBytes": line.total_bytes,
                "largestBatch": dict(line.largest),
                "spreadOn": [name for name in line.largest if name in line.spread],
            }
            for line in found.table
        ],
    }


def as_text(found: Estimated, rate: float | None) -> str:
    """Return it for people, in lines of at most 120 characters, but for a longer URI; `rate` in tokens a second."""
    return "\n".join([*_head(found, rate), "", *_parts(found), "", *_table(found)])


def _head(found: Estimated, rate: float | None) -> Iterable[str]:
    settings, training = found.settings, found.settings.training
    quantised = f" on {settings.quantization.type.value}" if settings.quantization else ""
    size = _parameters(found.parameters)
    # Which CPU it will be is not known: of the two the one that takes more is counted.
    known = found.on_gpu or _asked(found, "training.precision") or training.precision is Precision.BFLOAT16
    or_less = "" if known else ", or BFloat16 where the CPU has it"
    yield from _said("Model", f"{found.model}, {size} parameters, computed in {training.precision}{or_less}")
    yield from _said("Method", f"{settings.method.value}{quantised}. {settings.method_reason}")
    yield from _said("Adapter", _adapter(found))
    if found.device.world > 1:
        # No node gives several processes its CPU otherwise.
        simulated = " They are simulated (TUNERY_SIMULATED_DEVICES)." if found.device.sharing > 1 else ""
        yield from _said("Devices", f"{told_of_devices(found.settings, found.device)}{simulated}")
    if found.container is not None:
        yield from _said("Container", _container(found, found.container))
    if found.left_out:
        yield from _said("Left out", f"{found.left_out}.")
    yield from _said("Batch", _batch(found))
    yield from _said("Data", _data(found))
    seconds = found.seconds(rate)
    if seconds is not None:
        together = f" of all {found.device.words} together" if found.device.world > 1 else ""
        yield from _said("Time", f"{_duration(seconds)} at {rate:g} tokens a second{together}")
    elif rate is not None:
        yield from _said("Time", "not known: the data was not read")


def _asked(found: Estimated, name: str) -> bool:
    """Say whether it is the manifest that sets a setting."""
    return any(each.name == name and each.source == SettingSource.MANIFEST for each in found.settings.values)


def _container(found: Estimated, container: ContainerMemory) -> str:
    """Return what the container's own memory is for, and whether it is enough."""
    default = " (the default)" if found.by_default else ""
    needed, asked = compared(container.needed, container.asked)
    there = f"about {needed} of resources.memory, which is {asked}{default}"
    fits = "" if container.fits else f". It does not fit: {container.enough}."
    return f"{there}: before the base is spread each process quantises it there{fits}"


def _batch(found: Estimated) -> str:
    """Return how many rows a pass has, what each is counted with, and why so many tokens; how many make a step."""
    training = found.settings.training
    rows = _counted(training.batch_size, "packed sequence" if found.packed else "row")
    why = "as maxLength allows" if found.capped else "as the longest row has"
    kept = "recomputed" if training.gradient_checkpointing else "kept"
    shared = ""
    if found.device.world > 1:
        shared = f"; {training.gradient_accumulation} passes of all devices make a step"
    return f"{rows} of {found.memory.length} tokens, {why}; activations {kept}{shared}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _said(what: str, text: str) -> list[str]:
    """Return a line, or several where it is long: nothing is cut off."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{what:<10}",
        subsequent_indent=" " * 10,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _duration(seconds: float) -> str:
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} hours"
    return f"{seconds / _MINUTE:.1f} minutes" if seconds >= _MINUTE else f"{seconds:.0f} seconds"


def _parameters(count: int) -> str:
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if count >= size:
            return f"{count / size:.3g}{word}"
    return f"{count:,}"


def _adapter(found: Estimated) -> str:
    adapter, prompt = found.settings.adapter, found.settings.prompt
    parts = [f"rank {adapter.rank}"] if adapter.rank else []
    parts += [f"{prompt.virtual_tokens} virtual tokens"] if prompt else []
    parts += [f"on {', '.join(found.targets)}"] if found.targets else []
    return f"{' '.join(parts)}; {found.trained:,} parameters are trained"


def _data(found: Estimated) -> str:
    read = _counted(found.rows, "row") if found.rows is not None else "not read; rows taken to be of maxLength"
    steps = f", {_counted(found.steps, 'step')}" if found.steps is not None else ""
    return read + steps + (f", about {_counted(found.tokens, 'token')}" if found.tokens is not None else "")


def _parts(found: Estimated) -> Iterable[str]:
    parts = found.memory.in_parts()
    for name, text in _PARTS.items():
        yield f"  {text:<20}{human_bytes(getattr(parts, name)):>10}"
    available = found.available
    whose = "" if found.on_gpu else "resources.memory: "
    default = " (the default)" if found.by_default and not found.on_gpu else ""
    sharing = found.device.sharing
    amounts = [each * sharing for each in (found.memory.total, *((available, usable(available)) if available else ()))]
    total, *there = compared(*amounts)
    each = f" of each {'GPU' if found.on_gpu else 'node'}" if found.device.world > sharing else ""
    told = f" of {whose}{there[0]}{each}{default}, {there[1]} of them counted on" if there else ""
    if sharing > 1:
        yield f"  {'together':<20}{human_bytes(found.memory.total):>10} of each process"
    yield f"  {f'of {sharing} processes' if sharing > 1 else 'together':<20}{total:>10}{told}"
    yield f"  {'one more row':<20}{human_bytes(parts.row_bytes or 0):>10}"
    if available and not found.memory.fits(available):
        what = _what_fits(found.memory, available, found.change)
        yield from textwrap.wrap(f"It does not fit: {what}.", _WIDTH, break_on_hyphens=False)


def _what_fits(memory: MemoryEstimate, available: int, change: str | None) -> str:
    largest = memory.largest_batch(available)
    if change:
        return change if largest else f"not even one row does; {change}"
    shorter = int(memory.length * memory.share_of_length(available))
    return "not even one row does" + (f", but one of {shorter} tokens would" if shorter else "")


def _table(found: Estimated) -> Iterable[str]:
    names = list(found.table[0].largest) if found.table else []
    length = found.settings.training.max_length
    yield f"The largest batch of rows of {length} tokens that fits, by GPU and its GB; - where not even one row does:"
    for part, first in enumerate((("method", "base", "one row"), ("", "", ""))):
        yield _line(*first, [name.split()[part] for name in names])
    for line in found.table:
        cells = [_cell(size, spread=name in line.spread) for name, size in line.largest.items()]
        yield _line(line.method, line.quantization or "16 bits", human_bytes(line.total_bytes), cells)
    gpus = f"the {found.device.devices} GPUs of a node"
    if any(line.spread for line in found.table):
        yield f"* with the base spread over {gpus} (FSDP), as the whole of it does not fit; one row is with the whole."
    elif found.on_gpu and found.device.devices > 1 and _asked(found, PARALLELISM):
        yield f"The base is spread over {gpus}." if found.settings.training.sharded else "Each GPU has the whole base."
    yield f"Activations are recomputed, {ALLOCATOR_SLACK:.0%} are slack of the allocator. FP4 takes what NF4 takes."
    yield "Where training.optimizer is open it is AdamW here; a job that would not fit so takes PagedAdamW8bit."


def _cell(size: int | None, *, spread: bool) -> str:
    return "-" if size is None else f"{size}*" if spread else str(size)


def _line(method: str, base: str, total: str, cells: Iterable[str]) -> str:
    return f"{method:<13}{base:<11}{total:>10}" + "".join(f"{cell:>8}" for cell in cells)

"""Several adapters into one, module by module, from their safetensors files alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from tunery_api.adaptermerge import MergeMethod
from tunery_api.manifest import CONFIG_FILE, WEIGHTS_FILE
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate
from tunery_common.errors import TuneryError
from tunery_common.inputs.misfit import PREFIX
from tunery_trainer.merging import full_tensors
from tunery_trainer.merging.adapter_config import ModuleRank, ia3_config, lora_config
from tunery_trainer.merging.adapter_files import Adapter, Module
from tunery_trainer.merging.chosen_rank import Spectrum, cut, smallest_rank, spectrum_of
from tunery_trainer.merging.compatibility import check_tensors
from tunery_trainer.merging.deltas import Delta, Factored, Options
from tunery_trainer.merging.files import LocalFiles
from tunery_trainer.merging.methods import is_exact, merge, result_rank
from tunery_trainer.merging.safetensors_stream import Layout, Writer, read_header, read_tensor

_CANCELLED: Final = 1e-7
"""Of a product of matrices, relative to its factors: what is smaller is the rounding of a zero in float32."""


@dataclass(frozen=True, slots=True)
class Combined:
    """What came out of a merge of adapters."""

    rank: int = 0
    """The largest rank of a module; 0 for IA3."""
    errors: dict[str, float] = field(default_factory=dict)
    """By module: the relative error (Frobenius) that the asked rank costs."""

    @property
    def max_error(self) -> float:
        return max(self.errors.values(), default=0.0)

    @property
    def mean_error(self) -> float:
        return sum(self.errors.values()) / len(self.errors) if self.errors else 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """One module of the result: the inputs' modules that go into it, and its rank, which is known beforehand."""

    name: str
    inputs: list[tuple[Adapter, Module]]
    rank: int
    """The largest that it may become, where it was left open."""
    shape: tuple[int, int]
    """(out, in)"""
    exact: bool
    """True where that rank holds the merge without any loss."""

    @property
    def embedding(self) -> bool:
        return self.inputs[0][1].embedding

    def deltas(self) -> list[Delta]:
        """Read the factors of all inputs."""
        return [read_delta(adapter, module) for adapter, module in self.inputs]


def combine(
    adapters: Sequence[Adapter], method: MergeMethod, options: Options, target: Path, dtype: torch.dtype
) -> Combined:
    """Write adapter_model.safetensors and adapter_config.json of the merged adapter into `target`.

    Holds one module's factors and, for the methods that need it, one dense delta in float32. Where the rank is left
    open and costs something, what is merged lies beside `target` until the rank is known.
    Raises TuneryError: InvalidSpec where shapes disagree, AdapterCorrupt for a tensor that is not finite.
    """
    check_tensors(adapters)
    if adapters[0].peft_type == "IA3":
        return _combine_scales(adapters, target, dtype)
    parts = list_parts(adapters, method, options)
    lora_bias = any(adapter.config.get("lora_bias") for adapter in adapters)
    if all(part.exact for part in parts) or options.rank is not None:
        merged: Iterator[Factored] = (merge(method, part.deltas(), options) for part in parts)
        return _write(Job(adapters, parts, target, dtype, lora_bias=lora_bias), merged)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        spilled = Spill(Path(folder), method, parts, options)
        fitting = [replace(part, rank=part.rank if part.exact else min(part.rank, spilled.rank)) for part in parts]
        job = Job(adapters, fitting, target, dtype, lora_bias=lora_bias)
        return _write(job, spilled.results(fitting))


@dataclass(frozen=True, slots=True)
class Job:
    """What is written, and where."""

    adapters: Sequence[Adapter]
    parts: Sequence[Part]
    target: Path
    dtype: torch.dtype
    lora_bias: bool


def _write(job: Job, results: Iterator[Factored]) -> Combined:
    """Write the merged adapter; `results` are those of the job's parts, in order."""
    layouts = [layout for part in job.parts for layout in _layouts(part, job.dtype, lora_bias=job.lora_bias)]
    ranks: dict[str, ModuleRank] = {}
    errors: dict[str, float] = {}
    full = full_tensors.layouts(job.adapters, job.dtype)
    nothing = not full
    with Writer(job.target / WEIGHTS_FILE, layouts + full) as writer:
        for part, merged in zip(job.parts, results, strict=True):
            ranks[part.name] = (part.rank, merged.scaling * part.rank)
            errors[part.name] = merged.error
            nothing = nothing and _is_zero(merged)
            writer.write(merged.a.to(job.dtype))
            writer.write(merged.b.to(job.dtype))
            if job.lora_bias and not part.embedding:
                writer.write(_merged_bias(part, merged).to(job.dtype))
        full_tensors.write(job.adapters, writer, job.dtype)
    if nothing:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            "spec.adapters: what is merged is zero everywhere, and would change nothing",
            recreate("Change weights that cancel, or a density that keeps nothing", "adapters[].weight", "density"),
        )
    write_config(job.target, lora_config(job.adapters, ranks, lora_bias=job.lora_bias))
    return Combined(max((part.rank for part in job.parts), default=0), errors)


def _is_zero(merged: Factored) -> bool:
    """Tell whether B·A is zero but for rounding: in an exact sum, parts that cancel stand side by side."""
    a, b = merged.a.double(), merged.b.double()
    squared = ((b.T @ b) * (a @ a.T)).sum()
    return bool(squared <= _CANCELLED**2 * a.square().sum() * b.square().sum())


class Spill:
    """Merged deltas at the largest rank that an open one may become, on the disk until it is known which it is.

    They are computed once, and no more than one of them is in memory.
    """

    def __init__(self, folder: Path, method: MergeMethod, parts: Sequence[Part], options: Options) -> None:
        layouts = [layout for part in parts for layout in _layouts(part, torch.float32, lora_bias=False)]
        spectra: list[Spectrum] = []
        self._details: list[tuple[float, float]] = []
        with Writer(folder / WEIGHTS_FILE, layouts) as writer:
            for part in parts:
                merged = merge(method, part.deltas(), options)
                if not part.exact:
                    spectra.append(spectrum_of(merged))
                self._details.append((merged.scaling, merged.error))
                writer.write(merged.a)
                writer.write(merged.b)
        floor = max(adapter.rank(module) for part in parts for adapter, module in part.inputs)
        self.rank = smallest_rank(spectra, floor, max(part.rank for part in parts if not part.exact))
        self._files = LocalFiles(folder)

    def results(self, fitting: Sequence[Part]) -> Iterator[Factored]:
        """Yield the merged deltas again, each at the rank that its part has now."""
        infos = list(read_header(self._files, WEIGHTS_FILE).values())
        for index, (part, (scaling, error)) in enumerate(zip(fitting, self._details, strict=True)):
            a, b = (read_tensor(self._files, info) for info in infos[2 * index : 2 * index + 2])
            merged = Factored(a, b, scaling, error)
            yield merged if part.exact else cut(merged, part.rank)


def list_parts(adapters: Sequence[Adapter], method: MergeMethod, options: Options) -> list[Part]:
    """List the modules of the result; one that an adapter lacks has no change by it."""
    inputs: dict[str, list[tuple[Adapter, Module]]] = {}
    for adapter in adapters:
        for name, module in adapter.modules.items():
            if module.factors and adapter.rank(module) > 0:
                inputs.setdefault(name, []).append((adapter, module))
    return [_part(name, found, method, options) for name, found in inputs.items()]


def read_delta(adapter: Adapter, module: Module) -> Delta:
    """Read the factors of one module of one adapter."""
    a, b = adapter.a(module), adapter.b(module)
    return Delta(module.name, adapter.sha256, adapter.weight, a, b, adapter.scaling(module))


def write_config(target: Path, config: dict[str, Any]) -> None:
    """Write adapter_config.json."""
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _part(name: str, inputs: list[tuple[Adapter, Module]], method: MergeMethod, options: Options) -> Part:
    adapter, module = inputs[0]
    a, b = (adapter.tensors[key].shape for key in module.factors or ())
    shape = (b[0], a[1])
    ranks = [adapter.rank(module) for adapter, module in inputs]
    rank = result_rank(method, ranks, shape, options.rank)
    return Part(name, inputs, rank, shape, is_exact(method, ranks, options.rank))


def _layouts(part: Part, dtype: torch.dtype, *, lora_bias: bool) -> list[Layout]:
    a, b = ("lora_embedding_A", "lora_embedding_B") if part.embedding else ("lora_A.weight", "lora_B.weight")
    layouts = [
        Layout(f"{PREFIX}{part.name}.{a}", dtype, (part.rank, part.shape[1])),
        Layout(f"{PREFIX}{part.name}.{b}", dtype, (part.shape[0], part.rank)),
    ]
    if lora_bias and not part.embedding:
        layouts.append(Layout(f"{PREFIX}{part.name}.lora_B.bias", dtype, (part.shape[0],)))
    return layouts


def _merged_bias(part: Part, merged: Factored) -> torch.Tensor:
    """Return Σ weight·scaling·bias, divided by the scaling that PEFT is going to multiply it with."""
    bias = torch.zeros(part.shape[0])
    for adapter, module in part.inputs:
        key = module.keys.get("lora_B.bias")
        if key is not None:
            factor = adapter.weight * adapter.scaling(module) / merged.scaling
            bias.add_(adapter.read(key).float(), alpha=factor)
    return bias


def _combine_scales(adapters: Sequence[Adapter], target: Path, dtype: torch.dtype) -> Combined:
    """Merge IA3 adapters: 1 + Σ weight·(l - 1), the weighted sum of the true deltas W·(l - 1)."""
    keys = {module.keys["ia3_l"]: name for adapter in adapters for name, module in adapter.modules.items()}
    shapes = {key: adapter.tensors[key].shape for adapter in adapters for key in keys if key in adapter.tensors}
    layouts = [Layout(key, dtype, shapes[key]) for key in keys]
    with Writer(target / WEIGHTS_FILE, layouts + full_tensors.layouts(adapters, dtype)) as writer:
        for key in keys:
            writer.write(merged_scale(adapters, key, shapes[key]).to(dtype))
        full_tensors.write(adapters, writer, dtype)
    write_config(target, ia3_config(adapters, list(keys.values())))
    return Combined()


def merged_scale(adapters: Sequence[Adapter], key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return 1 + Σ weight·(l - 1) of one IA3 scale; an adapter without it has the scale 1."""
    scale = torch.ones(shape)
    for adapter in adapters:
        if key in adapter.tensors:
            scale.add_(adapter.read(key).float() - 1, alpha=adapter.weight)
    return scale

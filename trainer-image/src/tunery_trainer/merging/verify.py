"""A result is read back from its files and compared with its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from tunery_api.adaptermerge import MergeMethod
from tunery_api.methods import ComputeType
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.merging.adapter_files import Adapter, open_adapter
from tunery_trainer.merging.base_model import EMBEDDINGS
from tunery_trainer.merging.combine import Combined, list_parts, merged_scale, read_delta
from tunery_trainer.merging.deltas import Delta, Options, blocks
from tunery_trainer.merging.edit_plan import Edit
from tunery_trainer.merging.files import LocalFiles
from tunery_trainer.merging.merged_blocks import Context, merged_blocks
from tunery_trainer.merging.methods import METHODS
from tunery_trainer.merging.quantized import Quantization
from tunery_trainer.merging.safetensors_stream import read_header, read_rows, read_tensor
from tunery_trainer.model.quantization import bitsandbytes_config
from tunery_trainer.settings.types import QuantizationSettings

TOLERANCE: Final = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative errors that rounding to a type explains, for weights."""
LOGITS_TOLERANCE: Final = 0.05
"""Relative error of logits that rounding of 16-bit weights and quantised arithmetic explain."""
TOKENS: Final = 64
"""Length of the fixed input that logits are compared on."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the written result is from what its inputs say."""

    max_error: float
    """Largest relative error."""
    method: str
    """What was compared."""


def verify_adapter(
    folder: Path, adapters: Sequence[Adapter], method: MergeMethod, options: Options, combined: Combined
) -> Verification:
    """Compare the change that each written module makes with the method's, computed anew from the inputs.

    Raises TuneryError(InternalError) where the error is larger than what the rank costs and rounding explains.
    """
    written = open_adapter(LocalFiles(folder))
    if written.peft_type == "IA3":
        return _verify_scales(written, adapters)
    worst = 0.0
    for part in list_parts(adapters, method, options):
        target = METHODS[method](part.deltas(), options)
        error = relative_error(read_delta(written, written.modules[part.name]), target)
        tolerance = TOLERANCE[written.tensors[_factor_key(written, part.name)].dtype]
        if error > combined.errors[part.name] + tolerance:
            raise _wrong(f"{part.name} is off by {error:.3g}, its rank explains {combined.errors[part.name]:.3g}")
        worst = max(worst, error)
    return Verification(worst, f"written deltas against {method.value} of the {len(adapters)} inputs' deltas")


def relative_error(delta: Delta, target: torch.Tensor) -> float:
    """Return |delta - target| / |target| (Frobenius), without a second dense matrix."""
    distance = scale = 0.0
    for start, stop in blocks(delta.shape):
        rows = target[start:stop].double()
        distance += float((delta.rows(start, stop).double() - rows).square().sum())
        scale += float(rows.square().sum())
    return math.sqrt(distance / scale if scale else distance)


def verify_shard(path: Path, edits: Sequence[Edit], context: Context) -> float:
    """Return the largest relative error of a written shard against its tensors computed anew."""
    files = LocalFiles(path.parent)
    infos = read_header(files, path.name)
    worst = 0.0
    for edit in edits:
        start, info = 0, infos[edit.name]
        for block in merged_blocks(edit, context):
            written = read_tensor(files, info) if not info.shape else read_rows(files, info, start, start + len(block))
            start += len(block) if info.shape else 0
            worst = max(worst, _relative(written, block))
        if worst > TOLERANCE.get(info.dtype, 0.0):
            raise _wrong(f"{edit.name} in {path.name} is off by {worst:.3g}")
    return worst


def verify_logits(base: Path, adapter: Adapter, merged: Path, quantization: Quantization | None) -> Verification:
    """Compare the logits of the merged model with those of base + adapter, on fixed tokens, in float32.

    Loads one model after the other; all three lie in local folders.
    Raises TuneryError(InternalError) where they differ by more than rounding explains.
    """
    expected = _logits(base, adapter, quantization)
    actual = _logits(merged, None, None)
    error = _relative(actual, expected)
    if not error <= LOGITS_TOLERANCE:
        raise _wrong(f"the logits are off by {error:.3g}")
    held = f"{quantization.type.value} base" if quantization else "base"
    return Verification(error, f"logits of the merged model against {held} + adapter, {TOKENS} tokens")


def _verify_scales(written: Adapter, adapters: Sequence[Adapter]) -> Verification:
    worst = 0.0
    for module in written.modules.values():
        key = module.keys["ia3_l"]
        expected = merged_scale(adapters, key, written.tensors[key].shape)
        worst = max(worst, _relative(written.read(key), expected))
        if worst > TOLERANCE[written.tensors[key].dtype]:
            raise _wrong(f"{module.name} is off by {worst:.3g}")
    return Verification(worst, f"written IA3 scales against those of the {len(adapters)} inputs")


@torch.no_grad()
def _logits(folder: Path, adapter: Adapter | None, quantization: Quantization | None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoConfig

    from tunery_trainer.model.language_part import auto_class

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = auto_class(config).from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=quantization_config(quantization),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    if adapter is not None:
        rows = embedding_rows(adapter)
        if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        model = PeftModel.from_pretrained(model, str(adapter_folder(adapter)))
    tokens = (torch.arange(TOKENS) * 37 + 11) % model.config.get_text_config().vocab_size
    logits: torch.Tensor = model.eval()(input_ids=tokens[None]).logits
    return logits.float()


def adapter_folder(adapter: Adapter) -> Path:
    """Return the local folder of an adapter; raises TypeError where it lies elsewhere."""
    if not isinstance(adapter.files, LocalFiles):
        raise TypeError(f"{adapter.label} is not on the disk")
    return adapter.files.folder


def embedding_rows(adapter: Adapter) -> int | None:
    """Return the size of the vocabulary that the adapter brings, if it does."""
    ends = tuple(f"{name}.weight" for name in EMBEDDINGS)
    return next((adapter.tensors[key].shape[0] for name, key in adapter.full.items() if name.endswith(ends)), None)


def quantization_config(quantization: Quantization | None) -> Any:
    """Return transformers' configuration of a base quantised so, computed in float32; None for a plain one."""
    if quantization is None:
        return None
    return bitsandbytes_config(QuantizationSettings(quantization.type, quantization.double, ComputeType.FLOAT32))


def _factor_key(adapter: Adapter, name: str) -> str:
    keys = adapter.modules[name].factors
    return keys[0] if keys else next(iter(adapter.tensors))


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    scale = float(expected.double().norm())
    distance = float((actual.double() - expected.double()).norm())
    return distance / scale if scale else distance


def _wrong(what: str) -> TuneryError:
    return TuneryError(FailureReason.INTERNAL_ERROR, f"the merged result does not match its inputs: {what}")

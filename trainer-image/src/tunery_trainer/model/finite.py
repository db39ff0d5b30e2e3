"""Values in files of weights that are no number: looked for where a loss is none, as that takes a pass over all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.weight_files import check_weight_files, local_files

_BLOCK: Final = 1 << 24
"""Elements that are looked at at once."""


class NotFinite(NamedTuple):
    """A tensor that has NaN or infinity."""

    file: str
    tensor: str
    value: str
    """`NaN`, or `infinity` where there is no NaN in the part that was looked at."""

    def __str__(self) -> str:
        return f"{self.tensor} in {self.file} holds {self.value}"


def not_finite_base(folder: Path) -> TuneryError | None:
    """Return the failure that the weights of the model in `folder` hold values that are no number.

    None where none do, and where the files cannot be read any more, which is no answer to what went wrong before.
    """
    try:
        files = check_weight_files(local_files(folder))
        found = next((bad for name in files if (bad := not_finite(folder / name))), None)
    except (OSError, SafetensorError, TuneryError):
        return None
    if found is None:
        return None
    return TuneryError(
        FailureReason.MODEL_UNSUPPORTED,
        f"spec.model.uri: {found}, so that no loss can be computed with this base",
        retry(f"Fetch {found.file} again from where the model comes, and replace this one"),
        recreate("If it is the same there, name another model", "model.uri"),
    )


def not_finite(file: Path) -> NotFinite | None:
    """Return the first tensor of a safetensors file, by name, that has NaN or infinity; None: all is finite."""
    with safe_open(file, framework="pt") as opened:
        for name in sorted(opened.keys()):
            value = _value(opened.get_slice(name))
            if value:
                return NotFinite(file.name, name, value)
    return None


def _value(part: Any) -> str | None:
    """Return what of the tensor is no number, read in blocks along its first dimension."""
    if not part.get_dtype().startswith(("F", "BF")):
        return None
    shape = part.get_shape()
    if not shape:
        return _first(part[...])
    rows = max(1, _BLOCK // max(1, torch.Size(shape[1:]).numel()))
    blocks = (part[start : start + rows] for start in range(0, shape[0], rows))
    return next((value for block in blocks if (value := _first(block))), None)


def _first(block: torch.Tensor) -> str | None:
    if block.dtype.itemsize == 1:
        block = block.float()
    if bool(block.isfinite().all()):
        return None
    return "NaN" if bool(block.isnan().any()) else "infinity"

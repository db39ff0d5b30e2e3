"""Counting what a pass holds, once for each model and pass: most of a test session's estimates ask the same again.

The same tiny models are planned for in hundreds of tests, by every method, and a pass on the meta device takes a tenth
of a second. What is given back was counted by the product's own `count`, in this session.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from torch import nn

from tunery_trainer.model.live_bytes import Counted, Pass

Count = Callable[[Any, nn.ModuleList, Pass], Counted]

_PLACES: Final = ("_name_or_path", "base_model_name_or_path")
"""Where a model lies, which each test has a folder of its own for."""


def counted_once(count: Count, folder: Path | None = None) -> Count:
    """Return `count`, which remembers, in `folder` for other processes, too; what raises is asked again."""
    known: dict[Hashable, Counted] = {}

    def counting(model: Any, layers: nn.ModuleList, how: Pass) -> Counted:
        key = question(model, layers, how)
        if key not in known:
            known[key] = _stored(folder, key) or count(model, layers, how)
            _store(folder, key, known[key])
        return known[key]

    return counting


def _stored(folder: Path | None, key: Hashable) -> Counted | None:
    with suppress(OSError):
        return Counted(**json.loads(_file(folder, key).read_bytes())) if folder else None
    return None


def _store(folder: Path | None, key: Hashable, counted: Counted) -> None:
    if folder is not None:
        with NamedTemporaryFile("w", dir=folder, delete=False) as file:
            json.dump(asdict(counted), file)
        Path(file.name).rename(_file(folder, key))


def _file(folder: Path, key: Hashable) -> Path:
    return folder / sha256(repr(key).encode()).hexdigest()


def question(model: Any, layers: nn.ModuleList, how: Pass) -> Hashable:
    """Return all that a count depends on: modules, parameters, configurations, the pass, and how weights are stored."""
    stored, decoder = how.quantized or {}, {id(layer) for layer in layers}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return (
        repr(model),
        tuple((name, each.shape, each.dtype, each.requires_grad, stored.get(id(each))) for name, each in tensors),
        tuple(module.training for module in model.modules()),
        tuple(path for path, module in model.named_modules() if id(module) in decoder),
        _text(model.config.to_dict()),
        *(_text(config.to_dict()) for config in model.peft_config.values()),
        tuple(getattr(how, field.name) for field in fields(how) if field.name != "quantized"),
    )


def _text(config: dict[str, Any]) -> str:
    return repr({name: value for name, value in config.items() if name not in _PLACES})

"""Merges of folders as a manifest asks for them, run in this process; and what is changed in a folder beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunery_api.runspec import RunSpec
from tunery_common.errors import TuneryError
from tunery_trainer.local import load_run_spec
from tunery_trainer.tasks.merge import run_merge

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Change = Callable[[Path], None]


def merge_of(folder: Path, *adapters: Path | str | dict[str, Any], **spec: Any) -> RunSpec:
    """Return the run of a merge of these adapters into `folder`/out."""
    entries = [item if isinstance(item, dict) else {"uri": _uri(item)} for item in adapters]
    body = {"adapters": entries, "output": {"uri": (folder / "out").as_uri()}, **spec}
    kind = {"apiVersion": "tunery.dev/v1alpha1", "kind": "AdapterMerge", "metadata": {"name": "merge"}}
    path = folder / "merge.yaml"
    path.write_text(json.dumps({**kind, "spec": body}))
    return load_run_spec(path, folder / "work", None)


def _uri(place: Path | str) -> str:
    return place.as_uri() if isinstance(place, Path) else place


def refusal(run: RunSpec) -> TuneryError:
    """Return why a merge is refused, which leaves nothing at its output and says what to do."""
    with pytest.raises(TuneryError) as caught:
        run_merge(run)
    assert caught.value.remedies
    assert not [path for path in Path(run.work_dir).parent.glob("out/*") if path.is_file()]
    return caught.value


def written(name: str, content: bytes | str) -> Change:
    """Have a file of the folder hold this."""
    return lambda folder: (
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content) and None
    )


def said(**changes: Any) -> Change:
    """Have the configuration say something else; `...` takes a field away."""

    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))

    return change


def held(change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Change:
    """Have the weights be others."""

    def write(folder: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in change(load_file(folder / WEIGHTS)).items()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return write


def without(*words: str) -> Change:
    """Take the tensors away whose names have one of these in them."""
    return held(lambda found: {name: t for name, t in found.items() if not any(word in name for word in words)})


def beside(**shapes: tuple[int, ...]) -> Change:
    """Add tensors of ones; `__` stands for a dot in their names."""
    return held(lambda found: found | {name.replace("__", "."): torch.ones(size) for name, size in shapes.items()})

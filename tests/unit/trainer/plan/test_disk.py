"""The disk that a run is said to take."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tunery_common.inputs.location import DataFiles, FetchedDataset
from tunery_trainer.data import arrange, seen_rows, store
from tunery_trainer.plan import disk

from kit.training import spec_of


def data_bytes(rows: int, examples: int) -> int:
    """Return what the data takes where so many rows of no tokens lie outside of the work volume."""
    basis = SimpleNamespace(
        spec=spec_of({"method": "LoRA"}), base=SimpleNamespace(folder=Path("/models"), weight_bytes=0)
    )
    report = SimpleNamespace(rows=rows, evaluation_rows=0, tokens=SimpleNamespace(tokens=0, examples=examples))
    plan: Any = SimpleNamespace(basis=basis, data=report, trainable_parameters=0)
    return disk.estimate_disk(Path("/work"), plan, DataFiles(FetchedDataset(Path("/data"), ""))).data


def test_what_is_noted_of_rows_is_counted() -> None:
    """Twice a record that finds equal rows, and of an example where it stands and where its two texts lie at most."""
    a_row = 2 * seen_rows._ROW.itemsize
    an_example = arrange._EXAMPLE.itemsize + 2 * store._TEXT.itemsize
    assert data_bytes(0, 0) == 0
    assert data_bytes(1000, 1000) == 1000 * (a_row + an_example)
    assert data_bytes(1000, 3000) == 1000 * a_row + 3000 * an_example

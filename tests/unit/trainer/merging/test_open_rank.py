"""A rank that is left open: the smallest that holds nearly all of the merge, no more than servers load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tunery_api.adaptermerge import OPEN_RANK_ERROR, MergeMethod
from tunery_trainer.merging import combine as combine_module
from tunery_trainer.merging import methods
from tunery_trainer.merging.adapter_files import open_adapter
from tunery_trainer.merging.combine import Combined, combine, read_delta
from tunery_trainer.merging.deltas import Delta, Options
from tunery_trainer.merging.files import LocalFiles
from tunery_trainer.merging.verify import verify_adapter

from kit.adapters import deltas64, factors, relative, write_adapter

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")
SHAPES = ((96, 64), (160, 64))


def written(folder: Path, ranks: Sequence[int], shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Path]:
    """Write adapters of these ranks on two modules."""
    made = []
    for index, rank in enumerate(ranks):
        pairs = zip(NAMES, shapes, strict=True)
        modules = {name: factors(rank, *shape, seed=10 * index + i) for i, (name, shape) in enumerate(pairs)}
        made.append(write_adapter(folder / f"in-{index}", modules))
    return made


def merged(target: Path, inputs: Sequence[Path], method: MergeMethod, options: Options | None = None) -> Combined:
    adapters = [open_adapter(LocalFiles(folder), 1.0) for folder in inputs]
    target.mkdir()
    options = options or Options()
    result = combine(adapters, method, options, target, torch.float32)
    assert verify_adapter(target, adapters, method, options, result).max_error == pytest.approx(
        result.max_error, abs=1e-5
    )
    return result


def best_errors(inputs: Sequence[Path], method: MergeMethod, rank: int) -> list[float]:
    """The error of the best approximation (Eckart, Young 1936) of each module's dense merge."""
    adapters = [open_adapter(LocalFiles(folder), 1.0) for folder in inputs]
    found = []
    for name in NAMES:
        parts: list[Delta] = [read_delta(adapter, adapter.modules[name]) for adapter in adapters]
        squares = torch.linalg.svdvals(methods.METHODS[method](parts, Options()).double()).square()
        found.append(float((squares[rank:].sum() / squares.sum()).sqrt()))
    return found


@pytest.mark.parametrize("method", ["TIES", "DARETIES", "DARELinear", "MagnitudePrune"])
def test_it_is_the_smallest_that_no_module_loses_much_at(tmp_path: Path, method: str) -> None:
    inputs, way = written(tmp_path, (6, 4)), MergeMethod(method)
    result = merged(tmp_path / "out", inputs, way)
    assert 6 < result.rank < 64
    assert max(best_errors(inputs, way, result.rank)) <= OPEN_RANK_ERROR
    assert max(best_errors(inputs, way, result.rank - 1)) > OPEN_RANK_ERROR
    assert [result.errors[n] for n in NAMES] == pytest.approx(best_errors(inputs, way, result.rank), rel=1e-3)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (result.rank, {}), "one rank, which is all that servers read"


def test_what_lies_on_the_disk_meanwhile_is_removed(tmp_path: Path) -> None:
    merged(tmp_path / "out", written(tmp_path, (6, 4)), MergeMethod.TIES)
    assert {path.name for path in tmp_path.iterdir()} == {"in-0", "in-1", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_it_is_no_less_than_the_inputs(tmp_path: Path) -> None:
    inputs = written(tmp_path, (12,))
    result = merged(tmp_path / "out", inputs, MergeMethod.TIES, Options(Fraction(1)))
    assert result.rank == 12
    before, after = deltas64(inputs[0]), deltas64(tmp_path / "out")
    assert max(relative(after[name], before[name]) for name in before) <= 1e-6


def test_it_is_no_more_than_servers_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "OPEN_RANK_LIMIT", 7)
    result = merged(tmp_path / "out", written(tmp_path, (6, 4)), MergeMethod.TIES)
    assert result.rank == 7
    assert result.max_error > OPEN_RANK_ERROR
    above = merged(tmp_path / "above", written(tmp_path / "more", (14, 4)), MergeMethod.TIES)
    assert above.rank == 14, "whoever loads the inputs loads their rank"


@pytest.mark.parametrize("method", ["Linear", "KnOTSTIES", "KnOTSDARETIES"])
def test_what_has_a_low_rank_is_exact_as_long_as_servers_load_it(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, way = written(tmp_path, (6, 4)), MergeMethod(method)
    assert merged(tmp_path / "exact", inputs, way).max_error == 0.0
    assert open_adapter(LocalFiles(tmp_path / "exact")).max_rank == 10
    monkeypatch.setattr(methods, "OPEN_RANK_LIMIT", 9)
    cut = merged(tmp_path / "cut", inputs, way)
    assert 6 <= cut.rank <= 9
    assert 0.0 < cut.max_error <= OPEN_RANK_ERROR or cut.rank == 9
    assert [cut.errors[name] for name in NAMES] == pytest.approx(best_errors(inputs, way, cut.rank), rel=1e-3)


def test_a_module_that_is_small_keeps_all_of_its_rank(tmp_path: Path) -> None:
    inputs = written(tmp_path, (6, 4), ((7, 64), (160, 64)))
    result = merged(tmp_path / "out", inputs, MergeMethod.TIES)
    with safe_open(tmp_path / "out/adapter_model.safetensors", "pt") as file:
        assert file.get_slice(f"base_model.model.{NAMES[0]}.lora_A.weight").get_shape() == [7, 64]
    assert result.rank > 7
    assert result.errors[NAMES[0]] <= 1e-6


def test_no_more_than_one_merged_delta_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is computed once, and written before the next one is."""
    order: list[str] = []
    merge = combine_module.merge
    monkeypatch.setattr(combine_module, "merge", lambda *rest: order.append("merge") or merge(*rest))
    write = combine_module.Writer.write
    monkeypatch.setattr(combine_module.Writer, "write", lambda *rest: order.append("write") or write(*rest))
    merged(tmp_path / "out", written(tmp_path, (6, 4)), MergeMethod.TIES)
    assert order == ["merge", "write", "write"] * 2 + ["write"] * 4

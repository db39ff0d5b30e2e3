"""A merge that proves itself: base, inputs and result measured on data, in manifest and card, or not published."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import concatenate_datasets
from safetensors.torch import load_file, save_file

from tunery_api.inputs import DatasetFormat
from tunery_api.manifest import Manifest
from tunery_api.reasons import ExitCode
from tunery_common.storage.publisher import Published
from tunery_trainer.data.options import DatasetReport, TokenReport
from tunery_trainer.data.warnings import warnings_of
from tunery_trainer.merging.measure import as_of_a_merge
from tunery_trainer.reporting.result import result_of

from kit.peft_reader import held_out_rows, plain_base, plain_peft, single_row_loss
from kit.story import WORDS, Case, manifest, run_here, write_rows

Spec = dict[str, Any]
LONGER = {"maxSteps": 30}
APART = 0.02
"""Losses are compared to this relative tolerance: they are measured in bfloat16 where the processor has it."""


def rows_of(task: str, count: int, seed: int) -> list[dict[str, str]]:
    """Return rows of one of two tasks on the same words."""
    draw = random.Random(seed)
    words = [draw.choice(WORDS) for _ in range(count)]
    return [{"prompt": f"{task} {word}", "completion": word * 2 if task == "twice" else word[::-1]} for word in words]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters, each trained on a task of its own."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "model").symlink_to(tiny_model)
    for task in ("twice", "back"):
        write_rows(folder / f"{task}.jsonl", rows_of(task, 80, 1))
        data, place = {"uri": f"file://{task}.jsonl"}, {"uri": f"file://{task}"}
        # The last weights: the best of two rows held out may be those of a very early step.
        last = {"publish": "Last"}
        spec = manifest(folder, dataset=data, output=place, training=LONGER, evaluation=last)
        path = folder / f"{task}.yaml"
        path.write_text(json.dumps(spec))
        done = run_here("run", path, "--work-dir", folder / f"{task}.work")
        assert done.returncode == ExitCode.OK, done.stderr
    return folder


@pytest.fixture
def inputs(case: Case, trained: Path, tmp_path: Path) -> list[Path]:
    """Both adapters, beside their base and test.jsonl, which has rows of both tasks."""
    case()
    write_rows(tmp_path / "test.jsonl", rows_of("twice", 20, 3) + rows_of("back", 4, 3))
    return [shutil.copytree(trained / task, tmp_path / task) for task in ("twice", "back")]


def merge_file(folder: Path, inputs: list[Path], evaluation: Spec | None = None, **spec: Any) -> Path:
    adapters = [{"uri": place.as_uri(), "weight": 0.5} for place in inputs]
    measured = {"dataset": {"uri": "file://test.jsonl"}, "maxLength": 128, **(evaluation or {})}
    body = {"adapters": adapters, "output": {"uri": "file://out"}, "evaluation": measured, **spec}
    path = folder / "merge.yaml"
    kind = {"apiVersion": "tunery.dev/v1alpha1", "kind": "AdapterMerge", "metadata": {"name": "merge"}}
    path.write_text(json.dumps({**kind, "spec": body}))
    return path


def merged(path: Path) -> Manifest:
    done = run_here("run", path, "--work-dir", path.parent / "merge.work")
    assert done.returncode == ExitCode.OK, done.stderr
    return Manifest.model_validate_json((path.parent / "out" / "manifest.json").read_bytes())


def all_rows(folder: Path) -> Any:
    """Return every row that the run measured on, from its own cache."""
    held = held_out_rows(folder, "merge.work")
    train = next((folder / "merge.work/prepared").glob("*/train.arrow"))
    return concatenate_datasets([held, type(held).from_file(str(train))])


@pytest.mark.slow
def test_every_loss_is_what_plain_peft_measures(tmp_path: Path, inputs: list[Path]) -> None:
    found = merged(merge_file(tmp_path, inputs))
    lineage, rows = found.lineage, all_rows(tmp_path)
    assert len(rows) == 24, "no row is held out"
    base = single_row_loss(plain_base(tmp_path), rows)
    losses = [single_row_loss(plain_peft(tmp_path, out=name), rows) for name in ("twice", "back", "out")]
    assert lineage.metrics["baseEvalLoss"] == pytest.approx(base, rel=APART)
    assert [item.eval_loss for item in lineage.inputs] == pytest.approx(losses[:2], rel=APART)
    assert lineage.metrics["evalLoss"] == pytest.approx(losses[2], rel=APART)
    for one, other in itertools.combinations((base, *losses), 2):
        assert abs(one - other) > APART * one, "the four can be told apart"
    assert lineage.dataset is not None
    assert lineage.dataset.digest == (lineage.found.sha256 if lineage.found else None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Evaluation loss of the base model |" in card
    assert f"| {lineage.inputs[1].eval_loss:.6g} |" in card
    assert "| Measured on | `file://" in card
    assert "datasets:" not in card, "it was not trained on it"
    said = result_of(Published("file://out", "0" * 64, found.size_bytes, found))
    assert said.metrics is not None
    assert float(said.metrics.eval_loss or "") == pytest.approx(lineage.metrics["evalLoss"], rel=1e-5)
    assert [float(item.eval_loss or "") for item in said.inputs or ()] == pytest.approx(losses[:2], rel=APART)
    assert said.dataset is not None
    assert said.dataset.rows == 24


@pytest.mark.slow
def test_into_the_model_is_measured_too(tmp_path: Path, inputs: list[Path]) -> None:
    lineage = merged(merge_file(tmp_path, inputs, into="Model", model={"uri": "file://model"})).lineage
    (tmp_path / "model").rename(tmp_path / "base")
    (tmp_path / "out").rename(tmp_path / "model")
    loss = single_row_loss(plain_base(tmp_path), all_rows(tmp_path))
    assert lineage.metrics["evalLoss"] == pytest.approx(loss, rel=APART)


def test_one_that_is_no_better_than_asked_is_not_published(tmp_path: Path, inputs: list[Path]) -> None:
    write_rows(tmp_path / "test.jsonl", rows_of("twice", 1, 3))  # one row is enough: none is held out of it
    done = run_here("run", merge_file(tmp_path, inputs, {"minImprovement": 0.99}))
    assert done.returncode == ExitCode.USER_ERROR
    line = done.stderr.splitlines()[-2]
    assert line.startswith("NotImproved: the evaluation loss went from the base's ")
    assert "and spec.evaluation.minImprovement asks for −99.0 %; the best input reaches " in line
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_a_base_that_holds_no_number_is_named(tmp_path: Path, inputs: list[Path]) -> None:
    source = (tmp_path / "model").resolve()
    (tmp_path / "model").unlink()
    shutil.copytree(source, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    path = merge_file(tmp_path, inputs, model={"uri": "file://model"})
    done = run_here("run", path, "--work-dir", tmp_path / "merge.work")
    assert done.returncode == ExitCode.USER_ERROR
    line, hint = done.stderr.splitlines()[-2:]
    assert line.startswith("ModelUnsupported: spec.model.uri: model.norm.weight in model.safetensors holds NaN")
    assert hint.startswith("Fetch model.safetensors again from where the model comes")
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()], "nor a claim"


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({"uri": "file://nowhere.jsonl"}, "DatasetNotFound: spec.evaluation.dataset"),
        ({"uri": "file://test.jsonl", "columns": {"prompt": "nothing"}}, "spec.evaluation.dataset"),
        ({"uri": "file://pairs.jsonl"}, "the rows are Preference (columns: chosen, rejected), a merge is measured on"),
    ],
    ids=["missing", "columns", "pairs"],
)
def test_bad_data_is_found_before_anything_is_merged(
    tmp_path: Path, inputs: list[Path], dataset: Spec, words: str
) -> None:
    write_rows(tmp_path / "pairs.jsonl", [{"chosen": "a", "rejected": "b"}])
    done = run_here("run", merge_file(tmp_path, inputs, {"dataset": dataset}), "--work-dir", tmp_path / "merge.work")
    assert done.returncode == ExitCode.USER_ERROR
    assert words in done.stderr
    assert not re.search(r"spec\.dataset|task", done.stderr), "those are a LoRAJob's"
    assert not [file for file in (tmp_path / "merge.work/result").rglob("*") if file.is_file()]
    assert not (tmp_path / "out").exists()


def test_warnings_name_the_fields_of_a_merge() -> None:
    counts: dict[str, Any] = {field.name: 3 for field in dataclasses.fields(TokenReport)} | {"assistant_turns": 9}
    report = DatasetReport(9, 9, 0, (), 0, 2, "0" * 64, DatasetFormat.MESSAGES, (), TokenReport(**counts))
    said = warnings_of(report)
    assert len(said) == 5
    for warning in map(as_of_a_merge, said):
        assert not re.search(r"spec\.(training|dataset)|not trained", warning), warning


def test_other_rows_make_another_merge(tmp_path: Path, inputs: list[Path]) -> None:
    path = merge_file(tmp_path, inputs)
    first = merged(path)
    assert merged(path).created == first.created, "a rerun of what is published does no work"
    write_rows(tmp_path / "test.jsonl", rows_of("back", 12, 4))
    done = run_here("run", path, "--work-dir", tmp_path / "merge.work")
    assert done.stderr.splitlines()[-2].startswith("OutputExists: spec.output.uri")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["created"] == first.created

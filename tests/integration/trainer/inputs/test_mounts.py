"""Data sets of the cluster's own, as the operator mounts them: each purpose has its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunery_api.reasons import ExitCode
from tunery_api.runspec import PreflightReport, RunSpec
from tunery_common.inputs.location import FetchedDataset
from tunery_trainer.inputs.workspace import Workspace, get_data

from kit.story import Case, make_rows, manifest, run_here, write_rows


def run_file(folder: Path, evaluation: str = "configmap://dev/dev.jsonl") -> Path:
    """Write a run.json whose rows and held-out rows lie in two ConfigMaps, mounted below `folder`."""
    for name in ("rows", "dev"):
        (folder / name).mkdir(exist_ok=True)
    dataset = {"uri": "configmap://rows/train.jsonl", "evaluation": {"uri": evaluation}}
    spec: dict[str, Any] = manifest(folder, model={"uri": "pvc://models/model"}, dataset=dataset)["spec"]
    content = {
        "identity": {"kind": "LoRAJob", "namespace": "team", "name": "tiny", "uid": "u-1"},
        "loraJob": spec,
        "outputUri": f"file://{folder}/out",
        "volumes": {"model": str(folder), "dataset": str(folder / "rows"), "evaluation": str(folder / "dev")},
        "workDir": str(folder / "work"),
        "local": True,
    }
    path = folder / "run.json"
    path.write_text(json.dumps(content))
    return path


def test_the_rows_that_are_held_out_lie_in_a_mount_of_their_own(case: Case, tmp_path: Path) -> None:
    case()
    path = run_file(tmp_path)
    write_rows(tmp_path / "rows" / "train.jsonl", make_rows())
    write_rows(tmp_path / "dev" / "dev.jsonl", make_rows(10))
    files = get_data(Workspace(RunSpec.model_validate_json(path.read_text())))
    assert files.train == FetchedDataset(tmp_path / "rows", "train.jsonl")
    assert files.evaluation == FetchedDataset(tmp_path / "dev", "dev.jsonl")


def test_a_config_map_that_is_missing(case: Case, tmp_path: Path) -> None:
    case()
    path, message = run_file(tmp_path), tmp_path / "termination"
    write_rows(tmp_path / "rows" / "train.jsonl", make_rows())
    done = run_here("preflight", path, TUNERY_TERMINATION_PATH=str(message))
    assert done.returncode == ExitCode.USER_ERROR
    failure = PreflightReport.model_validate_json(message.read_text()).failure
    assert failure is not None
    assert failure.reason == "DatasetNotFound"
    assert failure.message.startswith("spec.dataset.evaluation.uri: the ConfigMap dev does not exist")
    namespace = RunSpec.model_validate_json(path.read_text()).identity.namespace
    assert f"kubectl create configmap dev -n {namespace} --from-file=dev.jsonl=FILE" in failure.remedies[0].text

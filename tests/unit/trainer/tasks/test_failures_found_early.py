"""What preflight finds: each with its reason, its exit code, and the field, line or name in the message."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from tunery_api.reasons import ExitCode
from tunery_api.runspec import PreflightReport

from kit.adapters import trained_adapter
from kit.story import Case, make_rows, manifest, run_here, write_rows


def refused(path: Path, **environment: str) -> str:
    """Run a manifest that must be refused and return the line with reason and message."""
    done = run_here("run", path, "--work-dir", path.parent / "work", **environment)
    assert done.returncode == ExitCode.USER_ERROR, done.stderr
    assert "Training" not in done.stdout
    return done.stderr.strip().splitlines()[-2]


def test_bad_line_17(case: Case) -> None:
    path = case()
    rows: list[Any] = make_rows(40)
    rows[16] = {"prompt": "no answer"}
    write_rows(path.parent / "data.jsonl", rows)
    line = refused(path)
    assert line.startswith("DatasetInvalid: ")
    assert "data.jsonl line 17: completion" in line


def test_columns_that_nothing_is_known_of(case: Case) -> None:
    """Many bad rows make a long message: it ends with a whole word, and a remedy names the field."""
    path, message = case(), case().parent / "termination"
    long = " and ".join(["What the customer asked"] * 8)
    write_rows(path.parent / "data.jsonl", [{f"{n} {long}": "?", "What they got told": "!"} for n in range(9)])
    spec = manifest(path.parent)["spec"] | {"dataset": {"uri": f"file://{path.parent}/data.jsonl"}}
    spec["model"] = {"uri": f"file://{path.parent}/model"}
    run = {
        "identity": {"kind": "LoRAJob", "namespace": "team", "name": "tiny", "uid": "u-1"},
        "loraJob": spec,
        "outputUri": spec["output"]["uri"],
        "workDir": str(path.parent / "work"),
        "local": True,
    }
    (path.parent / "run.json").write_text(json.dumps(run))
    done = run_here("preflight", path.parent / "run.json", TUNERY_TERMINATION_PATH=str(message))
    assert done.returncode == ExitCode.USER_ERROR
    failure = PreflightReport.model_validate_json(message.read_text()).failure
    assert failure is not None
    assert failure.reason == "DatasetInvalid"
    assert "data.jsonl line 1: " in failure.message
    assert failure.message.endswith("…")
    words = {"What", "the", "customer", "asked", "and", "ShareGPT", "conversations", "Alpaca", "output"}
    assert set(re.findall(r"(\w+)\W?…", failure.message)) <= words
    assert any("dataset.columns" in each.fields for each in failure.remedies)


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        (
            "DPO",
            {"prompt": "Hi", "completion": "Hello"},
            "DatasetInvalid: spec.dataset: the rows are PromptCompletion (columns: prompt, completion), task DPO "
            "learns from Preference: chosen, rejected",
        ),
        (
            "SFT",
            {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"},
            "DatasetInvalid: spec.dataset: the rows are Preference (columns: prompt, chosen, rejected), task SFT "
            "learns from Messages: messages",
        ),
        (
            "ORPO",
            {"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"},
            "DatasetInvalid: 30 of 30 rows are invalid, spec.dataset.maxInvalidRows allows 0: data.jsonl line 1: "
            "rejected: is the same as chosen, so there is nothing to prefer (the same in lines 2, 3, 4, 5 and 25 more)",
        ),
        (
            "KTO",
            {"prompt": "Hi", "completion": "Hello", "label": True},
            "DatasetInvalid: spec.dataset: all 27 rows to train on have label true; task KTO learns from both kinds",
        ),
    ],
)
def test_rows_that_the_task_cannot_learn_from(case: Case, task: str, row: dict[str, Any], said: str) -> None:
    path = case(task=task)
    asked = [{**row, "prompt": f"Hi {number}"} for number in range(30)]
    write_rows(path.parent / "data.jsonl", asked)
    assert refused(path).startswith(said)


def test_unknown_target_module(case: Case) -> None:
    line = refused(case(lora={"targetModules": ["query"]}))
    assert line.startswith("InvalidSpec: spec.lora.targetModules")
    assert "q_proj" in line


def test_missing_model(case: Case) -> None:
    assert refused(case(model={"uri": "file://nowhere"})).startswith("ModelNotFound: spec.model.uri")


def test_missing_data(case: Case) -> None:
    assert refused(case(dataset={"uri": "file://nowhere.jsonl"})).startswith("DatasetNotFound: spec.dataset.uri")


def test_model_with_code_of_its_own(case: Case) -> None:
    path = case()
    (path.parent / "model").unlink()
    (path.parent / "model").mkdir()
    config = {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "modeling.Strange"}}
    (path.parent / "model" / "config.json").write_text(json.dumps(config))
    (path.parent / "model" / "model.safetensors").write_bytes(b"")
    assert refused(path).startswith("ModelUnsupported: ")


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"metadata": {}, "weight_map": {"x": "../x.safetensors"}}'])
def test_an_index_of_weights_that_leads_nowhere(case: Case, index: str) -> None:
    path = case()
    source = (path.parent / "model").resolve()
    (path.parent / "model").unlink()
    shutil.copytree(source, path.parent / "model")
    (path.parent / "model" / "model.safetensors").rename(path.parent / "model" / "model-00001-of-00001.safetensors")
    (path.parent / "model" / "model.safetensors.index.json").write_text(index)
    said = "ModelUnsupported: spec.model.uri: its weights cannot be loaded: model.safetensors.index.json "
    assert refused(path).startswith(said)


@pytest.mark.slow
def test_an_adapter_beside_the_model(case: Case) -> None:
    """transformers would load it with the model; once it is moved away, as the remedy says, the model is trained."""
    path = case()
    source = (path.parent / "model").resolve()
    (path.parent / "model").unlink()
    shutil.copytree(source, path.parent / "model")
    trained_adapter(source, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"), path.parent / "model", seed=3)
    assert re.match("ModelUnsupported: spec.model.uri: file://.* holds an adapter beside the model", refused(path))
    (path.parent / "model" / "adapter_config.json").unlink()
    done = run_here("run", path, "--work-dir", path.parent / "again")
    assert done.returncode == ExitCode.OK, done.stderr


def test_adalora_without_room_for_pruning(case: Case) -> None:
    line = refused(case(method="AdaLoRA", adalora={"warmupSteps": 15, "finalSteps": 10}, lora=None))
    assert line.startswith("InvalidSpec: spec.adalora")


@pytest.mark.parametrize("method", ["PromptTuning", "PrefixTuning"])
def test_packing_with_virtual_tokens(case: Case, method: str) -> None:
    line = refused(case(method=method, training={"packing": True}, lora=None))
    assert "spec.training.packing" in line

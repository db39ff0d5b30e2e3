"""`estimate`: what a job would take, by the real command line, from config.json alone."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tunery_api.fields import parse_quantity
from tunery_api.methods import Method
from tunery_api.reasons import ExitCode
from tunery_trainer.cli import main
from tunery_trainer.plan import look_ahead, method_table
from tunery_trainer.plan.method_table import GPU_CLASSES
from tunery_trainer.process.place import SIMULATED_ENV
from tunery_trainer.reporting.estimate_text import as_json
from tunery_trainer.settings.look import Estimated
from tunery_trainer.tasks import estimate

from kit import kubectl_yaml
from kit.published_memory import read
from kit.shown import ROOT, blocks
from kit.story import Case, Run, make_rows, manifest, run_here, write_manifest, write_rows

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "workspace", "overhead", "slack")


@pytest.fixture
def bare(tmp_path: Path, llama: Path) -> Path:
    """A folder with nothing but config.json."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_bytes((llama / "config.json").read_bytes())
    return folder


def job(folder: Path, **changes: Any) -> Path:
    """Write a job for a cluster, of which nothing is here."""
    secret = {"secretRef": {"name": "s3"}}
    spec = {
        "model": {"uri": "s3://models/base"} | secret,
        "dataset": {"uri": "s3://data/rows.jsonl"} | secret,
        "output": {"uri": "s3://adapters/out"} | secret,
        "resources": {"gpus": 1},
    }
    return write_manifest(folder, manifest(folder, **spec | changes))


@pytest.mark.slow
def test_a_job_of_a_cluster_is_told_in_parts_and_in_a_table(
    tmp_path: Path, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", str(job(tmp_path)), "--model", str(bare)]) == ExitCode.OK
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    assert "not read; rows taken to be of maxLength, 20 steps" in out
    for words in ("base weights", "adapter", "gradients", "optimizer", "activations", "allocator's slack", "together"):
        assert f"  {words} " in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("LoRA", "QLoRA", "QDoRA", "IA3", "Prefix"))]
    assert {row[0] for row in rows} == {"LoRA", "QLoRA", "QDoRA", "IA3", "PrefixTuning"}
    assert all(len(row) == 5 + len(GPU_CLASSES) - (row[1] in ("Int8", "NF4") and row[2] != "double") for row in rows)
    assert all(row[-1].isdigit() for row in rows), "a tiny model fits everywhere"


@pytest.mark.slow
def test_first_job_md_shows_what_is_said_of_its_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of the architecture alone: sizes of Llama 3.1 8B, as its config.json has them."""
    monkeypatch.setattr(look_ahead, "method_table", lambda *_: iter(()))  # most of the time, and not on the page
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | read("models")["Llama-3.1-8B"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (shown,) = (block for block in blocks(ROOT / "docs" / "first-job.md") if block.run_by)
    command, *quoted = shown.text.splitlines()
    words = command.split()[4:]
    words = [
        str(tmp_path) if word == "llama" else str(ROOT / word) if word.endswith(".yaml") else word for word in words
    ]
    assert main(words) == ExitCode.OK
    said = capsys.readouterr().out.splitlines()
    lines = [line for line in quoted if line != "…"]
    assert [line for line in said if line in lines] == lines
    assert len(lines) == 7


@pytest.mark.slow
def test_for_programs_the_parts_make_the_total(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(case(method="QLoRA")), "--json", "--tokens-per-second", "10"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    estimate = told["estimate"]
    assert sum(estimate[f"{part}Bytes"] for part in PARTS) == told["memory"]["estimateBytes"]
    assert told["memory"]["availableBytes"] == 24 * 2**30, "resources.memory, as the job trains on a CPU"
    assert (told["method"], told["quantization"], estimate["steps"]) == ("QLoRA", "NF4", 20)
    assert told["rows"] == 120
    assert told["seconds"] == pytest.approx(estimate["tokens"] / 10)
    assert {row["quantization"] for row in told["table"]} == {None, "Int8", "NF4", "NF4 double"}
    assert all(set(row["largestBatch"]) == {gpu.name for gpu in GPU_CLASSES} for row in told["table"])


@pytest.mark.slow
@pytest.mark.parametrize(("packing", "unit"), [(True, "packed sequences"), (False, "rows")])
def test_tokens_are_those_of_the_rows_to_train_on_by_what_is_laid_in_a_batch(
    case: Case, capsys: pytest.CaptureFixture[str], packing: bool, unit: str
) -> None:
    """Held-out rows are not trained: with an evaluation set of its own, too."""
    path = case(training={"packing": packing})
    write_rows(path.parent / "own.jsonl", make_rows(60))
    told = {}
    for name, evaluation in {"fraction": {"fraction": 0.5}, "own": {"uri": "file://own.jsonl"}}.items():
        job = kubectl_yaml.load(path.read_text())
        job["spec"]["dataset"]["evaluation"] = evaluation
        path.write_text(json.dumps(job))
        assert main(["estimate", str(path)]) == ExitCode.OK
        out = capsys.readouterr().out
        assert re.search(rf"^Batch     4 {unit} of \d+ tokens", out, re.MULTILINE), out
        (said,) = re.findall(r"about (\d+) tokens", out)
        told[name] = int(said)
    assert told["fraction"] == pytest.approx(told["own"], rel=0.1), "of 20 steps of 4, whatever is held out"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "batch"),
    [
        ({"packing": False, "batchSize": 1}, r"1 row of (\d+) tokens, as the longest row has; "),
        ({"packing": False, "maxLength": 40}, r"4 rows of (40) tokens, as maxLength allows; "),
        ({"packing": True, "batchSize": 1}, r"1 packed sequence of (256) tokens, as maxLength allows; "),
    ],
)
def test_the_tokens_that_a_row_is_counted_with_are_explained(
    case: Case, capsys: pytest.CaptureFixture[str], training: dict[str, Any], batch: str
) -> None:
    path = case(training={"maxSteps": 1, "maxLength": 256, **training})
    assert main(["estimate", str(path)]) == ExitCode.OK
    out = capsys.readouterr().out
    counted = re.search(rf"^Batch     {batch}activations ", out, re.MULTILINE)
    assert counted, out
    assert "Data      120 rows, 1 step, about " in out
    assert main(["check", str(path), "--output", str(path.parent)]) == ExitCode.OK
    lengths = json.loads((path.parent / "data-report.json").read_text())["tokens"]["lengths"]
    assert "longest" not in batch or int(counted[1]) == lengths["longest"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "said"), [("1", r"[\d.]+ hours"), ("100", r"[\d.]+ minutes"), ("1000", r"\d+ seconds")]
)
def test_time_is_told_in_the_unit_that_says_something(
    case: Case, capsys: pytest.CaptureFixture[str], rate: str, said: str
) -> None:
    path = case(training={"maxSteps": 100})
    assert main(["estimate", str(path), "--tokens-per-second", rate]) == ExitCode.OK
    assert re.search(rf"^Time      {said} at {rate} tokens a second", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "said"), [(None, "24.0 GiB (the default), "), ("6Gi", "6.0 GiB, ")])
def test_the_memory_that_the_manifest_leaves_open_is_told_as_the_default(
    case: Case, capsys: pytest.CaptureFixture[str], memory: str | None, said: str
) -> None:
    path = case(resources={"memory": memory} if memory else {})
    assert main(["estimate", str(path)]) == ExitCode.OK
    assert f" of resources.memory: {said}" in capsys.readouterr().out


@pytest.mark.slow
def test_no_line_loses_its_end(tmp_path: Path, bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = "s3://models/" + "a-long-folder/" * 6 + "base"
    path = job(tmp_path, model={"uri": uri, "secretRef": {"name": "s3"}}, resources={"gpus": 0})
    assert main(["estimate", str(path), "--model", str(bare)]) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"Model     {uri}, " in out
    assert "or BFloat16 where the CPU has it\n" in out
    assert "…" not in out


@pytest.mark.slow(fast=["80Gi-FSDP-FSDP: the base is spread over those of a node."])
@pytest.mark.parametrize(
    ("memory", "parallelism", "said"),
    [
        ("80Gi", "Auto", "DDP: each has the whole base. Each GPU has room for the whole base."),
        ("80Gi", "FSDP", "FSDP: the base is spread over those of a node."),
        (None, "Auto", "DDP: each has the whole base. The memory of the GPUs is not known."),
    ],
)
def test_several_devices_are_told_and_memory_is_of_each(
    tmp_path: Path,
    bare: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    memory: str | None,
    parallelism: str,
    said: str,
) -> None:
    monkeypatch.setattr(look_ahead, "method_table", lambda *_: iter(()))
    training = {"gradientAccumulation": 8, "parallelism": parallelism}
    path = job(tmp_path, resources={"gpus": 4, "nodes": 2}, training=training)
    arguments = ["estimate", str(path), "--model", str(bare), "--tokens-per-second", "1000"]
    arguments += ["--gpu-memory", memory] if memory else []
    assert main(arguments) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"Devices   8 GPUs on 2 nodes; {said}\n" in out
    assert "; 8 passes of all devices make a step\n" in out
    assert (" of 80.0 GiB of each GPU, 75.2 GiB of them counted on" in out) is (memory is not None)
    assert main([*arguments, "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["devices"], told["nodes"], told["gradientAccumulation"]) == (8, 2, 8)
    assert told["parallelism"] == said.partition(":")[0]
    assert told["estimate"]["overheadBytes"] > 2**30, "NCCL's among them"


@pytest.mark.slow(only=["QLoRA-None-, which is 24.0 GiB (the default): before the base is spread-changes0"])
@pytest.mark.parametrize(
    ("method", "memory", "said", "changes"),
    [
        ("QLoRA", None, ", which is 24.0 GiB (the default): before the base is spread", []),
        ("QLoRA", "4Gi", "there. It does not fit: raise spec.resources.memory to 5Gi.", ["5Gi"]),
        ("LoRA", "4Gi", None, []),
    ],
)
def test_a_quantised_base_that_is_spread_takes_memory_of_the_container(
    tmp_path: Path,
    bare: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    method: str,
    memory: str | None,
    said: str | None,
    changes: list[str],
) -> None:
    monkeypatch.setattr(look_ahead, "method_table", lambda *_: iter(()))
    resources = {"gpus": 2} | ({"memory": memory} if memory else {})
    path = job(
        tmp_path, resources=resources, method=method, training={"parallelism": "FSDP", "gradientAccumulation": 2}
    )
    arguments = ["estimate", str(path), "--model", str(bare), "--gpu-memory", "80Gi"]
    assert main(arguments) == ExitCode.OK
    out = " ".join(capsys.readouterr().out.split())
    assert said in out if said else "Container" not in out
    assert main([*arguments, "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["containerBytes"] is not None, told["containerAvailableBytes"] is not None) == (bool(said),) * 2
    assert (told["fits"], told["changes"]) == (
        not changes,
        [f"raise spec.resources.memory to {enough}" for enough in changes],
    )


@pytest.mark.slow
def test_the_whole_base_that_a_manifest_asks_for_is_told_to_be_what_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the shape of Llama 3.1 8B: spread over 4 GPUs it fits."""
    monkeypatch.setattr(method_table, "_METHODS", (Method.LORA,))
    folder = tmp_path / "llama"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | read("models")["Llama-3.1-8B"]
    (folder / "config.json").write_text(json.dumps(config))
    plain, looked = look_ahead.look_ahead, list[Estimated]()

    def kept(*args: Any) -> Estimated:
        looked.append(plain(*args))
        return looked[-1]

    monkeypatch.setattr(look_ahead, "look_ahead", kept)
    told = {}
    for asked in ("DDP", "Auto"):
        training = {"gradientAccumulation": 4, "parallelism": asked, "optimizer": "AdamW", "batchSize": None}
        path = job(tmp_path, method="LoRA", resources={"gpus": 4}, training=training)
        assert main(["estimate", str(path), "--model", str(folder), "--gpu-memory", "16Gi"]) == ExitCode.OK
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 120
        refused = "It does not fit: not even one row does; omit training.parallelism." in lines
        assert refused is ("Each GPU has the whole base." in lines) is (asked == "DDP")
        assert any(
            line.startswith("* with the base spread over the 4 GPUs of a node (FSDP), as ") for line in lines
        ) is (asked == "Auto")
        (row,) = (line for line in lines if re.match("LoRA +16 bits", line))
        told[asked] = row.split()[5:]
        found = as_json(looked[-1], None)
        assert (found["fits"], found["parallelism"]) == (asked == "Auto", "DDP" if asked == "DDP" else "FSDP")
        assert found["changes"] == ([] if asked == "Auto" else ["omit training.parallelism"])
        assert found["table"][0]["spreadOn"] == ([] if asked == "DDP" else ["T4 16"])
    assert told["DDP"][0] == "-"
    assert re.fullmatch(r"\d+\*", told["Auto"][0])
    assert told["Auto"][1:] == told["DDP"][1:]


def test_the_time_of_several_devices_is_by_the_tokens_of_all_of_them(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_ahead, "method_table", lambda *_: iter(()))
    told = []
    for resources in ({"gpus": 0}, {"gpus": 0, "nodes": 2}):
        path = case(resources=resources, training={"gradientAccumulation": 2})
        assert main(["estimate", str(path), "--tokens-per-second", "100"]) == ExitCode.OK
        out = capsys.readouterr().out
        told.append(re.findall(r"^Time      (.*)", out, re.MULTILINE)[0])
    assert told[1] == f"{told[0]} of all 2 nodes together"


@pytest.mark.slow
def test_a_job_of_this_machine_is_counted_as_its_cpu_computes_which_is_what_run_says(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_ahead, "method_table", lambda *_: iter(()))  # most of the time
    path = case(training={"maxSteps": 1, "batchSize": 1})
    for has, precision in ((False, "Float32, or BFloat16 where the CPU has it"), (True, "BFloat16 Method")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert main(["estimate", str(path)]) == ExitCode.OK
        out = capsys.readouterr().out
        assert f", computed in {precision}" in " ".join(out.split())
    [(counted, unit)] = re.findall(r"^  together +([\d.]+) (\w+) of", out, re.MULTILINE)
    assert main(["run", str(path)]) == ExitCode.OK
    assert f"memory: about {counted} {unit} of " in "".join(capsys.readouterr())


@pytest.mark.slow
def test_simulated_devices_are_processes_that_share_the_memory_as_run_says(
    case: Case, run_file: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three are there, of which two can share four passes."""
    monkeypatch.setattr(look_ahead, "method_table", lambda *_: iter(()))
    blocks: dict[str, Any] = {"resources": {"gpus": 2, "nodes": 2}, "training": {"gradientAccumulation": 4}}
    monkeypatch.setenv(SIMULATED_ENV, "3")
    path = case(**blocks)
    assert main(["estimate", str(path)]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert "Devices 2 processes; DDP: each has the whole base. On CPUs each process has" in " ".join(shown.split())
    assert "They are simulated (TUNERY_SIMULATED_DEVICES)." in " ".join(shown.split())
    [counted] = re.findall(r"^  of 2 processes +([\d.]+ \w+) of resources\.memory: 24\.0 GiB", shown, re.MULTILINE)
    done = run_here(
        "preflight", run_file(own={"local": True, "memoryBytes": 24 * 2**30}, **blocks), TUNERY_SIMULATED_DEVICES="3"
    )
    assert f"Preflight  memory: about {counted} for 2 processes, of 24.0 GiB that this machine has;" in done.stdout
    assert main(["estimate", str(path), "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["devices"], told["nodes"], told["gradientCheckpointing"]) == (2, 1, False)
    assert told["memory"]["availableBytes"] == 12 * 2**30, "of each process"
    assert main(["estimate", str(path), "--gpu-memory", "24Gi"]) == ExitCode.USER_ERROR
    assert "TUNERY_SIMULATED_DEVICES is 3: the job would train on the CPU" in capsys.readouterr().err


@pytest.mark.slow
def test_what_does_not_fit_is_said(
    tmp_path: Path, bare: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_ahead, "method_table", lambda *_: iter(()))
    arguments = ["estimate", str(job(tmp_path)), "--model", str(bare), "--gpu-memory", "600Mi"]
    assert main(arguments) == ExitCode.OK
    assert "It does not fit: not even one row does." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["1Gi", "1100Mi"])
def test_without_a_gpu_estimate_and_preflight_say_the_same_change_more_memory_first(
    case: Case, run_file: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    """Of two nodes with too little memory each, for a single row or for so many."""
    monkeypatch.setattr(look_ahead, "method_table", lambda *_: iter(()))
    blocks: dict[str, Any] = {
        "resources": {"gpus": 0, "nodes": 2, "memory": memory},
        "training": {"batchSize": 64, "gradientAccumulation": 2, "precision": "Float32"},
    }
    own = {"memoryBytes": int(parse_quantity(memory))}
    refused = run_here("preflight", run_file(own=own, **blocks))
    assert refused.returncode != ExitCode.OK
    hint = r"Raise (resources\.memory to \d+Gi)\.(?: Or, in a new LoRAJob: (.*)\.)? To retry: "
    said = re.search(hint, refused.stderr)
    assert said, refused.stderr
    change = f"raise {said[1]}" + (f"; or {said[2]}" if said[2] else "")
    arguments = ["estimate", str(case(**blocks))]
    assert main(arguments) == ExitCode.OK
    shown = " ".join(capsys.readouterr().out.split())
    one_row = "" if "batchSize" in change else "not even one row does; "
    assert bool(one_row) is (memory == "1Gi")
    assert f"It does not fit: {one_row}{change}." in shown
    assert main([*arguments, "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["fits"], told["changes"]) == (False, [change])


@pytest.mark.slow
def test_auto_says_what_it_takes_and_why(tmp_path: Path, bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = job(tmp_path, method="Auto", lora={"rank": 8})
    assert main(["estimate", str(path), "--model", str(bare), "--gpu-memory", "16Gi"]) == ExitCode.OK
    told = "Method    LoRA. The model fits unquantised, and LoRA wants 100 rows at least."
    assert told in capsys.readouterr().out, "how many there are was not read"


@pytest.mark.parametrize(
    ("arguments", "changes", "said"),
    [
        ([], {}, "ModelNotFound: spec.model.uri: s3://models/base is not read here"),
        ([], {"model": {"uri": "hf://nobody/nothing"}}, "the hub's cache on this machine has no config.json of nobody"),
        (["--model", "/nowhere"], {}, "--model /nowhere is not a folder"),
        (["--gpu-memory", "much"], {}, "'much' is no size such as 24Gi"),
        (["--tokens-per-second", "0"], {}, "'0' is no number of tokens a second"),
        (
            ["--gpu-memory", "24Gi"],
            {"resources": {"gpus": 0}},
            "--gpu-memory is of a GPU, and spec.resources.gpus is 0",
        ),
        ([], {"lora": {"rank": 0}}, "spec.lora.rank: must be at least 1, is 0"),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], changes: dict[str, Any], said: str
) -> None:
    assert main(["estimate", str(job(tmp_path, **changes)), *arguments]) != ExitCode.OK
    message, hint = capsys.readouterr().err.strip().splitlines()[-2:]
    assert said in message
    assert hint


def test_a_file_that_is_not_there_and_a_merge_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(tmp_path / "none.yaml")]) != ExitCode.OK
    assert "there is no file" in capsys.readouterr().err
    merge = {"apiVersion": "tunery.dev/v1alpha1", "kind": "AdapterMerge", "metadata": {"name": "m"}, "spec": {}}
    path = tmp_path / "merge.yaml"
    path.write_text(json.dumps(merge))
    assert main(["estimate", str(path)]) != ExitCode.OK
    assert "kind: must be LoRAJob, is AdapterMerge" in capsys.readouterr().err


@pytest.mark.slow
def test_what_takes_longer_than_a_moment_is_told_on_stderr(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = look_ahead.look_ahead

    def slow(*args: Any) -> Any:
        time.sleep(0.3)
        return plain(*args)

    monkeypatch.setattr(estimate, "_MOMENT_SECONDS", 0.1)
    monkeypatch.setattr(look_ahead, "look_ahead", slow)
    path = str(case())
    assert main(["estimate", path, "--json"]) == ExitCode.OK
    told = capsys.readouterr()
    assert "Estimate   the model is outlined" in told.err
    json.loads(told.out)
    monkeypatch.setattr(estimate, "_MOMENT_SECONDS", 60.0)
    assert main(["estimate", path]) == ExitCode.OK
    assert capsys.readouterr().err == ""

"""Training by the real command line: what is published loads in plain PEFT, with the loss that was reported."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from tunery_api.reasons import ExitCode

from kit.peft_reader import held_out_rows, plain_peft, single_row_loss
from kit.story import Case, read_curve, run_here

QUANTIZATIONS = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}


def train(path: Path) -> dict[str, Any]:
    """Run the manifest and return manifest.json of what was published."""
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    manifest: dict[str, Any] = json.loads((path.parent / "out" / "manifest.json").read_text())
    return manifest


COMBINATIONS = [
    pytest.param({"method": "LoRA"}, "none", id="LoRA"),
    pytest.param({"method": "QLoRA"}, "nf4", id="QLoRA"),
    pytest.param({"method": "DoRA"}, "none", id="DoRA"),
    pytest.param({"method": "QLoRA", "quantization": {"type": "Int8"}}, "int8", id="QLoRA-Int8"),
    pytest.param({"method": "AdaLoRA", "lora": None}, "none", id="AdaLoRA"),
    pytest.param({"method": "IA3", "lora": None}, "none", id="IA3"),
    pytest.param({"method": "PromptTuning", "lora": None}, "none", id="PromptTuning"),
    pytest.param({"method": "PrefixTuning", "lora": None}, "none", id="PrefixTuning"),
    pytest.param({"lora": {"init": "PiSSA"}}, "none", id="PiSSA"),
    pytest.param({"lora": {"init": "EVA"}}, "none", id="EVA"),
]


@pytest.mark.slow(fast=["LoRA"])
@pytest.mark.parametrize(("changes", "quantization"), COMBINATIONS)
def test_every_method_learns_and_loads_in_plain_peft(case: Case, changes: dict[str, Any], quantization: str) -> None:
    path = case(**changes)
    metrics = train(path)["lineage"]["metrics"]
    assert metrics["evalLoss"] < metrics["baseEvalLoss"]
    model = plain_peft(path.parent, QUANTIZATIONS.get(quantization))
    assert single_row_loss(model, held_out_rows(path.parent)) == pytest.approx(metrics["evalLoss"], rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_a_gpu_that_a_laptop_has_not_is_told_in_a_line_of_its_own_and_the_card_loads(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = case(resources={"gpus": 1}, training={"maxSteps": 1})
    done = run_here("run", path)
    said = re.search(r"^Device     (CPU \(\d+ cores?\)): (.+)$", done.stdout, re.MULTILINE)
    assert said is not None, done.stdout
    assert said[2] == "spec.resources.gpus is 1, and this machine has no GPU that works"
    lineage = json.loads((path.parent / "out" / "manifest.json").read_text())["lineage"]
    assert (lineage["device"], lineage["resolved"]["device"]) == ("cpu", said[1])
    card = (path.parent / "out" / "README.md").read_text()
    assert f"| Device | {said[1]} |" in card
    assert "gpus" not in done.stderr
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    Path("out").symlink_to(path.parent / "out")
    Path("base").symlink_to(path.parent / "model")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)  # what the card says, with both folders copied as it says
    assert found["model"].peft_config["default"].r == 8


@pytest.mark.slow
def test_a_method_that_adapts_no_modules_is_told_without_a_word_for_them(case: Case) -> None:
    done = run_here("run", case(method="PromptTuning", lora=None, training={"maxSteps": 1}))
    line = next(line for line in done.stdout.splitlines() if line.startswith("Preflight  method: "))
    assert line.startswith("Preflight  method: PromptTuning; ")
    assert line.endswith(" parameters trained")


@pytest.mark.slow
def test_published_folder_is_whole(case: Case) -> None:
    path = case(tracking={"tensorboard": True}, evaluation={"everySteps": 5})
    manifest = train(path)
    out = path.parent / "out"
    there = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()} - {"manifest.json"}
    assert there == set(manifest["files"])
    for name, record in manifest["files"].items():
        content = (out / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == record["sha256"]
        assert len(content) == record["size"]
    assert any(name.startswith("runs/events.out.tfevents") for name in there)
    assert "training_curves.png" in (out / "README.md").read_text()
    assert (out / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    before, *points = read_curve(out)
    assert before == {"step": 0, "evalLoss": pytest.approx(manifest["lineage"]["metrics"]["baseEvalLoss"], rel=1e-5)}
    assert [point["step"] for point in points] == list(range(1, 21))
    assert all({"loss", "learningRate", "gradNorm", "tokensPerSecond", "epoch", "time"} <= set(each) for each in points)
    assert [point["step"] for point in points if "evalLoss" in point] == [5, 10, 15, 20]
    assert points[-1]["evalLoss"] == pytest.approx(manifest["lineage"]["evaluations"][-1]["loss"], rel=1e-5)
    assert not list((path.parent / "out-report").glob("*")), "all of it lies beside the adapter now"
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "model"
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in there)


@pytest.mark.slow
def test_a_second_run_does_not_replace_the_result(case: Case) -> None:
    path = case()
    first = train(path)
    again = run_here("run", path, "--work-dir", path.parent / "work")
    assert again.returncode == ExitCode.OK, "the same manifest is the same run, whose result is there and whole"
    other = run_here("run", case(training={"seed": 1}), "--work-dir", path.parent / "work2")
    assert other.returncode == ExitCode.USER_ERROR
    assert other.stderr.splitlines()[-2].startswith("OutputExists: spec.output.uri")
    assert json.loads((path.parent / "out" / "manifest.json").read_text()) == first


@pytest.mark.slow
def test_loss_that_is_not_a_number(case: Case) -> None:
    training = {"learningRate": 1e30, "maxGradNorm": 0, "optimizer": "AdamW"}
    path = case(training=training, tracking={"tensorboard": True})
    done = run_here("run", path)
    assert done.returncode == ExitCode.USER_ERROR
    reason, hint = done.stderr.splitlines()[-2:]
    assert reason.startswith("LossDiverged: ")
    # Who looks at why it diverged has a curve, and is told where.
    place = path.parent / "out-report"
    assert hint.endswith(f" Loss curve: {place.as_uri()}/curve.jsonl.")
    _, *points = read_curve(place)
    assert points[0]["loss"] > 0
    assert points[-1]["loss"] is None, "no finite number"
    assert (place / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((place / "runs").glob("events.out.tfevents*"))

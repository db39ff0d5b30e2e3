"""No loss before any step: what holds NaN is named, be it base, adapter or checkpoint, and no learning rate blamed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.training import Precision
from tunery_common.storage.transfer import hash_file
from tunery_trainer.model.finite import not_finite
from tunery_trainer.team.team import Team
from tunery_trainer.training import no_loss as module

from kit.story import Case, make_rows, run_here, write_rows

DOWN = "model.layers.1.mlp.down_proj.weight"
EXACT = {"precision": "Float32", "packing": False}
KEPT = {"everySteps": 5, "keep": 4, "keepAfterSuccess": True}


def change(file: Path, name: str, edit: Callable[[torch.Tensor], Any]) -> None:
    weights = load_file(file)
    edit(weights[name])
    save_file(weights, file, {"format": "pt"})


def own_model(folder: Path, name: str, edit: Callable[[torch.Tensor], Any]) -> None:
    """Put a changed copy of the model in place of the link to it."""
    source = (folder / "model").resolve()
    (folder / "model").unlink()
    shutil.copytree(source, folder / "model")
    change(folder / "model" / "model.safetensors", name, edit)


def put(value: float, row: int = 0) -> Callable[[torch.Tensor], Any]:
    return lambda tensor: tensor[row].fill_(value)


def failed(path: Path, work: str = "work") -> tuple[str, str]:
    """Return the message and the hint of a run that fails."""
    done = run_here("run", path, "--work-dir", path.parent / work)
    assert done.returncode == ExitCode.USER_ERROR, done.stderr
    message, hint = done.stderr.strip().splitlines()[-2:]
    return message, hint


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_leader_alone_reads_the_base_and_the_others_wait(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """The first that ended would end all others, in the middle of it."""
    done: list[str] = []
    monkeypatch.setattr(module, "not_finite_base", lambda folder: done.append("read"))
    monkeypatch.setattr(Team, "any", lambda team, *flags: done.append("wait"))
    training = SimpleNamespace(training=SimpleNamespace(precision=Precision.FLOAT32), quantization=None)
    plan = SimpleNamespace(basis=SimpleNamespace(base=SimpleNamespace(folder=Path()), start_from=None))
    data = SimpleNamespace(evaluation=[0])
    job: Any = SimpleNamespace(team=Team(rank, 2), settings=training, plan=plan, data=data)
    error = module.no_loss(job, SimpleNamespace(without_loss=1))  # type: ignore[arg-type]
    assert error.reason is FailureReason.MODEL_UNSUPPORTED
    assert done == (["read", "wait"] if rank == 0 else ["wait"])


@pytest.mark.slow
@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (-math.inf, "infinity")])
def test_a_base_that_holds_no_number_is_named(case: Case, value: float, said: str) -> None:
    path = case()
    own_model(path.parent, DOWN, put(value))
    message, hint = failed(path)
    assert message.startswith(f"ModelUnsupported: spec.model.uri: {DOWN} in model.safetensors holds {said}, ")
    assert "model.safetensors" in hint


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"task": "DPO"},
        pytest.param({"method": "QLoRA"}, marks=pytest.mark.slow),
        pytest.param({"task": "KTO"}, marks=pytest.mark.slow),
        pytest.param({"lora": {"init": "PiSSA"}}, marks=pytest.mark.slow),
    ],
)
def test_whatever_is_trained_on_it(case: Case, changes: dict[str, Any]) -> None:
    path, rows = case(**changes), make_rows()
    own_model(path.parent, DOWN, put(math.nan))
    if changes.get("task") == "DPO":
        pairs = [{"prompt": each["prompt"], "chosen": each["completion"], "rejected": "no"} for each in rows]
        write_rows(path.parent / "data.jsonl", pairs)
    elif "task" in changes:
        write_rows(path.parent / "data.jsonl", [{**each, "label": bool(at % 2)} for at, each in enumerate(rows)])
    assert failed(path)[0].startswith(f"ModelUnsupported: spec.model.uri: {DOWN} in model.safetensors holds NaN")


def test_what_only_a_row_of_training_meets_is_found_in_the_base_too(case: Case) -> None:
    """The base has a loss on the held-out rows, and the first step none: the learning rate has no part in that."""
    path = case(dataset={"evaluation": {"uri": "file://held.jsonl"}})
    write_rows(path.parent / "held.jsonl", make_rows(20))
    rows = [{"prompt": each["prompt"], "completion": "~~~"} for each in make_rows(40)]
    write_rows(path.parent / "data.jsonl", rows)
    vocabulary = json.loads((path.parent / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    own_model(path.parent, "model.embed_tokens.weight", put(math.nan, vocabulary["~"]))
    message, _ = failed(path)
    assert message.startswith("ModelUnsupported: spec.model.uri: model.embed_tokens.weight in model.safetensors holds ")


@pytest.mark.slow(fast=["changes1-BFloat16-Set training.precision to Float32; or if"])
@pytest.mark.parametrize(
    ("changes", "precision", "hint"),
    [
        ({"training": EXACT}, "Float32", "Remove the rows without a loss from the data, and run it again. Or, in the"),
        ({"training": {"precision": "BFloat16"}}, "BFloat16", "Set training.precision to Float32; or if"),
        (
            {"method": "QLoRA", "quantization": {"computeType": "Float16"}, "training": EXACT},
            "Float16",
            "Set quantization.computeType to Float32, or to BFloat16 on a GPU that has it",
        ),
    ],
)
def test_a_base_of_numbers_that_computes_none_is_told_with_its_precision(
    case: Case, changes: dict[str, Any], precision: str, hint: str
) -> None:
    path = case(**changes)
    # What the head gets is beyond the largest number.
    own_model(path.parent, "model.norm.weight", lambda tensor: tensor.fill_(3e38))
    found = failed(path)
    assert found[0] == (
        "ModelUnsupported: spec.model.uri: before any step the loss of the base is not finite on 12 of 12 held-out "
        f"rows, computed in {precision}, and its files hold neither NaN nor infinity"
    )
    assert found[1].startswith(hint)


def spoil(file: Path, book: Path, records: Callable[[Any], dict[str, Any]]) -> str:
    """Put NaN into a tensor of `file` and its new digest into `book`; return the tensor's name."""
    name = min(load_file(file))
    change(file, name, put(math.nan))
    content = json.loads(book.read_text())
    records(content)[file.name] |= {"sha256": hash_file(file), "size": file.stat().st_size}
    book.write_text(json.dumps(content))
    return name


@pytest.mark.slow
def test_an_adapter_that_is_trained_on_is_looked_at_itself(case: Case) -> None:
    path = case()
    assert run_here("run", path, "--work-dir", path.parent / "work").returncode == ExitCode.OK
    out = path.parent / "out"
    name = spoil(out / "adapter_model.safetensors", out / "manifest.json", lambda told: told["files"])
    later = case(continueFrom={"uri": "file://out"}, output={"uri": "file://out2"}, lora=None)
    message, hint = failed(later, "work2")
    assert message.startswith(f"AdapterCorrupt: spec.continueFrom: {name} in adapter_model.safetensors holds NaN")
    assert hint.startswith("Publish the named adapter again from a run that did not diverge")

    (out / "manifest.json").unlink()
    message, hint = failed(later, "work3")
    assert message.startswith(f"AdapterCorrupt: spec.continueFrom: {name} in adapter_model.safetensors holds NaN")
    assert "of a run that did not diverge" in hint
    assert "Publish" not in hint, "made elsewhere"


@pytest.mark.slow
def test_a_checkpoint_of_a_run_that_had_diverged_is_not_gone_on_from(case: Case) -> None:
    path = case(checkpoint=KEPT, training=EXACT)
    assert run_here("run", path, "--work-dir", path.parent / "work").returncode == ExitCode.OK
    newest = max(path.parent.glob("work/checkpoints/*/step-*"))
    name = spoil(newest / "trainable.safetensors", newest / "complete.json", lambda told: told["files"])
    said = f"the checkpoint of step 20 is of a run that had diverged by then: {name} in trainable.safetensors holds NaN"

    shutil.rmtree(path.parent / "out")
    assert failed(path)[0] == f"LossDiverged: {said}", "its own"

    place, spec = newest.parent, {"training": EXACT, "output": {"uri": "file://out2"}}
    message, hint = failed(case(resumeFrom={"uri": place.as_uri()}, **spec), "work2")
    assert message == f"CheckpointMissing: spec.resumeFrom: {said}"
    assert hint.startswith("Set resumeFrom.uri to a checkpoint of an older step")
    older = case(resumeFrom={"uri": f"{place.as_uri()}/step-000015"}, **spec)
    done = run_here("run", older, "--work-dir", path.parent / "work3")
    assert done.returncode == ExitCode.OK, "as the hint says"


@pytest.mark.parametrize(("name", "place"), [("a", (8, 3)), ("b", ()), ("e", (4, 0))])
def test_a_tensor_is_looked_at_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: tuple[int, ...]
) -> None:
    monkeypatch.setattr("tunery_trainer.model.finite._BLOCK", 8)
    tensors = {
        "a": torch.ones(9, 4, dtype=torch.bfloat16),
        "b": torch.tensor(1.0),
        "c": torch.full((3,), 200, dtype=torch.uint8),
        "d": torch.empty(0, 4),
        "e": torch.ones(5, 4, dtype=torch.float8_e4m3fn),
    }
    file = tmp_path / "x.safetensors"
    save_file(tensors, file)
    assert not_finite(file) is None
    spoilt = tensors[name].float().clone()
    spoilt[place] = math.nan
    save_file({**tensors, name: spoilt.to(tensors[name].dtype)}, file)
    assert str(not_finite(file)) == f"{name} in x.safetensors holds NaN"

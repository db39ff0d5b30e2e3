"""The story by the real command line: publish, verify, refuse, survive a kill; nothing half-done counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tunery_api.adaptermerge import OPEN_RANK_ERROR
from tunery_api.manifest import Lineage, Manifest, QuantizationRecord, SourceRecord
from tunery_api.reasons import FailureReason
from tunery_api.runspec import ResolvedAdapter, RunIdentity, RunResult, RunSpec
from tunery_common.errors import TuneryError
from tunery_common.storage import LocalStore, StorePath
from tunery_common.storage.published_folder import verify
from tunery_common.storage.publisher import Target, publish
from tunery_trainer.local import load_run_spec
from tunery_trainer.tasks.frame import refuse_own_input

from kit.adapters import deltas64, logits, relative, trained_adapter
from kit.fork_server import trainer_server
from kit.tiny_models import Tiny, save_tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("model") / "base", Tiny.LLAMA_TIED)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def publish_adapter(
    base: Path, place: Path, *, seed: int, rank: int = 4, quantization: QuantizationRecord | None = None
) -> Path:
    """Train and publish an adapter as the trainer does."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "down_proj"])
    folder = trained_adapter(base, config, place.parent / f"{place.name}.work", seed=seed)
    stored = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**stored, "base_model_name_or_path": "org/base"}))
    identity = RunIdentity(kind="LoRAJob", namespace="ns", name=place.name, uid=place.name)
    lineage = Lineage(model=SourceRecord(uri=base.as_uri()), served_name="org/base", quantization=quantization)
    publish(folder, target(place, identity), lineage)
    return place


def target(place: Path, identity: RunIdentity) -> Target:
    return Target(StorePath(LocalStore(place.parent, place.parent.as_uri(), "spec.output.uri"), place.name), identity)


@pytest.fixture
def inputs(base: Path, tmp_path: Path) -> list[Path]:
    return [publish_adapter(base, tmp_path / f"in-{i}", seed=i, rank=2 + 2 * i) for i in (1, 2)]


def manifest(folder: Path, inputs: Sequence[Path], **spec: Any) -> Path:
    adapters = [{"uri": place.as_uri(), "weight": 0.5} for place in inputs]
    path = folder / "merge.yaml"
    output = {"uri": (folder / "out").as_uri()}
    body = {"adapters": adapters, "output": output, **spec}
    kind = {"apiVersion": "tunery.dev/v1alpha1", "kind": "AdapterMerge", "metadata": {"name": "merge"}}
    path.write_text(json.dumps({**kind, "spec": body}))
    return path


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "tunery_trainer", "run", str(path), "--work-dir", str(path.parent / "work")]


def run(path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return trainer_server().run(command(path), text=True, env=environment, timeout=300)


def succeed(path: Path) -> Manifest:
    """Run the merge; return its manifest once every digest was compared."""
    done = run(path)
    assert done.returncode == 0, done.stderr
    return published(path.parent / "out")


def published(place: Path) -> Manifest:
    return verify(StorePath(LocalStore(place.parent, place.parent.as_uri(), "test"), place.name)).manifest


def refuse(path: Path, code: int, *words: str) -> None:
    """Run the merge; it must end with this exit code and these words on stderr, and leave nothing behind."""
    done = run(path)
    assert done.returncode == code, done.stderr
    assert [word for word in words if word not in done.stderr] == []
    out = path.parent / "out"
    assert [file for file in out.rglob("*") if file.is_file()] == []


def test_adapters_become_one(tmp_path: Path, inputs: list[Path]) -> None:
    result = succeed(manifest(tmp_path, inputs))
    one, two, out = (deltas64(folder) for folder in (*inputs, tmp_path / "out"))
    assert max(relative(out[name], 0.5 * one[name] + 0.5 * two[name]) for name in out) <= 1e-6
    lineage = result.lineage
    assert [(item.rank, item.weight) for item in lineage.inputs] == [(4, "0.5"), (6, "0.5")]
    assert (lineage.rank, lineage.served_name, lineage.method) == (10, "org/base", "Linear")
    assert lineage.verification is not None
    assert float(lineage.verification.max_error) <= 1e-6
    assert set(result.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Largest relative error of a module at this rank | 0 |" in card
    assert "ankError" not in card
    assert "| Seed |" not in card


@pytest.mark.parametrize("method", ["TIES", "DARELinear", "DARETIES", "MagnitudePrune"])
def test_a_rank_costs_what_the_manifest_says(tmp_path: Path, inputs: list[Path], method: str) -> None:
    lineage = succeed(manifest(tmp_path, inputs, method=method, density=0.5, rank=6)).lineage
    assert lineage.rank == 6
    assert lineage.verification is not None
    assert 0.05 < lineage.metrics["rankError"] < 1
    assert float(lineage.verification.max_error) == pytest.approx(lineage.metrics["rankError"], rel=1e-2)
    assert "| Seed | 42 |" in (tmp_path / "out" / "README.md").read_text()


def test_an_open_rank_costs_little(tmp_path: Path, inputs: list[Path]) -> None:
    lineage = succeed(manifest(tmp_path, inputs, method="TIES")).lineage
    assert lineage.rank is not None
    assert 6 < lineage.rank <= 32
    assert 0 < lineage.metrics["rankError"] <= OPEN_RANK_ERROR
    assert "rank" not in lineage.hyperparameters


def test_knots_is_exact_at_the_sum_of_the_ranks(tmp_path: Path, inputs: list[Path]) -> None:
    lineage = succeed(manifest(tmp_path, inputs, method="KnOTSTIES", density=0.5)).lineage
    assert (lineage.rank, lineage.metrics["rankError"]) == (10, 0.0)
    assert lineage.hyperparameters["majoritySign"] == "Total"
    assert lineage.verification is not None
    assert float(lineage.verification.max_error) <= 1e-5


def test_into_the_model(tmp_path: Path, base: Path, inputs: list[Path]) -> None:
    adapters = [{"uri": inputs[0].as_uri()}]
    lineage = succeed(manifest(tmp_path, inputs, into="Model", adapters=adapters)).lineage
    expected = logits(base, tmp_path / "in-1.work")
    assert float((logits(tmp_path / "out") - expected).abs().max()) <= 1e-5
    assert (tmp_path / "out/tokenizer.json").exists()
    assert lineage.verification is not None
    assert "logits" in lineage.verification.method
    assert float(lineage.verification.max_error) <= 1e-5


def test_several_into_the_model_with_another_type(tmp_path: Path, base: Path, inputs: list[Path]) -> None:
    succeed(manifest(tmp_path, inputs, into="Model", model={"uri": base.as_uri()}, dtype="BFloat16"))
    name = "model.layers.0.self_attn.q_proj"
    weights = {n: t for path in (tmp_path / "out").glob("*.safetensors") for n, t in load_file(path).items()}
    original = {n: t for path in base.glob("*.safetensors") for n, t in load_file(path).items()}
    delta = sum(0.5 * deltas64(folder)[name] for folder in inputs)
    expected = (original[f"{name}.weight"].double() + delta).bfloat16()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert relative(weights[f"{name}.weight"], expected) <= 1e-3


def test_a_qlora_adapter_goes_into_the_dequantised_base(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_TIED, hidden_size=128, intermediate_size=256)
    quantization = QuantizationRecord(type="NF4", double_quant=True, loaded_as="Float32")
    place = publish_adapter(base, tmp_path / "q", seed=1, quantization=quantization)
    adapters = [{"uri": place.as_uri()}]
    lineage = succeed(manifest(tmp_path, [], into="Model", adapters=adapters)).lineage
    assert lineage.verification is not None
    assert "NF4 base" in lineage.verification.method
    assert float(lineage.verification.max_error) <= 0.01


def test_a_quantisation_of_a_later_version_goes_into_an_adapter_and_into_no_model(tmp_path: Path, base: Path) -> None:
    place = publish_adapter(base, tmp_path / "q", seed=1, quantization=QuantizationRecord(type="MXFP4"))
    adapters = [{"uri": place.as_uri()}]
    refuse(
        manifest(tmp_path, [], into="Model", adapters=adapters, model={"uri": base.as_uri()}),
        64,
        "InvalidSpec",
        "was trained on a base quantised as MXFP4, which this version does not know",
    )
    lineage = succeed(manifest(tmp_path, [], adapters=adapters, rank=2)).lineage
    assert str(lineage.quantization) == "MXFP4"


def test_different_bases_are_refused_by_name(tmp_path: Path, inputs: list[Path], base: Path) -> None:
    changed = publish_other(base, tmp_path / "other")
    refuse(
        manifest(tmp_path, [inputs[0], changed]),
        64,
        "InvalidSpec",
        "base_model_name_or_path differs: 'org/base' in spec.adapters[0]",
        "'org/other' in spec.adapters[1]",
    )


def publish_other(base: Path, place: Path) -> Path:
    folder = trained_adapter(base, LoraConfig(r=4, target_modules=["q_proj"]), place.parent / "other.work", seed=9)
    stored = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**stored, "base_model_name_or_path": "org/other"}))
    publish(folder, target(place, RunIdentity(kind="LoRAJob", namespace="ns", name="o", uid="o")), Lineage())
    return place


def test_a_nan_weight_names_the_tensor(tmp_path: Path, inputs: list[Path], base: Path) -> None:
    work = tmp_path / "in-1.work"
    weights = load_file(work / "adapter_model.safetensors")
    key = next(iter(weights))
    weights[key][0, 0] = float("nan")
    save_file(weights, work / "adapter_model.safetensors")
    place = tmp_path / "broken"
    publish(work, target(place, RunIdentity(kind="LoRAJob", namespace="ns", name="b", uid="b")), Lineage())
    done = run(manifest(tmp_path, [place, inputs[1]]))
    assert done.returncode == 64
    assert f"tensor {key} holds NaN or infinite values" in done.stderr
    assert "spec.adapters[0]" in done.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    assert not (tmp_path / "out/adapter_model.safetensors").exists()


@pytest.mark.parametrize("damage", ["tampered", "truncated", "missing weights"])
def test_a_damaged_adapter_is_refused_by_name(tmp_path: Path, inputs: list[Path], damage: str) -> None:
    weights = inputs[1] / "adapter_model.safetensors"
    data = weights.read_bytes()
    if damage == "tampered":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncated":
        weights.write_bytes(data[:-100])
    else:
        weights.unlink()
    refuse(manifest(tmp_path, inputs), 64, "AdapterCorrupt", "spec.adapters[1]")


@pytest.mark.slow
def test_killed_at_any_instant_and_run_again(tmp_path: Path, inputs: list[Path]) -> None:
    path = manifest(tmp_path, inputs, into="Model", adapters=[{"uri": inputs[0].as_uri()}])
    seen = set()
    for delay in (0.3, 1.5, 2.5, 3.5, 4.5, 6.0):
        process = subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        seen.add(process.wait())
        if (tmp_path / "out/manifest.json").exists():
            published(tmp_path / "out")  # complete and matching, or this raises
    assert -signal.SIGKILL in seen
    first = succeed(path)
    assert succeed(path).created == first.created, "a rerun of what is published does no work"


def test_a_report_says_what_the_merge_said(base: Path, inputs: list[Path], tmp_path: Path) -> None:
    run = load_run_spec(manifest(tmp_path, inputs, rank=4), tmp_path / "work", None)
    (tmp_path / "run.json").write_text(json.dumps(run.to_json_dict()))
    said = []
    for task in ("merge", "report", "merge"):
        message = tmp_path / task
        done = trainer_server().run(
            [sys.executable, "-m", "tunery_trainer", task, str(tmp_path / "run.json")],
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TUNERY_TERMINATION_PATH": str(message)},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said.append(RunResult.model_validate_json(message.read_bytes()))
    assert said[0] == said[1] == said[2]
    assert said[0].rank == 4
    assert len(said[0].inputs or ()) == 2
    assert said[0].verification is not None
    assert said[0].rank_error is not None
    assert said[0].rank_too_low is None, "it was asked for"
    assert said[0].metrics is None


def test_a_merge_onto_an_adapter_that_it_reads_is_refused(inputs: list[Path]) -> None:
    """As it comes from the operator: the spec names a LoRAJob, and only the run knows where its adapter lies."""
    run_spec = RunSpec(
        identity=RunIdentity(kind="AdapterMerge", namespace="ns", name="merge", uid="u"),
        output_uri=f"{inputs[0].as_uri()}/",
        adapters=[ResolvedAdapter(uri=place.as_uri()) for place in inputs],
    )
    with pytest.raises(TuneryError, match=r"spec\.output\.uri: .* is where an adapter lies") as caught:
        refuse_own_input(run_spec)
    assert caught.value.reason is FailureReason.INVALID_SPEC

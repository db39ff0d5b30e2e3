"""`tunery train`: the manifest of its options."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tunery.builder import generate_name
from tunery.cli import run

from kit import kubectl_yaml

REQUIRED = ["--model", "hf://Qwen/Qwen3-0.6B", "--data", "s3://data/support.jsonl"]


def train(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert run(["train", *REQUIRED, *options, "-o", "yaml"]) == 0
    return kubectl_yaml.load(capsys.readouterr().out)


def test_the_manifest_has_the_options_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    body = train(
        capsys, "--method", "qlora", "--preset", "instructiontuning", "--output", "s3://out/a", "--secret", "s3",
        "--name", "a", "--gpus", "2", "--set", "training.learningRate=1e-4", "--set", "method=DoRA",
    )  # fmt: skip
    assert body == {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "LoRAJob",
        "metadata": {"name": "a"},
        "spec": {
            "model": {"uri": "hf://Qwen/Qwen3-0.6B"},
            "dataset": {"uri": "s3://data/support.jsonl", "secretRef": {"name": "s3"}},
            "method": "DoRA",
            "preset": "InstructionTuning",
            "output": {"uri": "s3://out/a", "secretRef": {"name": "s3"}},
            "resources": {"gpus": 2},
            "training": {"learningRate": 0.0001},
        },
    }


def test_json_is_printed_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *REQUIRED, "--name", "a", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"].keys() == {"model", "dataset"}


@pytest.mark.parametrize(
    ("model", "data", "name"),
    [
        ("hf://Qwen/Qwen3-0.6B", "s3://data/support.jsonl.gz", "qwen3-0-6b-support"),
        ("s3://models/tiny/", "pvc://claim/rows/*.parquet", "tiny-rows"),
        ("s3://m", "hf://org/Ünï", "m-n"),
        ("hf://o/" + "x" * 80, "s3://d/y", "x" * 40),
        ("hf://o/" + "x" * 39, "s3://d/y", "x" * 39),
        ("s3://Ü", "s3://Ü", "job"),
    ],
)
def test_a_name_is_generated_from_model_and_data(model: str, data: str, name: str) -> None:
    generated = generate_name(model, data)
    assert re.fullmatch(f"{name}-[a-z0-9]{{5}}", generated), generated
    assert generate_name(model, data) != generated


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--set", "training.epoch=2"], "spec.training.epoch: unknown field; did you mean epochs?"),
        (["--set", "training"], "--set training is not PATH=VALUE"),
        (["--name", "A"], "metadata.name: must be a DNS name"),
        (["--watch", "-o", "yaml"], "--watch and -o exclude each other"),
        (["--method", "Lara"], "'Lara' is not one of"),
        (["--gpus", "99"], "spec.resources.gpus: must be at most 16, is 99"),
        (["--model", "Qwen/Qwen3"], "spec.model.uri: must be hf://owner/name"),
        (["--data", "hf://a/b", "--secret", "s"], "--set model.secretRef.name=s"),
    ],
)
def test_an_invalid_option_is_a_usage_error(options: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *REQUIRED, *options]) == 2
    assert error in capsys.readouterr().err

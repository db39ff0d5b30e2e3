"""Compared jobs: which losses are comparable, which differ by more than their errors, which settings differ."""

from __future__ import annotations

from typing import Any

import pytest

from tunery.comparison import (
    OTHER_MODEL,
    OTHER_ROWS,
    OTHER_TASK,
    OTHER_TOKENS,
    UNKNOWN_ROWS,
    compare,
    differing_settings,
)
from tunery.objects import View

SHA = "ab" * 32


def job(name: str, loss: float | None = 1.5, error: float | None = 0.01, **changes: Any) -> View:
    """Return a job that trained; `changes` replace fields of the spec or, if they have that name, of the data set."""
    dataset = {"sha256": SHA, "rows": 400, "evaluationRows": 0, "format": "Messages", "tokens": 9000, "lossTokens": 900}
    dataset |= changes.pop("read", {})
    metrics = {"baseEvalLoss": "2.0"} | (
        {} if loss is None else {"evalLoss": str(loss), "improvement": str(1 - loss / 2)}
    )
    metrics |= {} if error is None else {"improvementError": str(error)}
    spec = {
        "model": {"uri": "hf://Qwen/Qwen3-8B"},
        "dataset": {"uri": "s3://d/x.jsonl"},
        "output": {"uri": f"s3://a/{name}"},
    }
    status = {"phase": "Succeeded", "metrics": metrics, "dataset": dataset, "gpuSeconds": 5400}
    return View(
        {"kind": "LoRAJob", "metadata": {"name": name, "namespace": "t"}, "spec": spec | changes, "status": status}
    )


def results(*views: View) -> dict[str, str]:
    return {each.view.name: each.result for each in compare(views)}


def test_the_lowest_loss_is_first_and_others_are_higher() -> None:
    found = results(job("a", 1.6), job("b", 1.5), job("c", 1.8))
    assert found == {"b": "lowest held-out loss", "a": "higher by 6.7 %", "c": "higher by 20.0 %"}
    assert list(found) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("loss", "errors", "result"),
    [
        (1.53, (0.01, 0.01), "same within error"),  # the errors are 0.02 each
        (1.55, (0.01, 0.01), "higher by 3.3 %"),
        (1.53, (0.01, None), "higher by 2.0 %; the error is unknown"),
        (1.5, (None, None), "same"),
    ],
)
def test_a_difference_below_the_errors_is_none(loss: float, errors: tuple[float | None, ...], result: str) -> None:
    assert results(job("a", 1.5, errors[0]), job("b", loss, errors[1]))["b"] == result


def test_errors_of_other_first_weights_are_unknown() -> None:
    other = job("b", 1.51, continueFrom={"uri": "s3://a/x"})
    assert results(job("a"), other)["b"] == "higher by 0.7 %; the error is unknown"


@pytest.mark.parametrize(
    ("other", "result"),
    [
        (job("b", 1.0, read={"sha256": "cd" * 32}), OTHER_ROWS),
        (job("b", 1.0, read={"evaluationRows": 90, "evaluationSha256": SHA}), OTHER_ROWS),
        (job("b", 1.0, training={"seed": 7}), OTHER_ROWS),
        (job("b", 1.0, dataset={"evaluation": {"fraction": 0.1}}), OTHER_ROWS),
        (job("b", 1.0, read={"sha256": None}), UNKNOWN_ROWS),
        (job("b", 1.0, training={"loss": "All"}), OTHER_TOKENS),
        (job("b", 1.0, training={"maxLength": 512}, read={"lostTokens": 5}), OTHER_TOKENS),
        (job("b", 1.0, task="DPO"), OTHER_TASK),
        (job("b", 1.0, model={"uri": "hf://meta/Llama"}, read={"tokens": 9100}), OTHER_MODEL),
        (job("b", None), "no held-out loss was measured"),
    ],
)
def test_other_held_out_rows_are_not_comparable(other: View, result: str) -> None:
    assert results(job("a", 1.5), job("c", 1.6), other) == {
        "a": "lowest held-out loss",
        "c": "higher by 6.7 %",
        "b": result,
    }


@pytest.mark.parametrize(
    "other",
    [
        job("b", training={"seed": 42, "maxLength": 512}, dataset={"evaluation": {"fraction": 0.05}}),
        job("b", model={"uri": "hf://Qwen/Qwen3-4B"}),
    ],
)
def test_defaults_and_another_model_of_the_same_tokens_are_comparable(other: View) -> None:
    assert results(job("a"), other) == {"a": "lowest held-out loss", "b": "same"}


def test_separate_evaluation_rows_are_comparable_whatever_was_trained() -> None:
    read = {"evaluationRows": 90, "evaluationSha256": SHA}
    one, other = job("a", read=read | {"sha256": "cd" * 32}), job("b", 1.7, read=read, training={"seed": 7})
    assert results(one, other)["b"] == "higher by 13.3 %"


def test_only_settings_that_differ_are_shown() -> None:
    one = job("a", training={"learningRate": 1e-4, "epochs": 2}, lora={"targetModules": ["q_proj"]})
    other = job("b", training={"learningRate": "0.0001", "epochs": 3})
    assert differing_settings([one, other]) == {
        "lora.targetModules": ['["q_proj"]', "unset"],
        "training.epochs": ["2", "3"],
    }


def test_values_in_use_count_once_every_job_has_reported_them() -> None:
    one, other = job("a", training={"epochs": 1}), job("b")
    one.body["status"]["resolved"] = {"method": "LoRA", "values": [{"name": "training.epochs", "value": "1"}]}
    assert differing_settings([one, other])["training.epochs"] == ["1", "unset"]
    other.body["status"]["resolved"] = {"method": "QLoRA", "values": [{"name": "training.epochs", "value": "1"}]}
    assert differing_settings([one, other]) == {"method": ["LoRA", "QLoRA"]}

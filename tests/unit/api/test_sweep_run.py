"""What run.json says of a sweep at its end: small enough for a ConfigMap, its space in words, its places apart."""

from __future__ import annotations

import pytest

from tunery_api.lorasweep import MAX_TRIALS
from tunery_api.measured import EvaluationStatus
from tunery_api.names import folder_in_bucket, sibling_uri, trials_uri
from tunery_api.runspec import LoRASweepRun, RunIdentity, RunSpec
from tunery_api.sweepstatus import TrialAdapter, TrialStatus
from tunery_search.dimensions import Categorical, Condition, Numeric
from tunery_search.summary import searched_parameters


def test_as_many_trials_as_there_may_be_fit_into_a_run_json() -> None:
    values = {f"training.parameter{at}": "0.0001234" for at in range(6)}
    place = "s3://adapters/team/support-trials/0b8c1c5e-5d0c-4b57-9a42-1f0d3b7f1c11"
    evaluations = [EvaluationStatus(step=125 * at, loss="1.412345") for at in range(8)]
    complete = [
        TrialStatus(
            number=number,
            name=f"support-{number:03}",
            uid="0b8c1c5e-5d0c-4b57-9a42-1f0d3b7f1c11",
            origin="TPE",
            state="Complete",
            value="1.41234",
            base_value="2.03123",
            parameters=values,
            trainable_parameters=4884480,
            steps=1000,
            evaluations=evaluations,
            gpu_seconds=1210,
            run_seconds=1210,
            adapter=TrialAdapter(uri=f"{place}/{number:03}", manifest_sha256="a" * 64),
        )
        for number in range(MAX_TRIALS)
    ]
    why = "WontFit: 26.1 GiB are needed, and there are 23.4: lower training.batchSize or training.maxLength"
    refused = [
        TrialStatus(number=128 + at, name=f"support-{128 + at}", state="Infeasible", parameters=values, why=why)
        for at in range(MAX_TRIALS)
    ]
    sweep = LoRASweepRun(trials=[*complete, *refused], best=0, trials_uri=place, seed=1, sampler="TPE")
    identity = RunIdentity(kind="LoRASweep", namespace="team", name="support", uid="u")
    run = RunSpec(identity=identity, lora_sweep=sweep, output_uri="s3://adapters/team/support")
    text = run.model_dump_json(by_alias=True, exclude_none=True)
    assert len(text) < 200_000
    assert RunSpec.model_validate_json(text) == run


def test_the_space_is_told_in_words() -> None:
    ranks = Condition("method", ("LoRA", "DoRA"))
    space = [
        Categorical("method", ("LoRA", "DoRA", "IA3")),
        Numeric("training.learningRate", 1e-5, 0.01, log=True),
        Numeric("lora.dropout", 0, 0.2, step=0.05, when=ranks),
        Numeric("training.maxSteps", 100, 500, integer=True),
    ]
    assert [(each.words, each.log, each.choices) for each in searched_parameters(space)] == [
        ("LoRA, DoRA, IA3", False, ["LoRA", "DoRA", "IA3"]),
        ("0.00001 to 0.01, by factors", True, None),
        ("0 to 0.2 in steps of 0.05; where method is LoRA or DoRA", False, None),
        ("100 to 500", False, None),
    ]


@pytest.mark.parametrize(
    ("output", "trials"),
    [
        ("s3://adapters/support", "s3://adapters/support-trials/u-1"),
        ("s3://adapters/team/support/", "s3://adapters/team/support-trials/u-1"),
        ("s3://adapters", "s3://adapters/trials/u-1"),
        ("file:///results/out", "file:///results/out-trials/u-1"),
    ],
)
def test_trials_lie_beside_the_output_below_the_uid_of_their_sweep(output: str, trials: str) -> None:
    assert trials_uri(output, "u-1") == trials


def test_a_folder_of_an_object_lies_at_the_top_of_the_bucket() -> None:
    place = folder_in_bucket("s3://adapters/team/support", "tunery-checkpoints", "team", "support-001", "u-2")
    assert place == "s3://adapters/tunery-checkpoints/team/support-001-u-2"
    assert sibling_uri("s3://adapters/out/", "rejected") == "s3://adapters/out-rejected"

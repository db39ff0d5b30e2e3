"""How a sweep's card tells what was found: the best in order, and at most some of the rest."""

from __future__ import annotations

import json

from tunery_api.manifest import Lineage
from tunery_api.runspec import LoRASweepRun, RunIdentity, RunSpec
from tunery_trainer.reporting.model_card import Shown, model_card
from tunery_trainer.reporting.sweep_card import how_it_was_found, sweep_json
from tunery_trainer.reporting.sweep_rows import kept, loss_of, ranked


def sweep(*rows: dict[str, object], **changes: object) -> LoRASweepRun:
    facts = {"trialsUri": "s3://b/out-trials/u", "seed": 7, "sampler": "Grid", "best": 0, **changes}
    trials = [{"number": number, "name": f"s-{number:03}", **row} for number, row in enumerate(rows)]
    return LoRASweepRun.model_validate({**facts, "trials": trials})


def complete(value: str, size: int = 1, **more: object) -> dict[str, object]:
    return {"state": "Complete", "value": value, "trainableParameters": size, **more}


def test_the_chosen_one_comes_first_and_the_others_by_loss_size_and_number() -> None:
    run = sweep(complete("1.3"), complete("1.2", 9), complete("1.2", 4), complete("1.2", 4), complete("inf"))
    assert [row.number for row in ranked(run)] == [0, 2, 3, 1]


def test_only_trials_with_an_adapter_are_kept() -> None:
    adapter = {"uri": "s3://b/x", "manifestSha256": "a" * 64}
    run = sweep(complete("1.3", adapter=adapter), complete("1.1"), complete("1.2", adapter=adapter), keepAdapters=2)
    assert [row.number for row in kept(run)] == [0, 2]


def test_a_trial_that_was_ended_has_the_loss_of_its_last_evaluation() -> None:
    losses = [{"step": 5, "loss": "1.9"}, {"step": 10, "loss": "1.8"}, {"step": 15, "loss": "nan"}]
    assert loss_of(sweep({"state": "Pruned", "evaluations": losses}).trials[0]) == 1.8
    assert loss_of(sweep({"state": "Infeasible"}).trials[0]) is None


def test_ten_trials_are_in_the_table_and_20_of_those_that_did_not_come_to_their_end() -> None:
    ended = [{"state": "Pruned", "why": f"worse {at}", "at": "0.25"} for at in range(30)]
    text = how_it_was_found(sweep(*(complete(f"1.{at:02}") for at in range(12)), *ended), {})
    assert "### The 10 best trials" in text
    assert "| 9 | 1.09 |" in text
    assert "| 10 | 1.1 |" not in text
    assert "| 31 | Pruned | 0.25 | worse 19 |" in text
    assert "| 32 |" not in text
    assert "10 more stand in `sweep.json`." in text


def test_it_says_why_the_search_ended_and_what_was_saved() -> None:
    trial = complete("1.1", gpuSeconds=4000, baseValue="2.0")
    text = how_it_was_found(sweep(trial, endReason="Budget", gpuSecondsSaved=3100, rungs=[0.25]), {"Trials": "t.png"})
    assert "The search ended as spec.budget was spent." in text
    assert "GPU seconds of all trials: 4,000; ending trials early saved some 3,100." in text
    assert "Sampler Grid with seed 7; compared at 0.25 of the steps." in text
    assert "![Trials](t.png)" in text
    assert "The search ended as SomethingNew." in how_it_was_found(sweep(trial, endReason="SomethingNew"), {})


def test_a_card_of_the_longest_values_comes_to_its_end() -> None:
    values = {f"training.{'a' * 50}{at:02}": "q_proj," * 36 for at in range(16)}
    space = [{"path": path, "words": "x" * 16_000} for path in values]
    ended = [{"state": "Pruned", "why": "w" * 256, "parameters": values} for _ in range(128)]
    run = sweep(*(complete(f"1.{at:02}", parameters=values) for at in range(128)), *ended, space=space)
    identity = RunIdentity(kind="LoRASweep", namespace="n", name="s", uid="u")
    shown = Shown(search=how_it_was_found(run, {}))
    card = model_card(identity, Lineage(method="LoRA", rank=8, served_name="org/base"), "s3://b/out", shown=shown)
    assert card.rstrip().endswith("vllm serve org/base --enable-lora --max-lora-rank 8 --lora-modules s=./out\n```")


def test_the_file_has_every_row_to_the_letter() -> None:
    run = sweep(complete("1.41234", parameters={"lora.rank": "8"}), {"state": "Failed", "why": "éü | x"})
    identity = RunIdentity(kind="LoRASweep", namespace="n", name="s", uid="u")
    told = json.loads(sweep_json(RunSpec(identity=identity, lora_sweep=run, output_uri="s3://b/out"), run))
    assert told["sweep"] == {"kind": "LoRASweep", "namespace": "n", "name": "s", "uid": "u"}
    assert (told["outputUri"], told["seed"], told["sampler"], told["best"]) == ("s3://b/out", 7, "Grid", 0)
    assert [LoRASweepRun.model_validate({**told, "trials": told["trials"]}).trials] == [run.trials]
    assert told["trials"][1] == {"number": 1, "name": "s-001", "state": "Failed", "why": "éü | x", "parameters": {}}


def test_the_file_names_no_adapter_that_is_removed_as_soon_as_it_is_there() -> None:
    adapter = {"uri": "s3://b/x", "manifestSha256": "a" * 64}
    run = sweep(complete("1.1", adapter=adapter), complete("1.3", adapter=adapter), complete("1.2", adapter=adapter))
    run = run.model_copy(update={"keep_adapters": 2})
    identity = RunIdentity(kind="LoRASweep", namespace="n", name="s", uid="u")
    told = json.loads(sweep_json(RunSpec(identity=identity, lora_sweep=run, output_uri="s3://b/out"), run))
    assert [("adapter" in row) for row in told["trials"]] == [True, False, True]

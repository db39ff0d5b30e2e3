"""A LoRASweep from its first trial to the published best, on a real API server and Job controller."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.operator.api import Json, eventually
from kit.operator.objects import Namespace, lorajob, lorasweep
from kit.operator.players import ROLE_LABEL
from kit.operator.poster import Poster
from kit.operator.process import OperatorProcess
from kit.operator.runs import run_of
from kit.operator.sweeps import STEPS, Trials, course, failed, loss_of

SWEEPS = "lorasweeps"
NO_PRUNER = {"type": "None"}
GRACE_SECONDS = 10
"""For a look at the sweep, one at its trial, and the end of that one's pod."""


def ended(namespace: Namespace, name: str = "s", phase: str = "Succeeded") -> Json:
    return namespace.wait_phase(name, phase, SWEEPS)


def rows(namespace: Namespace, name: str = "s") -> list[Json]:
    found: list[Json] = namespace.status(name, SWEEPS).get("trials") or []
    return found


def jobs(namespace: Namespace) -> dict[str, Json]:
    return {body["metadata"]["name"]: body for body in namespace.api.items(namespace.path("lorajobs"))}


def wait_rows(namespace: Namespace, *states: str) -> list[Json]:
    """Return the rows once their states are these, by number."""

    def check() -> list[Json] | None:
        found = rows(namespace)
        return found if tuple(row["state"] for row in found) == states else None

    try:
        return eventually(f"trials are {states}", check)
    except AssertionError as error:
        told = [(row["state"], row.get("why")) for row in rows(namespace)]
        raise AssertionError(f"{error}: {told}, {namespace.status('s', SWEEPS).get('conditions')}") from error


SHA = {name: f"{name:x}" * 64 for name in range(1, 5)}
READ: Json = {
    "dataset": {"rows": 90, "sha256": SHA[1], "evaluationSha256": SHA[2]},
    "resolved": {"steps": STEPS, "revision": "0123abc", "continuedFrom": {"uri": "hf://o/a", "sha256": SHA[3]}},
}
READ["resolved"]["continuedFrom"]["revision"] = "4567def"


@pytest.mark.slow
def test_every_trial_reads_what_the_first_one_has_read(namespace: Namespace, trials: Trials) -> None:
    """Also the first: between its preflight and its training the data may change as well."""
    trials.ends["preflight"] = lambda _: (0, READ)
    trials.held.add("*")
    template = lorasweep("s")["spec"]["template"]
    template["model"] = {"uri": "hf://o/base", "revision": "main"}
    template["dataset"]["evaluation"] = {"uri": "s3://datasets/held.jsonl"}
    template["continueFrom"] = {"uri": "hf://o/a"}
    namespace.apply(lorasweep("s", template=template, maxTrials=3, parallelTrials=2, pruner=NO_PRUNER))
    wait_rows(namespace, "Running", "Running")
    told = namespace.status("s", SWEEPS)["trialInputs"]
    assert told == {
        "revision": "0123abc",
        "datasetSha256": SHA[1],
        "evaluationSha256": SHA[2],
        "adapterSha256": SHA[3],
        "adapterRevision": "4567def",
    }
    first, second = (jobs(namespace)[f"s-00{number}"]["spec"] for number in (0, 1))
    assert (first["model"]["revision"], first["preflight"], second["preflight"]) == ("main", "Required", "Skip")
    pinned = {"model": "hf://o/base", "dataset": "s3://datasets/d.jsonl"}
    assert second["model"] == {"uri": pinned["model"], "revision": "0123abc"}
    held = {"uri": "s3://datasets/held.jsonl", "sha256": SHA[2]}
    assert second["dataset"] == {"uri": pinned["dataset"], "evaluation": held, "sha256": SHA[1]}
    assert second["continueFrom"] == {"uri": "hf://o/a", "revision": "4567def", "sha256": SHA[3]}
    trained = {name: run_of(namespace, f"{name}-train")["loraJob"]["dataset"] for name in ("s-000", "s-001")}
    assert {each["sha256"] for each in trained.values()} == {SHA[1]}
    assert {each["evaluation"]["sha256"] for each in trained.values()} == {SHA[2]}
    # What is remembered is not asked of a trial again.
    namespace.delete("lorajobs", "s-000")
    trials.held = {"s-002"}
    eventually("another one is made", lambda: jobs(namespace).get("s-002"))
    assert jobs(namespace)["s-002"]["spec"]["dataset"] == second["dataset"]


def test_the_best_of_nine_trials_is_published(namespace: Namespace, trials: Trials) -> None:
    namespace.apply(lorasweep("s", maxTrials=9, parallelTrials=3, pruner=NO_PRUNER, keepAdapters=2))
    status = ended(namespace)
    found = status["trials"]
    assert [row["number"] for row in found] == list(range(9))
    for row in found:
        assert (row["state"], row["origin"], row["steps"]) == ("Complete", "TPE", STEPS)
        assert float(row["value"]) == pytest.approx(loss_of(float(row["parameters"]["training.learningRate"])), 1e-5)
    best = min(found, key=lambda row: float(row["value"]))
    assert (status["best"]["trial"], status["best"]["value"]) == (best["number"], best["value"])
    assert status["best"]["baseValue"] == "3"
    assert (status["endReason"], status["countsText"]) == ("MaxTrials", "9/9")
    assert status["counts"] == {
        "created": 9, "waiting": 0, "running": 0, "complete": 9, "pruned": 0, "infeasible": 0, "failed": 0
    }  # fmt: skip
    assert status["adapter"]["uri"] == "s3://adapters/s"
    assert [each["trial"] for each in status["convergence"]][-1] == best["number"]
    uid = (namespace.get(SWEEPS, "s") or {})["metadata"]["uid"]
    run = run_of(namespace, "s-publish-best")
    assert run["loraSweep"]["best"] == best["number"]
    told = run["loraSweep"]["trials"]
    assert [{**row, "adapter": told[row["number"]]["adapter"]} for row in found] == told
    by_loss = sorted(found, key=lambda row: float(row["value"]))
    assert [("adapter" in row) for row in by_loss] == [True, True, *[False] * 7], "the others are removed"
    assert (run["loraSweep"]["keepAdapters"], run["outputUri"]) == (2, "s3://adapters/s")
    assert run["loraSweep"]["trialsUri"] == f"s3://adapters/s-trials/{uid}"
    assert best["adapter"]["uri"] == f"s3://adapters/s-trials/{uid}/{best['number']:03d}"


@pytest.mark.slow
def test_rows_tell_of_what_runs_while_no_other_trial_may_be_made(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("*")
    trials.ends["preflight"] = lambda run: None
    namespace.apply(lorasweep("s", maxTrials=2, parallelTrials=2))
    eventually("the first trial", lambda: "s-000" in jobs(namespace))
    namespace.deny("tunery.dev", "lorajobs", "one LoRAJob for each team")
    del trials.ends["preflight"]
    wait_rows(namespace, "Running")
    namespace.wait_reason("s", "CreateRefused", SWEEPS)
    searching = namespace.condition("s", "Searching", SWEEPS)
    assert (searching["status"], searching["reason"]) == ("Unknown", "CreateRefused")
    assert "one LoRAJob for each team" in searching["message"]
    namespace.allow()
    trials.held.clear()
    assert [row["state"] for row in ended(namespace)["trials"]] == ["Complete", "Complete"]


@pytest.mark.slow
def test_a_missing_secret_costs_one_trial_and_a_retry_goes_on(namespace: Namespace, trials: Trials) -> None:
    trials.ends["preflight"] = lambda run: failed("SecretNotFound", "the Secret s3 is missing")
    namespace.apply(lorasweep("s"))
    status = ended(namespace, phase="Failed")
    assert status["failure"]["reason"] == "SecretNotFound"
    assert "trial 0 (s-000) failed as every trial would: the Secret s3 is missing" in status["failure"]["message"]
    assert "kubectl annotate lorasweep s" in status["failure"]["hint"]
    assert sorted(jobs(namespace)) == ["s-000"]
    for plural in ("jobs", "pods"):
        made = namespace.api.items(namespace.path(plural))
        assert [body["metadata"]["labels"][ROLE_LABEL] for body in made] == ["preflight"], plural
    del trials.ends["preflight"]
    namespace.annotate("s", SWEEPS, retry="1")
    status = ended(namespace)
    assert [row["state"] for row in status["trials"]] == ["Failed", *["Complete"] * 4], (
        "what has failed stays as it was"
    )
    assert status["countsText"] == "4/4"


@pytest.mark.slow
def test_what_is_in_the_worse_half_is_stopped_for_good(
    namespace: Namespace, trials: Trials, operator: OperatorProcess, progress_tls: Path
) -> None:
    trials.held.update(f"s-{number:03d}" for number in range(2, 4))
    pruner = {"type": "Halving", "rungs": [0.25], "minRivals": 2}
    grid = {"path": "training.learningRate", "choices": ["1e-3", "2e-3", "1e-1", "3e-3"]}
    namespace.apply(
        lorasweep("s", maxTrials=4, parallelTrials=4, pruner=pruner, parameters=[grid], sampler={"type": "Grid"})
    )
    wait_rows(namespace, "Complete", "Complete", "Running", "Running")
    pod = next(pod for pod in namespace.pods("s-002-train"))["metadata"]["name"]
    poster = Poster(namespace, operator, progress_tls, pod)
    told = {
        "phase": "Training",
        "step": 20,
        "totalSteps": STEPS,
        "evaluations": course(loss_of(1e-1), 2),
        "metrics": [],
    }
    assert poster.post(poster.token(), {"trainerStatus": told}) == 200
    stopped = eventually("it is told to stop", lambda: jobs(namespace)["s-002"]["spec"].get("stop"))
    assert stopped.startswith("sweep: after 25 % of the steps its lowest held-out loss is ")
    found = wait_rows(namespace, "Complete", "Complete", "Pruned", "Running")
    assert found[2]["at"] == "0.25"
    assert found[2]["why"].endswith(": number 3 of 3, and the best 2 continue")
    assert jobs(namespace)["s-002"]["status"]["phase"] == "Stopped"
    assert namespace.get("jobs", "s-002-train") is None
    trials.held.clear()
    status = ended(namespace)
    assert (status["best"]["trial"], status["counts"]["pruned"]) == (0, 1)


def test_values_that_are_invalid_together_are_a_row_without_a_lorajob(namespace: Namespace, trials: Trials) -> None:
    switches = [{"path": path, "choices": ["true", "false"]} for path in ("training.packing", "training.groupByLength")]
    namespace.apply(lorasweep("s", maxTrials=9, parallelTrials=2, parameters=switches, sampler={"type": "Grid"}))
    status = ended(namespace)
    bad, *others = sorted(status["trials"], key=lambda row: row["state"] != "Infeasible")
    assert (bad["state"], bad["reason"]) == ("Infeasible", "InvalidSpec")
    assert bad["parameters"] == {"training.packing": "true", "training.groupByLength": "true"}
    assert bad["why"].startswith("these values together: training.groupByLength: has no effect with packing")
    assert [row["state"] for row in others] == ["Complete"] * 3
    assert sorted(jobs(namespace)) == sorted(row["name"] for row in others)
    assert (status["endReason"], status["countsText"]) == ("SpaceExhausted", "4/9")


def test_where_a_name_is_taken_what_runs_ends_before_the_sweep_has_failed(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("s-001")
    namespace.apply(lorajob("s-002", suspend=True))
    namespace.apply(lorasweep("s", maxTrials=4, parallelTrials=2))
    status = ended(namespace, phase="Failed")
    assert status["failure"]["reason"] == "NameConflict"
    assert "LoRAJob s-002 exists and does not belong to this object" in status["failure"]["message"]
    assert [row["state"] for row in status["trials"]] == ["Complete", "Pruned"]
    assert jobs(namespace)["s-001"]["spec"]["stop"] == "sweep: the sweep has failed"
    assert "stop" not in jobs(namespace)["s-002"]["spec"]


@pytest.mark.slow
def test_a_deleted_trial_is_a_row_and_its_number_is_not_used_again(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("s-001")
    namespace.apply(lorasweep("s", maxTrials=3, parallelTrials=2))
    wait_rows(namespace, "Complete", "Running", "Complete")
    namespace.api.patch(namespace.path("lorajobs", "s-001"), {"metadata": {"labels": {"tunery.dev/trial": None}}})
    namespace.patch_spec("s", SWEEPS, maxTrials=4)
    wait_rows(namespace, "Complete", "Running", "Complete", "Complete")
    namespace.delete("lorajobs", "s-000")
    namespace.delete("lorajobs", "s-001")
    status = ended(namespace)
    assert [row["state"] for row in status["trials"]] == ["Complete", "Deleted", "Complete", "Complete"]
    assert status["trials"][1]["why"] == "its LoRAJob was deleted before its end"


@pytest.mark.slow
def test_suspended_its_trials_rest_and_go_on_with_it(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("*")
    namespace.apply(lorasweep("s", maxTrials=3, parallelTrials=2))
    wait_rows(namespace, "Running", "Running")
    namespace.patch_spec("s-001", suspend=True)
    namespace.wait_phase("s-001", "Suspended")
    namespace.patch_spec("s", SWEEPS, suspend=True)
    namespace.wait_phase("s-000", "Suspended")
    namespace.wait_phase("s", "Suspended", SWEEPS)
    namespace.patch_spec("s", SWEEPS, suspend=False)
    eventually("s-000 goes on", lambda: not jobs(namespace)["s-000"]["spec"]["suspend"])
    assert jobs(namespace)["s-001"]["spec"]["suspend"], "it is the user's who suspended it"
    namespace.patch_spec("s-001", suspend=False)
    trials.held.clear()
    assert ended(namespace)["counts"]["complete"] == 3


@pytest.mark.slow
def test_the_best_settings_are_trained_once_more(namespace: Namespace, trials: Trials) -> None:
    namespace.apply(lorasweep("s", maxTrials=2, final={"training": {"epochs": 3}}))
    status = ended(namespace)
    last = status["trials"][-1]
    assert (last["number"], last["name"], last["origin"]) == (2, "s-final", "Final")
    spec = jobs(namespace)["s-final"]["spec"]
    best = min(status["trials"][:2], key=lambda row: float(row["value"]))
    assert spec["training"] == {"epochs": 3, "learningRate": float(best["parameters"]["training.learningRate"])}
    assert spec["preflight"] == "Required", "with more epochs the data are others"


@pytest.mark.slow
def test_when_its_budget_is_spent_the_best_so_far_is_published(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("s-001")
    body = lorasweep("s", maxTrials=3, parallelTrials=2, budget={"gpuSeconds": 10})
    body["spec"]["template"]["resources"] = {"gpus": 1}
    namespace.apply(body)
    status = ended(namespace)
    assert status["endReason"] == "Budget"
    assert (status["trials"][1]["state"], status["trials"][1]["why"]) == ("Pruned", "the budget is spent")
    assert jobs(namespace)["s-001"]["spec"]["stop"] == "sweep: the budget is spent"
    assert 10 <= status["gpuSeconds"] <= 10 + GRACE_SECONDS


@pytest.mark.slow
def test_where_the_best_cannot_be_published_the_sweep_fails_and_a_retry_publishes_it(
    namespace: Namespace, trials: Trials
) -> None:
    trials.ends["publish-best"] = lambda run: failed(
        "AdapterCorrupt", "trial 1's adapter_model.safetensors has changed"
    )
    namespace.apply(lorasweep("s", maxTrials=2))
    status = ended(namespace, phase="Failed")
    assert status["failure"]["reason"] == "AdapterCorrupt"
    assert "adapter_model.safetensors has changed" in status["failure"]["message"]
    assert status["failure"]["hint"]
    assert [(row["state"], "adapter" in row) for row in status["trials"]] == [("Complete", True)] * 2
    del trials.ends["publish-best"]
    namespace.annotate("s", SWEEPS, retry="1")
    status = ended(namespace)
    assert sorted(jobs(namespace)) == ["s-000", "s-001"], "the search is over"
    assert [row["number"] for row in status["trials"] if "adapter" in row] == [status["best"]["trial"]]


def test_deleted_it_takes_its_trials_along(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("*")
    namespace.apply(lorasweep("s", maxTrials=3, parallelTrials=2))
    wait_rows(namespace, "Running", "Running")
    namespace.delete(SWEEPS, "s")
    eventually("no trial is left", lambda: not jobs(namespace))


@pytest.mark.slow
def test_a_warm_start_learns_from_an_earlier_sweep(namespace: Namespace, trials: Trials) -> None:
    warm = {"startupTrials": 3}
    namespace.apply(lorasweep("s", maxTrials=6, parallelTrials=3, sampler=warm, pruner=NO_PRUNER))
    ended(namespace)
    namespace.apply(lorasweep("w", maxTrials=2, sampler=warm, warmStartFrom=[{"name": "s"}], pruner=NO_PRUNER))
    namespace.apply(lorasweep("c", maxTrials=2, sampler=warm, pruner=NO_PRUNER))
    ended(namespace, "w")
    ended(namespace, "c")
    values = {name: [row["parameters"] for row in rows(namespace, name)] for name in "swc"}
    assert values["c"] == values["s"][:2], "the same manifest searches alike"
    assert values["w"][0] not in values["c"]

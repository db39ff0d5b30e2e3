"""What is planned of a sweep: its trials, and the Job that publishes the best one, in tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_api.measured import EvaluationStatus
from tunery_api.runspec import Task
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_operator.manifests.job import build_job
from tunery_operator.manifests.trial import build_trial
from tunery_operator.observed.metadata import Owner, parse_owner
from tunery_operator.planning.job import Platform, identity, output_location
from tunery_operator.planning.lorasweep import (
    MOST_BYTES,
    SweepResult,
    limit_rows,
    plan_publish_best,
    plan_report,
    plan_trial,
)
from tunery_search.history import Suggestion
from tunery_search.space import space_of
from tunery_search.trials import Trial
from tunery_search.validation import parse_lorasweep

from kit.operator.objects import lorasweep
from kit.operator.settings import settings
from kit.sweeps import trial

PLATFORM = Platform(settings())
META: dict[str, Any] = {"namespace": "ns", "name": "s", "uid": "u-1", "generation": 1}


def owner(name: str = "s", **labels: str) -> Owner:
    return parse_owner(Kind.LORASWEEP, {"metadata": {**META, "name": name, "labels": labels}})


def planned(*trials: Trial, number: int = 0, origin: str = "TPE", name: str = "s", **spec: Any) -> dict[str, Any]:
    parsed = parse_lorasweep(lorasweep(name, **spec))
    place = output_location(parsed.output, owner(name), PLATFORM.settings)
    suggestion = Suggestion(number=number, origin=origin, values={"training.learningRate": "0.001"})
    return build_trial(plan_trial(parsed, owner(name), place, trials, suggestion))


def test_a_trial_publishes_below_the_sweeps_own_uid_with_its_secret() -> None:
    body = planned(number=7)
    assert body["metadata"]["name"] == "s-007"
    assert body["spec"]["output"] == {"uri": "s3://adapters/s-trials/u-1/007", "secretRef": {"name": "s3"}}
    assert body["spec"]["training"]["learningRate"] == 0.001
    assert body["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert (body["spec"]["onStop"], body["spec"]["diagnosis"]["action"]) == ("Discard", "Stop")


def test_a_trial_has_the_topology_and_the_priority_of_its_sweep() -> None:
    near = {"kueue.x-k8s.io/podset-required-topology": "cloud/rack"}
    said = {**META, "annotations": {**near, "kueue.x-k8s.io/other": "x", "team": "a"}}
    labels = {"kueue.x-k8s.io/priority-class": "low", "team": "a"}
    whose = parse_owner(Kind.LORASWEEP, {"metadata": {**said, "labels": labels}})
    spec = parse_lorasweep(lorasweep("s"))
    suggestion = Suggestion(number=3, origin="TPE", values={"training.learningRate": "0.001"})
    place = output_location(spec.output, whose, PLATFORM.settings)
    body = build_trial(plan_trial(spec, whose, place, (trial(0),), suggestion))
    assert body["metadata"]["annotations"] == {"tunery.dev/origin": "TPE", **near}
    assert body["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "tunery",
        "tunery.dev/sweep": "s",
        "tunery.dev/trial": "003",
        "kueue.x-k8s.io/priority-class": "low",
    }


def test_the_run_of_a_trial_names_its_sweep() -> None:
    body = planned(number=7)
    body["metadata"]["uid"] = "u-7"
    assert identity(parse_owner(Kind.LORAJOB, body)).sweep == "s"
    assert identity(owner()).sweep is None


def test_long_names_are_cut_with_a_hash_and_stay_labels() -> None:
    body = planned(name="n" * 200)
    assert len(body["metadata"]["name"]) == 63
    assert len(body["metadata"]["labels"]["tunery.dev/sweep"]) <= 63
    assert planned(name="n" * 199)["metadata"]["name"] != body["metadata"]["name"]


def test_only_before_any_trial_was_checked_the_sweeps_own_place_is_looked_at() -> None:
    looks = "tunery.dev/sweep-output"
    assert planned()["metadata"]["annotations"][looks] == "s3://adapters/s"
    assert looks not in planned(trial(0), number=1)["metadata"]["annotations"]
    overwrite = {"uri": "s3://adapters/s", "overwrite": True}
    assert looks not in planned(output=overwrite)["metadata"]["annotations"]


def test_the_final_trial_is_checked_again_and_has_its_own_name() -> None:
    final = planned(trial(0), number=1, origin="Final", final={"training": {"epochs": 3}})
    assert final["metadata"]["name"] == "s-final"
    assert (final["spec"]["preflight"], final["spec"]["training"]["epochs"]) == ("Required", 3)


def test_the_job_that_publishes_opens_the_output_alone_and_has_a_trials_disk() -> None:
    template = lorasweep("s")["spec"]["template"] | {"resources": {"gpus": 1, "ephemeralStorage": "70Gi"}}
    spec = parse_lorasweep(lorasweep("s", template=template, keepAdapters=3))
    found = SweepResult([trial(0).row, trial(1).row], 1, (), "MaxTrials", 40)
    for plan in (plan(spec, owner(), PLATFORM, found, space_of(spec)) for plan in (plan_publish_best, plan_report)):
        assert set(plan.run.secrets) == {"output"}
        assert plan.run.lora_sweep is not None
        assert (plan.run.lora_sweep.best, plan.run.lora_sweep.keep_adapters) == (1, 3)
        assert plan.run.lora_sweep.trials_uri == "s3://adapters/s-trials/u-1"
        assert plan.resources.gpus == 0
    job = build_job(plan_publish_best(spec, owner(), PLATFORM, found, space_of(spec)))
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][3] == Task.PUBLISH_BEST
    assert container["resources"]["limits"]["ephemeral-storage"] == "70Gi"


def test_the_rows_of_the_largest_sweep_fit_into_an_annotation() -> None:
    values = {f"training.someFieldOfALongName{at}": "0.00012345" for at in range(16)}
    course = [EvaluationStatus(step=step, loss="1.23456") for step in range(16)]
    common: dict[str, Any] = {"uid": "0b8c1c5e-5d0c-4b57-9a42-1f0d3b7f1c11", "origin": "TPE", "parameters": values}
    done = [
        TrialStatus(number=n, name=f"support-{n:03}", state="Complete", value=f"{n}", evaluations=course, **common)
        for n in range(128)
    ]
    refused = [
        TrialStatus(number=n, name=f"support-{n}", state="Infeasible", reason="WontFit", why="w" * 256, **common)
        for n in range(128, 255)
    ]
    rows = limit_rows([*done, *refused])
    assert [row.number for row in rows] == list(range(255))
    assert sum(len(row.model_dump_json(by_alias=True, exclude_none=True)) for row in rows) <= MOST_BYTES
    assert rows[127].evaluations is None
    some = limit_rows([*done, *refused[:40]])
    assert some[0].evaluations == course, "the curves of the best stay as long as they can"
    assert some[-1].parameters == values
    few = [trial(0).row, trial(1, TrialState.PRUNED).row]
    assert limit_rows(few) == few


@pytest.mark.parametrize("sign", ["停", '"', "ж", "\U0001f600"])
def test_reasons_in_any_script_fit_into_an_annotation(sign: str) -> None:
    values = {f"training.someFieldOfALongName{at}": "0.00012345" for at in range(16)}
    rows = [
        TrialStatus(number=n, name=f"support-{n:03}", state="Pruned", why=sign * 256, parameters=values)
        for n in range(128)
    ]
    kept = limit_rows(rows)
    assert len(json.dumps([row.to_json_dict() for row in kept], separators=(",", ":"))) <= MOST_BYTES + len("[]")
    assert all(row.parameters == values for row in kept)

"""`tunery estimate`: the copy, and the time by finished jobs."""

from __future__ import annotations

from typing import Any

import pytest

from tunery.commands.estimate import Time, preflight_copy, similar_times
from tunery.manifest import validate
from tunery.objects import View

from kit.operator.objects import lorajob

STATUS = {
    "phase": "Succeeded", "runSeconds": 600, "resolved": {"method": "QLoRA", "device": "A100"},
    "estimate": {"tokens": 1_000_000, "steps": 100},
}  # fmt: skip
ENDED = View(lorajob("copy") | {"status": {"resolved": {"method": "QLoRA"}, "estimate": {"tokens": 2_000_000}}})


def finished(spec: dict[str, Any] | None = None, **status: Any) -> View:
    return View(lorajob("a", **(spec or {})) | {"status": STATUS | status})


def test_the_time_is_in_proportion_to_the_tokens() -> None:
    assert similar_times(ENDED, [finished()]) == [Time("A100", 1200.0, 1)]


def test_a_job_that_stopped_early_counts_with_the_steps_it_has_done() -> None:
    assert similar_times(ENDED, [finished(progress={"step": 50})]) == [Time("A100", 2400.0, 1)]


def test_each_device_has_the_median_of_its_jobs() -> None:
    jobs = [finished(runSeconds=seconds) for seconds in (500, 600, 9000)]
    jobs.append(finished(resolved={"method": "QLoRA", "device": "H100"}, runSeconds=200))
    assert similar_times(ENDED, jobs) == [Time("A100", 1200.0, 3), Time("H100", 400.0, 1)]


@pytest.mark.parametrize(
    "job",
    [
        finished({"model": {"uri": "s3://models/large"}}),
        finished({"resources": {"gpus": 1}}),
        finished({"resources": {"gpus": 0, "nodes": 2}}),
        finished(resolved={"method": "LoRA"}),
        finished(phase="Failed"),
        finished(runSeconds=None),
        finished(estimate={"tokens": 1_000_000}),
        finished(estimate=None),
    ],
)
def test_another_setup_or_an_unfinished_job_says_nothing(job: View) -> None:
    assert similar_times(ENDED, [job]) == []


def test_without_tokens_or_a_method_the_time_is_unknown() -> None:
    assert similar_times(View(lorajob("copy") | {"status": {}}), [finished()]) == []
    assert similar_times(View(lorajob("copy")), [View(lorajob("a"))]) == []


def test_the_copy_runs_its_preflight_only_and_belongs_to_nobody() -> None:
    body = lorajob("support" * 20, suspend=True, stop="enough", preflight="Skip")
    body["metadata"] |= {"labels": {"team": "a", "argocd.argoproj.io/instance": "x"}, "uid": "1"}
    made = preflight_copy(body, "team-a")
    assert made["spec"] == lorajob("support" * 20)["spec"] | {"preflight": "Only", "ttlSecondsAfterFinished": 3600}
    name = made["metadata"].pop("name")
    assert name.startswith("estimate-supportsupport")
    assert len(name) < 50
    assert made["metadata"] == {"namespace": "team-a", "labels": {"team": "a"}}
    assert body["spec"]["preflight"] == "Skip", "the manifest is unchanged"
    assert validate([made | {"metadata": {"name": name}}], "the copy")

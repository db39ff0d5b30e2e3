"""A failed trial is fixed in its sweep, and a trial that its sweep has removed names nothing that is gone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import yaml

from tunery_api.failures import Failure, Subject
from tunery_api.kinds import Kind
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.remedies import Action, Remedy, edit, recreate, remedies_for, retry
from tunery_api.status import ConditionType
from tunery_api.sweepstatus import TrialStatus
from tunery_operator.observed.metadata import Key, Owner, parse_owner
from tunery_operator.planning.lorasweep import trial_name
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.events import transitions
from tunery_operator.status.snapshot import Search, Snapshot
from tunery_operator.status.stop import check_stop
from tunery_operator.status.sweep import after_removal, check_search
from tunery_search.decision import Decision, DecisionContext, decide
from tunery_search.failures import sweep_remedies
from tunery_search.trial_rows import read_trial
from tunery_search.trials import Trial

from kit.operator.statuskit import NOW
from kit.projects import ROOT
from kit.sweeps import lorajob, read, sweep

TRIAL = Owner(Key(Kind.LORAJOB, "ns", "s-001"), "uid-1", 1, {}, sweep="s")
SWEEP = Owner(Key(Kind.LORASWEEP, "ns", "s"), "uid-2", 1, {})
SUBJECT = Subject("LoRAJob", "s-001", "ns", sweep="s")
RETRY_OF_SWEEP = 'kubectl annotate lorasweep s -n ns --overwrite tunery.dev/retry="$(date +%s)"'
R = FailureReason
NEVER = {
    *(R.RANK_TOO_HIGH, R.TOO_MANY_ADAPTERS, R.ENGINE_REFUSED, R.ENGINE_FAILED, R.ENGINE_UNSUPPORTED, R.PROBE_FAILED),
    *(R.INPUT_INVALID, R.REQUESTS_FAILED, R.SERVER_UNAVAILABLE, R.SERVER_ACCESS_DENIED),
    *(R.CHECKPOINT_MISSING, R.BUDGET_EXHAUSTED),
}
"""Reasons that no trial ends with: of servers and batches, of what a template cannot say, and of the sweep itself."""
OWN = [
    [
        edit("Raise resources.memory to 2Gi", "resources.memory"),
        recreate("Lower training.batchSize", "training.batchSize"),
    ],
    [edit("Raise activeDeadlineSeconds above 9", "activeDeadlineSeconds")],
    [retry("Add rows"), recreate("Raise training.learningRate", "training.learningRate")],
]
"""Remedies of trainer and operator that are not those of a reason."""


@cache
def crd() -> Any:
    """Return the schema of a LoRASweep, as the API server has it."""
    (version,) = yaml.safe_load((ROOT / "crds" / "lorasweeps.tunery.dev.yaml").read_text())["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def is_field(path: str) -> bool:
    """Tell whether a LoRASweep has that field."""
    node = crd()
    for name in f"spec.{path}".split("."):
        node = node.get("properties", {}).get(name, {})
    return bool(node)


def ended(reason: str, message: str, *remedies: Remedy, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the status of a trial that failed so, and that of its sweep, which has no other."""
    draft = StatusBuilder(Snapshot(Kind.LORAJOB, TRIAL, {"curve": {"uri": "s3://a/curve.jsonl"}, **more}, NOW))
    draft.fail(
        Failure(reason=reason, message=redact(message), remedies=list(remedies), facts={"dataReport": "s3://a/r.md"})
    )
    of_trial = draft.finish()
    row = read_trial(body(of_trial | {"runSeconds": 9}), read)
    decision = decide(sweep(maxTrials=1, maxFailedTrials=0), [row], DecisionContext(NOW, NOW))
    told = StatusBuilder(Snapshot(Kind.LORASWEEP, SWEEP, {}, NOW, search=Search(sweep(), (row,), decision)))
    assert check_search(told)
    return of_trial, told.finish()


@pytest.mark.parametrize(
    ("reason", "remedies"),
    [
        *((reason.value, []) for reason in FailureReason if reason not in NEVER),
        *(("WontFit", remedies) for remedies in OWN),
    ],
)
def test_a_sweep_has_the_remedies_of_its_failed_trial_as_its_own(reason: str, remedies: list[Remedy]) -> None:
    saved = {"checkpoint": {"step": 5, "uri": "s3://a/c"}}
    of_trial, of_sweep = (each["failure"] for each in ended(reason, "it is so", *remedies, **saved))
    fixes = remedies or remedies_for(reason)
    outside = any(each.action == Action.RETRY for each in fixes)
    assert [each["action"] == "Retry" for each in of_sweep["remedies"]] == [
        each.action == Action.RETRY for each in fixes
    ], "a template is immutable"
    assert [path for each in of_sweep["remedies"] for path in each.get("fields", ()) if not is_field(path)] == []
    assert of_sweep["hint"].endswith(f"To retry: {RETRY_OF_SWEEP}") is outside
    assert of_trial["hint"].endswith(f"If the sweep has failed, retry it: {RETRY_OF_SWEEP}") is outside
    assert ("the template of a new LoRASweep" in of_trial["hint"]) is any(each.action != Action.RETRY for each in fixes)
    assert "LoRASweep s continues without this trial." in of_trial["hint"]
    assert "annotate lorajob" not in of_trial["hint"]
    assert "resumeFrom" not in of_trial["hint"], "once its sweep has published, its checkpoints are gone"
    assert of_sweep["facts"] == {"dataReport": "s3://a/r.md"}, "the curve is removed with the trial"


def test_a_field_that_is_searched_is_one_of_parameters() -> None:
    failure = ended("LossDiverged", "it is so")[1]["failure"]
    assert failure["remedies"][0]["fields"] == ["parameters", "template.training.warmup"]
    assert "parameters has training.learningRate, in the template of a new LoRASweep" in failure["hint"]


def test_a_blocked_trial_continues_once_its_own_job_is_changed() -> None:
    draft = StatusBuilder(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    draft.show_blocker(Failure(reason=R.UNSCHEDULABLE, message="no node"))
    hint = draft.fields["failure"]["hint"]
    in_place, _, changes = hint.partition(" The LoRAJob then continues without a retry. ")
    assert "change scheduling" in in_place
    assert changes.startswith("Or, in the template of a new LoRASweep: request other GPUs")


@pytest.mark.parametrize(
    ("reason", "measured", "warm"),
    [
        (R.DISK_FULL, True, True),
        (R.DISK_FULL, False, False),
        (R.LOSS_DIVERGED, True, True),
        (R.WONT_FIT, True, False),
        (R.MODEL_UNSUPPORTED, True, False),
    ],
)
def test_a_new_sweep_learns_from_this_one_where_losses_can_be_compared(
    reason: FailureReason, measured: bool, warm: bool
) -> None:
    row = TrialStatus(number=0, name="s-000", state="Complete", value="1.5" if measured else None)
    draft = StatusBuilder(Snapshot(Kind.LORASWEEP, SWEEP, {}, NOW, search=Search(sweep(), (Trial(row),), Decision())))
    draft.fail_for(reason, "trial 0", *sweep_remedies(remedies_for(reason), ()))
    failure = draft.fields["failure"]
    assert failure.get("facts", {}).get("warmStartFrom") == ("[{name: s}]" if warm else None)
    assert ("set warmStartFrom: [{name: s}]" in failure["hint"]) is warm


def body(status: dict[str, Any]) -> dict[str, Any]:
    """Return the LoRAJob of TRIAL with a status."""
    job = lorajob(1, status)
    return {**job, "metadata": {**job["metadata"], "name": TRIAL.key.name}}


@pytest.mark.parametrize("length", [40, 700, 1500])
def test_a_sweep_passes_on_the_whole_message_of_its_trial(length: int) -> None:
    message = ("the data has changed " * 99)[:length]
    _, status = ended("DatasetInvalid", message)
    whole = message in status["failure"]["message"]
    said = {each["type"]: each.get("message", "") for each in status["conditions"]}
    assert whole is (length < 1000)
    assert said["Failed"] == status["failure"]["message"]
    assert said["Failed"].endswith("…") is not whole
    if length > 40:
        assert said["Searching"].endswith(f"(condition Failed has {'all' if whole else 'more'} of it)")


@pytest.mark.parametrize("reason", [*FailureReason])
def test_a_row_has_no_remedies_that_its_reason_has(reason: FailureReason) -> None:
    draft = StatusBuilder(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    draft.fail_for(reason, "m")
    assert read_trial(body(draft.finish()), read).row.failure is None


def test_whose_trial_it_is_stands_in_its_owner_reference() -> None:
    meta = {"namespace": "ns", "name": "s-001", "uid": "u"}
    by = {"kind": "LoRASweep", "name": "s", "uid": "v", "controller": True}
    assert parse_owner(Kind.LORAJOB, {"metadata": {**meta, "ownerReferences": [by]}}).sweep == "s"
    assert parse_owner(Kind.LORAJOB, {"metadata": meta}).sweep is None


@pytest.mark.parametrize("sweep", ["s", "a-007", "long" * 40])
def test_a_copy_of_a_trial_under_another_name_is_none(sweep: str) -> None:
    def owner(name: str) -> str | None:
        by = [{"kind": "LoRASweep", "name": sweep, "uid": "v", "controller": True}]
        meta = {"namespace": "ns", "name": name, "uid": "u", "ownerReferences": by}
        return parse_owner(Kind.LORAJOB, {"metadata": meta}).sweep

    assert [owner(trial_name(sweep, 7)), owner(trial_name(sweep, 7, final=True))] == [sweep, sweep]
    assert [owner(name) for name in ("mybest", "mybest-007", f"{sweep}", f"{sweep}-7", f"{sweep}-best")] == [None] * 5


def test_the_location_of_a_removed_rejected_adapter_is_not_named() -> None:
    uri = "s3://a/x-trials/u/001-rejected"
    draft = StatusBuilder(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    draft.fail(Failure(reason=R.NOT_IMPROVED, message="it fell by 0.1 %", facts={"rejectedAdapter": uri}))
    assert uri in draft.fields["failure"]["hint"]
    after = after_removal({**draft.finish(), "rejectedAdapter": {"uri": uri}}, SUBJECT, 1, NOW)
    assert "s3://" not in str(after)
    assert "LoRASweep s continues" in after["failure"]["hint"]


def test_a_retry_of_a_trial_is_an_event() -> None:
    old = {"phase": "Failed", "failure": {"reason": "Killed", "message": "m", "hint": "Check the node."}}
    (event,) = transitions(old, {**old, "observedRetry": "1"})
    assert (event.reason, event.warning) == ("RetryRefused", True)
    assert event.note == "a trial is retried only with its sweep: Check the node."


@pytest.mark.parametrize(
    ("status", "of_trial", "says"),
    [
        ({"phase": "Succeeded"}, False, "it has succeeded"),
        ({"phase": "Stopped"}, False, "create an object with another name"),
        ({"phase": "Stopped", "checkpoint": {"step": 7, "uri": "s3://a/c"}}, False, "resumeFrom.loraJobRef.name"),
        ({"phase": "Stopped", "checkpoint": {"step": 7, "uri": "s3://a/c"}}, True, "retried only with its sweep"),
    ],
)
def test_a_retry_of_what_has_succeeded_or_was_stopped_is_an_event(
    status: dict[str, Any], of_trial: bool, says: str
) -> None:
    (event,) = transitions(status, {**status, "observedRetry": "1"}, of_trial=of_trial)
    assert (event.reason, event.warning, event.time) == ("RetryRefused", True, "1")
    assert says in event.note
    noted = {**status, "observedRetry": "1"}
    assert transitions(noted, noted, of_trial=of_trial) == (), "once for each value"
    assert transitions({**noted, "phase": "Training"}, {**noted, "observedRetry": "2"}) == (), "it has just ended"


def test_a_stopped_trial_names_no_checkpoint_once_they_are_removed() -> None:
    draft = StatusBuilder(Snapshot(Kind.LORAJOB, TRIAL, {"attempts": 1}, NOW, stop="sweep: worse", on_stop="Discard"))
    draft.put(checkpoint={"step": 5, "uri": "s3://a/tunery-checkpoints/ns/s-001-uid-1/step-000005"})
    draft.conditions.set(ConditionType.CHECKPOINT_SAVED, True, "CheckpointSaved", "step 5 at s3://a/tunery-checkpoints")
    assert check_stop(draft)
    status = draft.finish()
    stopped = next(each for each in status["conditions"] if each["type"] == "Stopped")
    assert stopped["message"].endswith("its checkpoints stay until LoRASweep s has published its best")
    after = after_removal(status, SUBJECT, 1, NOW)
    assert "checkpoint" not in after
    assert "s3://" not in str(after["conditions"])
    assert after_removal(after, SUBJECT, 1, NOW) == after, "whoever was killed in between does it again"


@pytest.mark.parametrize(
    ("remains", "adapter", "end", "checkpoints"),
    [
        (
            True,
            "the others could not be removed, or not all of them",
            "does not keep it, and could not remove all that it does not keep",
            "could not be removed, or not all of them",
        ),
        (
            None,
            "whether the others were removed is not known",
            "does not keep it, and whether it was removed is not known",
            "were to be removed (whether they were is not known)",
        ),
    ],
)
def test_what_was_not_removed_or_nobody_knows_is_not_said_to_be(
    remains: bool | None, adapter: str, end: str, checkpoints: str
) -> None:
    draft = StatusBuilder(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    for kind in (ConditionType.ADAPTER_UPLOADED, ConditionType.CHECKPOINT_SAVED):
        draft.conditions.set(kind, True, kind.value, "at s3://a/x")
    draft.succeed("published at s3://a/x", NOW)
    after = after_removal({**draft.finish(), "adapter": {"uri": "s3://a/x"}}, SUBJECT, 1, NOW, remains=remains)
    told = {each["type"]: each.get("message", "") for each in after["conditions"]}
    assert "adapter" not in after
    assert told["AdapterUploaded"].endswith(f"(spec.keepAdapters); {adapter}")
    assert told["Succeeded"].endswith(f"LoRASweep s {end}")
    assert told["CheckpointSaved"].startswith(f"the checkpoints {checkpoints}")
    assert after_removal(after, SUBJECT, 1, NOW, remains=remains) == after


def test_the_report_beside_a_removed_adapter_is_not_named() -> None:
    adapter = {"uri": "s3://a/x", "manifestSha256": "0" * 64}
    data = {"rows": 4, "report": "s3://a/x/data-report.md"}
    assert after_removal({"adapter": adapter, "dataset": data}, SUBJECT, 1, NOW)["dataset"] == {"rows": 4}
    elsewhere = {**data, "report": "s3://a/tunery-reports/data-report.md"}
    assert after_removal({"adapter": adapter, "dataset": elsewhere}, SUBJECT, 1, NOW)["dataset"] == elsewhere

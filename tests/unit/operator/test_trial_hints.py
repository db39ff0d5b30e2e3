"""Hints about trials: what they ask for is done to the sweep, since that of a trial alone leads nowhere."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import yaml

from tunery_api.kinds import Kind
from tunery_api.names import REJECTED_AT
from tunery_api.reasons import ADVICE, FailureReason
from tunery_api.failures import Failure
from tunery_api.status import ConditionType
from tunery_api.sweepstatus import TrialStatus
from tunery_operator.plan.lorasweep import trial_name
from tunery_operator.status.draft import Draft
from tunery_operator.status.events import transitions
from tunery_operator.status.removed import after_removal
from tunery_operator.status.search import Search
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.stopping import check_stop
from tunery_operator.status.sweep import check_search
from tunery_operator.views.owner import Key, Owner, parse_owner
from tunery_search.decision import Decision, Moment, decide
from tunery_search.summary import without_removed
from tunery_search.trials import Trial, trial_of

from kit.operator.statuskit import NOW
from kit.projects import ROOT
from kit.sweeps import lorajob, read, sweep

TRIAL = Owner(Key(Kind.LORAJOB, "ns", "s-001"), "uid-1", 1, {}, sweep="s")
SWEEP = Owner(Key(Kind.LORASWEEP, "ns", "s"), "uid-2", 1, {})
FINAL = "Template and output of LoRASweep s are final: apply the changed manifest under another name"
WARM = "with warmStartFrom: [{name: s}], which learns from its trials"
RETRY_OF_SWEEP = "kubectl annotate lorasweep s -n ns --overwrite tunery.dev/retry="
R = FailureReason
NEVER = {
    *(R.RANK_TOO_HIGH, R.TOO_MANY_ADAPTERS, R.ENGINE_REFUSED, R.ENGINE_FAILED, R.ENGINE_UNSUPPORTED, R.PROBE_FAILED),
    *(R.INPUT_INVALID, R.REQUESTS_FAILED, R.SERVER_UNAVAILABLE, R.SERVER_ACCESS_DENIED),
    *(R.CHECKPOINT_MISSING, R.BUDGET_EXHAUSTED),
}
"""Reasons that no trial ends with: of servers and batches, of what a template cannot say, and of the sweep itself."""
OF_TEMPLATE = {
    *(R.INVALID_SPEC, R.MODEL_UNSUPPORTED, R.ADAPTER_UNSUPPORTED, R.BASE_MISMATCH, R.DEADLINE_EXCEEDED),
    *(R.WONT_FIT, R.GPU_OUT_OF_MEMORY, R.OUT_OF_MEMORY, R.DISK_FULL, R.LOSS_DIVERGED, R.NOT_IMPROVED),
}
"""Reasons that only another template mends, by their usual hints."""
OWN = [
    ("Raise spec.resources.memory to 2Gi, and retry; or lower spec.training.batchSize, in a new job.", False),
    ("Raise spec.resources.memory to 2Gi, and retry.", False),
    (
        "Set spec.resources.ephemeralStorage to 9Gi or more, which may change while no pod runs; left out, it follows.",
        False,
    ),
    ("Raise spec.activeDeadlineSeconds above 9 s by what is still needed.", False),
    ("Try training.learningRate: 6e-4 (now 2e-4) in a new job; with diagnosis.action: Warn training goes on.", False),
    ("Raise spec.training.maxLength in a new job.", False),
    ("Free a node. What the manifest itself asks for may change as it waits.", False),
    (
        "It tolerates what preflight.tolerations of the chart and spec.scheduling.tolerations say: both may change "
        "as it waits.",
        False,
    ),
    ("Mend that, and retry; or raise spec.retries, which may change while no pod runs.", True),
    ("Add rows, and retry; or say spec.training.epochs or maxSteps in a new job.", True),
    ("Put model.safetensors there from where the model comes, and retry.", True),
    ("Put the data that is meant there and retry; or say that sha256, if this is the one, in a new job.", True),
    ("Mend the rows, and retry. The data report: s3://a/retry/data-report.md", True),
]
"""Hints of trainer and operator that know more than a reason's, and whether the sweep may be tried again."""


@cache
def crd() -> Any:
    """Return the schema of a LoRASweep, as the API server has it."""
    (version,) = yaml.safe_load((ROOT / "crds" / "lorasweeps.tunery.dev.yaml").read_text())["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def is_field(path: str) -> bool:
    """Tell whether a LoRASweep has that field."""
    node = crd()
    for name in path.split("."):
        node = node.get("properties", {}).get(name, {})
    return bool(node)


def ended(reason: str, message: str, hint: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the status of a trial that failed so, and that of its sweep, which has no other."""
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {"curve": "s3://a/curve.jsonl"}, NOW))
    draft.fail_for(R(reason), message, hint)
    of_trial = draft.finish()
    row = trial_of(body(of_trial | {"runSeconds": 9}), read)
    decision = decide(sweep(maxTrials=1, maxFailedTrials=0), [row], Moment(NOW, NOW))
    told = Draft(Snapshot(Kind.LORASWEEP, SWEEP, {}, NOW, search=Search(sweep(), (row,), decision)))
    assert check_search(told)
    return of_trial, told.finish()


@pytest.mark.parametrize(
    ("reason", "hint", "again"),
    [
        *((reason, None, reason not in OF_TEMPLATE) for reason in FailureReason if reason not in NEVER),
        *(("WontFit", *own) for own in OWN),
    ],
)
def test_what_a_sweep_is_told_of_its_trial_can_be_done_to_the_sweep(reason: str, hint: str | None, again: bool) -> None:
    of_trial, of_sweep = (each["failure"] for each in ended(reason, "spec.model.uri: nothing is there", hint))
    said = of_sweep["hint"]
    for path in re.findall(r"(?<![\w./])spec\.[\w.]*\w", f"{said} {of_sweep['message']} {of_trial['hint']}"):
        assert is_field(path), f"{path} is no field of a LoRASweep"
    assert "spec.template.model.uri: nothing is there" in of_sweep["message"]
    for text in (said, of_trial["hint"]):
        assert "new job" not in text
        assert not re.search(
            r"\bmay change\b(?! as it waits, (?:for it alone|the template's in a new sweep only))", text
        ), "a template may not"
        assert not re.search(r"\w\.md \w|\.jsonl \w", text), "an address does not run into a sentence"
    assert (RETRY_OF_SWEEP in said) is again
    assert again or "retry" not in said
    first = re.search(r"(To retry|Once it is mended without that): kubectl", said)
    assert not again or (first is not None and ("without" in first[1]) is (FINAL in said)), "which of two ways it is"
    assert (FINAL in said) is ("new sweep" in said)
    assert again or FINAL in said
    assert WARM not in said, "no trial has been measured"
    assert "a retry of the trial is not followed" in of_trial["hint"]
    assert "annotate lorajob" not in of_trial["hint"]
    assert "resumeFrom.loraJobRef" not in of_trial["hint"], "once its sweep has published, its checkpoints are gone"
    assert (RETRY_OF_SWEEP in of_trial["hint"]) is again


def test_what_waits_says_that_a_change_is_for_it_alone() -> None:
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    draft.show_obstacle(Failure(reason=FailureReason.UNSCHEDULABLE, message="no node"))
    hint = draft.fields["failure"]["hint"]
    own = ADVICE[R.UNSCHEDULABLE].hint.replace("new job", "new sweep")
    assert hint.startswith(own), "its own LoRAJob may change as it waits"
    assert "s-001 is a trial of LoRASweep s: what is changed in its LoRAJob is for this trial alone" in hint
    assert FINAL in hint
    waiting = Draft(Snapshot(Kind.LORASWEEP, SWEEP, {}, NOW, search=Search(sweep(), (), Decision())))
    waiting.show_obstacle(Failure(reason=R.UNSCHEDULABLE, message="s-001: no node", hint=hint))
    said = waiting.fields["failure"]["hint"]
    assert "spec.template.scheduling or spec.template.resources for all trials need a new sweep" in said
    assert "s-001" not in said
    draft.show_obstacle(Failure(reason=FailureReason.CLUSTER_UNAVAILABLE, message="away"))
    assert draft.fields["failure"]["hint"] == ADVICE[FailureReason.CLUSTER_UNAVAILABLE].hint


@pytest.mark.parametrize(
    ("reason", "measured", "warm", "says"),
    [
        (R.DISK_FULL, True, True, "Raise spec.template.resources.ephemeralStorage in a new sweep."),
        (R.DISK_FULL, False, False, "in a new sweep"),
        (R.LOSS_DIVERGED, True, True, "Lower training.learningRate in spec.parameters or raise spec.template.training"),
        (R.WONT_FIT, True, False, "spec.template.training.maxLength"),
        (R.MODEL_UNSUPPORTED, True, False, "Use a causal language model"),
    ],
)
def test_a_new_sweep_learns_from_this_one_where_losses_can_be_compared(
    reason: FailureReason, measured: bool, warm: bool, says: str
) -> None:
    row = TrialStatus(number=0, name="s-000", state="Complete", value="1.5" if measured else None)
    spec = sweep(parameters=[{"path": "training.learningRate", "range": {"min": "1e-5", "max": "1e-3"}}])
    draft = Draft(Snapshot(Kind.LORASWEEP, SWEEP, {}, NOW, search=Search(spec, (Trial(row),), Decision())))
    draft.fail_for(reason, "trial 0")
    hint = draft.fields["failure"]["hint"]
    assert (WARM in hint) is warm
    assert says in hint
    draft.fail_for(FailureReason.BUDGET_EXHAUSTED, "spec.budget ran out")
    assert draft.fields["failure"]["hint"].startswith(ADVICE[R.BUDGET_EXHAUSTED].hint)
    assert FINAL not in draft.fields["failure"]["hint"]


def body(status: dict[str, Any]) -> dict[str, Any]:
    """Return the LoRAJob of TRIAL with a status."""
    job = lorajob(1, status)
    return {**job, "metadata": {**job["metadata"], "name": TRIAL.key.name}}


@pytest.mark.parametrize("length", [40, 700, 1500])
@pytest.mark.parametrize("reason", [*FailureReason])
def test_a_sweep_passes_on_what_its_trial_has_said(reason: FailureReason, length: int) -> None:
    hint, message = "Put back the data that the sweep began with, and retry.", ("the data has changed " * 99)[:length]
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {"curve": "s3://a/curve.jsonl"}, NOW))
    draft.fail_for(reason, message, hint)
    assert draft.fields["failure"]["hint"].startswith(hint)
    ended = trial_of(body(draft.finish() | {"runSeconds": 9}), read)
    decision = decide(sweep(maxTrials=1, maxFailedTrials=0), [ended], Moment(NOW, NOW))
    told = Draft(Snapshot(Kind.LORASWEEP, SWEEP, {}, NOW, search=Search(sweep(), (ended,), decision)))
    assert check_search(told)
    status = told.finish()
    assert status["failure"]["hint"].startswith(f"{hint} To retry: {RETRY_OF_SWEEP}")
    whole, said = (
        message in status["failure"]["message"],
        {c["type"]: c.get("message", "") for c in status["conditions"]},
    )
    assert whole is (length < 1000)
    assert said["Failed"] == status["failure"]["message"]
    assert said["Failed"].endswith("…") is not whole
    if length > 40:
        assert said["Searching"].endswith(f"(condition Failed has {'all' if whole else 'more'} of it)")


@pytest.mark.parametrize("reason", [*FailureReason])
def test_a_row_has_no_hint_that_its_reason_has(reason: FailureReason) -> None:
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    draft.fail_for(reason, "m")
    assert trial_of(body(draft.finish()), read).row.failure is None


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


def test_the_place_of_a_removed_rejected_adapter_is_not_named() -> None:
    uri = "s3://a/x-trials/u/001-rejected"
    message = f"the held-out loss fell by 0.1 %, 5 % were asked for{REJECTED_AT}{uri}"
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    draft.fail_for(FailureReason.NOT_IMPROVED, message)
    after = after_removal({**draft.finish(), "rejectedAdapter": {"uri": uri}}, "s", 1, NOW)
    assert "s3://" not in str(after)
    assert after["failure"]["message"].endswith("what was trained was rejected, and is removed")
    row = TrialStatus(number=1, name="s-001", uid="u", state="Failed", origin="TPE", parameters={}, why=message)
    (told,) = without_removed([row], 0, 1)
    assert told.why == after["failure"]["message"]


def test_a_retry_of_a_trial_is_an_event() -> None:
    old = {"phase": "Failed", "failure": {"reason": "Killed", "message": "m", "hint": "Look at the node."}}
    (event,) = transitions(old, {**old, "observedRetry": "1"})
    assert (event.reason, event.warning) == ("RetryRefused", True)
    assert event.note == "a trial is not tried again by itself: Look at the node."


@pytest.mark.parametrize(
    ("status", "of_trial", "says"),
    [
        ({"phase": "Succeeded"}, False, "it has succeeded"),
        ({"phase": "Stopped"}, False, "in a new object of another name"),
        ({"phase": "Stopped", "checkpoint": {"step": 7, "uri": "s3://a/c"}}, False, "resumeFrom.loraJobRef.name"),
        ({"phase": "Stopped", "checkpoint": {"step": 7, "uri": "s3://a/c"}}, True, "its sweep counts it"),
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
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {"attempts": 1}, NOW, stop="sweep: worse", on_stop="Discard"))
    draft.put(checkpoint={"step": 5, "uri": "s3://a/tunery-checkpoints/ns/s-001-uid-1/step-000005"})
    draft.conditions.set(ConditionType.CHECKPOINT_SAVED, True, "CheckpointSaved", "step 5 at s3://a/tunery-checkpoints")
    assert check_stop(draft)
    status = draft.finish()
    stopped = next(each for each in status["conditions"] if each["type"] == "Stopped")
    assert stopped["message"].endswith("its checkpoints stay until LoRASweep s has published its best")
    after = after_removal(status, "s", 1, NOW)
    assert "checkpoint" not in after
    assert "s3://" not in str(after["conditions"])
    assert after_removal(after, "s", 1, NOW) == after, "whoever was killed in between does it again"


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
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    for kind in (ConditionType.ADAPTER_UPLOADED, ConditionType.CHECKPOINT_SAVED):
        draft.conditions.set(kind, True, kind.value, "at s3://a/x")
    draft.succeed("published at s3://a/x", NOW)
    after = after_removal({**draft.finish(), "adapter": {"uri": "s3://a/x"}}, "s", 1, NOW, remains=remains)
    told = {each["type"]: each.get("message", "") for each in after["conditions"]}
    assert "adapter" not in after
    assert told["AdapterUploaded"].endswith(f"(spec.keepAdapters); {adapter}")
    assert told["Succeeded"].endswith(f"LoRASweep s {end}")
    assert told["CheckpointSaved"].startswith(f"the checkpoints {checkpoints}")
    assert after_removal(after, "s", 1, NOW, remains=remains) == after


def test_the_report_beside_a_removed_adapter_is_not_named() -> None:
    adapter = {"uri": "s3://a/x", "manifestSha256": "0" * 64}
    data = {"rows": 4, "report": "s3://a/x/data-report.md"}
    assert after_removal({"adapter": adapter, "dataset": data}, "s", 1, NOW)["dataset"] == {"rows": 4}
    elsewhere = {**data, "report": "s3://a/tunery-reports/data-report.md"}
    assert after_removal({"adapter": adapter, "dataset": elsewhere}, "s", 1, NOW)["dataset"] == elsewhere

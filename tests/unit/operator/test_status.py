"""Verdicts: what is in the cluster on the left, what status says on the right."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.kinds import Kind
from tunery_api.remedies import Remedy, recreate, retry
from tunery_api.runspec import ProgressMetric, TrainerStatus
from tunery_api.status import AdapterMergeStatus, LoRAJobStatus, Phase
from tunery_api.sweepstatus import LoRASweepStatus
from tunery_operator.client.apply import merge_patch
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import format_duration
from tunery_operator.planning.inputs import FailedInput, NoCheckpoint, UnfinishedInput
from tunery_operator.status.compute import compute_status
from tunery_operator.status.events import transitions
from tunery_operator.status.reports import metrics_fields
from tunery_operator.status.retries import reopened
from tunery_operator.status.snapshot import Snapshot

from kit.operator.objects import REPORT, RESULT
from kit.operator.statuskit import NOW, condition, ended, job, message_of, running, snapshot, status_for

DONE = job(complete=True)


def says(phase: Phase | None) -> TrainerStatus:
    """Return a report of the running pod."""
    return TrainerStatus(progress_percentage=10, phase=phase)


def nothing(**changes: Any) -> Snapshot:
    """Return a LoRAJob that has no Job yet."""
    return snapshot(main=None, **changes)


def failed(code: int, *codes: int, says: Any = "", **more: Any) -> Snapshot:
    """Return a LoRAJob whose Job has failed with its last pod."""
    pods = [ended(f"p{number}", code, says=says, **more) for number, code in enumerate((code, *codes), 1)]
    return snapshot(*pods, train=job(failed_reason="BackoffLimitExceeded"))


NAN = {"failure": {"reason": "LossDiverged", "message": "NaN at step 7"}}

PHASES: dict[str, tuple[Snapshot, str, str | None]] = {
    "nothing yet": (nothing(preflight_needed=True), "Preflight", None),
    "invalid": (nothing(errors=(FieldError("spec.lora.rank", "must be at least 1"),)), "Failed", "InvalidSpec"),
    "conflict": (nothing(conflict="Job x-train exists"), "Failed", "NameConflict"),
    "waits": (nothing(inputs=(UnfinishedInput("y", "is Training"),)), "Waiting", None),
    "input failed": (
        nothing(inputs=(FailedInput("y", "failed: OutOfMemory", retry("Fix it")),)),
        "Failed",
        "AdapterMissing",
    ),
    "nothing to resume": (nothing(inputs=(NoCheckpoint("y", "has failed"),)), "Failed", "CheckpointMissing"),
    "suspended": (nothing(suspend=True), "Suspended", None),
    "preflight runs": (nothing(preflight_needed=True, preflight=Attempt(job(), (running(),))), "Preflight", None),
    "preflight for longer than training may": (
        nothing(preflight_needed=True, preflight=Attempt(job(), (running(),)), deadline_seconds=60),
        "Failed",
        "DeadlineExceeded",
    ),
    "starting": (snapshot(), "Starting", None),
    "has said nothing": (snapshot(running()), "Starting", None),
    "loads": (snapshot(running(), progress=says(Phase.STARTING)), "Starting", None),
    "training": (snapshot(running(), progress=says(Phase.TRAINING)), "Training", None),
    "another image trains": (snapshot(running(), progress=says(None)), "Training", None),
    "uploads": (snapshot(running(), progress=says(Phase.UPLOADING)), "Uploading", None),
    "says it is done": (snapshot(running(), progress=says(Phase.SUCCEEDED)), "Uploading", None),
    "succeeded": (snapshot(ended(says=RESULT), train=DONE), "Succeeded", None),
    "said why": (failed(64, says=NAN), "Failed", "LossDiverged"),
    "oom": (failed(137, why="OOMKilled"), "Failed", "OutOfMemory"),
    "killed": (failed(137), "Failed", "Killed"),
    "node lost": (failed(137, disruption="DeletionByTaintManager"), "Failed", "NodeLost"),
    "bug": (failed(1), "Failed", "InternalError"),
    "bug, again and again": (failed(1, 1), "Failed", "RetriesExhausted"),
    "pods gone": (snapshot(train=job(failed_reason="BackoffLimitExceeded")), "Failed", "RetriesExhausted"),
    "somebody else's deadline": (snapshot(train=job(failed_reason="DeadlineExceeded")), "Failed", "DeadlineExceeded"),
}


@pytest.mark.parametrize(("seen", "phase", "reason"), PHASES.values(), ids=PHASES.keys())
def test_phase_and_reason(seen: Snapshot, phase: str, reason: str | None) -> None:
    status = compute_status(seen)
    assert (status["phase"], status.get("failure", {}).get("reason")) == (phase, reason)
    LoRAJobStatus.model_validate(status)


LOG = "Read its log (kubectl logs {} -n ns)"


@pytest.mark.parametrize("says", ["", "{}"])
def test_where_a_pod_has_left_no_word_its_log_is_named(says: str) -> None:
    once, often = failed(1, says=says), failed(1, 1, says=says)
    check = Attempt(job(failed_reason="BackoffLimitExceeded"), (ended(code=1, says=says),))
    checked = nothing(preflight_needed=True, preflight=check)
    for seen, pod, reason in (
        (once, "p1", "InternalError"),
        (often, "p2", "RetriesExhausted"),
        (checked, "p1", "InternalError"),
    ):
        failure = compute_status(seen)["failure"]
        assert failure["reason"] == reason
        assert f"pod {pod} ended with exit code 1 and left no message" in failure["message"]
        assert LOG.format(pod) in failure["hint"]
        assert "kubectl annotate lorajob x -n ns" in failure["hint"]


def test_what_has_left_words_or_no_log_is_not_sent_to_it() -> None:
    for seen in (failed(1, says="words"), failed(1, 1, says="words")):
        assert "kubectl logs" not in compute_status(seen)["failure"]["hint"]
    gone = compute_status(snapshot(train=job(failed_reason="BackoffLimitExceeded")))["failure"]["hint"]
    assert "where your cluster collects logs" in gone
    never = dataclasses.replace(ended(code=1), exit_code=None)
    hint = compute_status(snapshot(never, train=job(failed_reason="BackoffLimitExceeded")))["failure"]["hint"]
    assert "kubectl describe pod p1 -n ns" in hint


def test_a_pod_that_says_it_is_done_makes_no_event_of_success() -> None:
    uploads = compute_status(snapshot(running(), progress=says(Phase.UPLOADING)))
    done = compute_status(snapshot(running(), progress=says(Phase.SUCCEEDED), status=uploads))
    assert [event.reason for event in transitions(uploads, done)] == []


def test_the_verdict_is_the_same_when_asked_again() -> None:
    for name, (seen, _, _) in PHASES.items():
        first = compute_status(seen)
        later = dataclasses.replace(seen, status=first, now=NOW + timedelta(seconds=50))
        assert merge_patch(first, compute_status(later)) == {}, name


def test_preflight_report_is_taken_over() -> None:
    attempt = Attempt(DONE, (ended(says=REPORT),))
    status = compute_status(nothing(preflight_needed=True, preflight=attempt))
    assert status["dataset"] == REPORT["dataset"]
    assert status["resolved"] == REPORT["resolved"]
    assert status["disk"] == REPORT["disk"]


def test_what_trains_is_told_with_the_first_report_and_stays() -> None:
    device = "NVIDIA H100 80GB HBM3 (cuda:0, driver 580.95.05, CUDA 13.2)"
    first = TrainerStatus(phase=Phase.STARTING, device=device)
    preflight = Attempt(DONE, (ended(says=REPORT),))
    seen = snapshot(running(), preflight_needed=True, preflight=preflight, progress=first)
    starting = compute_status(seen)
    assert starting["phase"] == "Starting"
    assert starting["resolved"] == {**REPORT["resolved"], "device": device}
    LoRAJobStatus.model_validate(starting)
    silent = dataclasses.replace(seen, status=starting, progress=TrainerStatus(phase=Phase.TRAINING))
    assert compute_status(silent)["resolved"]["device"] == device, "a report of an older trainer does not take it away"


def test_a_merge_is_judged_alike() -> None:
    said = {**RESULT, "inputs": [{"uri": "s3://adapters/a", "rank": 8}], "rank": 16}
    merging = snapshot(running(), progress=says(None), kind=Kind.ADAPTERMERGE)
    assert compute_status(merging)["phase"] == "Merging"
    measuring = compute_status(dataclasses.replace(merging, progress=TrainerStatus(device="CPU (1 core)")))
    assert measuring["device"] == "CPU (1 core)"
    AdapterMergeStatus.model_validate(measuring)
    done = dataclasses.replace(merging, main=Attempt(DONE, (ended(says=said),)))
    status = compute_status(done)
    assert (status["phase"], status["rank"], status["inputs"]) == ("Succeeded", 16, said["inputs"])
    assert status["attempts"] == 1
    AdapterMergeStatus.model_validate(status)


@pytest.mark.parametrize("names", ["reward_accuracy reward_margin", "rewards/accuracies rewards/margins"])
def test_what_is_preferred_is_told_while_it_is_learned(names: str) -> None:
    """By our trainer, and by a plain image of TRL."""
    accuracy, margin = names.split()
    said = {accuracy: "0.75", margin: "0.5", f"eval_{accuracy}": "0.8125", f"eval_{margin}": "-0.25"}
    report = TrainerStatus(
        metrics=[ProgressMetric(name=name, value=value) for name, value in said.items()],
        last_updated_time="2026-01-31T12:00:00+00:00",
    )
    found = metrics_fields(report)
    assert found == {
        "rewardAccuracy": "0.75",
        "rewardMargin": "0.5",
        "evalRewardAccuracy": "0.8125",
        "evalRewardMargin": "-0.25",
    }
    LoRAJobStatus.model_validate({"metrics": found})


def test_a_result_of_preferences_is_shown() -> None:
    metrics = {"loss": "0.3", "evalLoss": "0.4", "baseEvalLoss": "0.693147", "evalRewardAccuracy": "0.9"}
    status = compute_status(snapshot(ended(says=RESULT | {"metrics": metrics}), train=DONE))
    assert status["metrics"]["evalRewardAccuracy"] == "0.9"
    assert message_of(status, "Evaluated") == "evaluation loss 0.4, the base model's 0.693147, reward accuracy 0.9"


def test_evaluations_and_how_sure_an_improvement_is_are_shown() -> None:
    points = [{"step": 50, "loss": "1.9802"}, {"step": 100, "loss": "1.41"}]
    going = TrainerStatus.model_validate({"phase": "Training", "evaluations": points[:1]})
    assert compute_status(snapshot(running(), progress=going))["evaluations"] == points[:1]
    metrics = {"evalLoss": "1.41", "baseEvalLoss": "2.031", "improvement": "0.305", "improvementError": "0.012"}
    said = RESULT | {"metrics": metrics, "evaluations": points}
    status = compute_status(snapshot(ended(says=said), train=DONE))
    assert status["evaluations"] == points
    assert message_of(status, "Evaluated") == "evaluation loss 1.41, the base model's 2.031, −30.5 % (± 1.2 %)"
    LoRAJobStatus.model_validate(status)


@pytest.mark.parametrize("nonsense", ["much", "nan", ""])
def test_an_improvement_that_is_no_number_spoils_nothing(nonsense: str) -> None:
    metrics = {"evalLoss": "1.41", "baseEvalLoss": "2.031", "improvement": nonsense}
    status = compute_status(snapshot(ended(says=RESULT | {"metrics": metrics}), train=DONE))
    assert message_of(status, "Evaluated") == "evaluation loss 1.41, the base model's 2.031"


def test_a_measured_merge_shows_every_loss() -> None:
    merging = snapshot(running(), kind=Kind.ADAPTERMERGE)
    inputs = [{"uri": "s3://adapters/a", "rank": 8, "evalLoss": "1.2"}]
    metrics = {"evalLoss": "0.9", "baseEvalLoss": "3.1"}
    said = {"adapter": RESULT["adapter"], "inputs": inputs, "metrics": metrics, "dataset": {"rows": 24}}
    status = compute_status(dataclasses.replace(merging, main=Attempt(DONE, (ended(says=said),))))
    assert (status["inputs"], status["metrics"], status["dataset"]) == (inputs, metrics, {"rows": 24})
    assert condition(status, "Evaluated") == ("True", "Evaluated")
    AdapterMergeStatus.model_validate(status)


def test_a_sweep_that_could_not_remove_its_trials_says_so() -> None:
    text = "what the other trials stored could not be removed, or not all of it: s3:DeleteObject was denied"
    publishing = snapshot(running(), kind=Kind.LORASWEEP)
    before = compute_status(publishing)
    for said in ({**RESULT, "notRemoved": text}, RESULT):
        status = compute_status(dataclasses.replace(publishing, main=Attempt(DONE, (ended(says=said),))))
        assert status["phase"] == "Succeeded"
        told = {event.reason: event for event in transitions(before, status)}
        if said is RESULT:
            assert "TrialsLeft" not in told
            continue
        assert condition(status, "TrialsRemoved") == ("False", "TrialsLeft")
        assert (told["TrialsLeft"].warning, told["TrialsLeft"].note) == (True, text)
        LoRASweepStatus.model_validate(status)


@pytest.mark.parametrize(
    ("left", "removed"),
    [
        ({}, ("Unknown", "RemovalUnknown")),
        ({"notRemoved": ""}, None),
        ({"notRemoved": "support-002 is left"}, ("False", "TrialsLeft")),
    ],
    ids=["silent", "nothing", "something"],
)
def test_what_a_sweep_has_removed_is_not_known_where_only_a_silent_report_tells_of_its_end(
    left: dict[str, Any], removed: tuple[str, str] | None
) -> None:
    looking = snapshot(train=DONE, kind=Kind.LORASWEEP)
    report = Attempt(DONE, (ended(says={**RESULT, **left}),))
    before, status = compute_status(looking), compute_status(dataclasses.replace(looking, report=report))
    assert status["phase"] == "Succeeded"
    assert condition(status, "TrialsRemoved") == removed
    LoRASweepStatus.model_validate(status)
    told = {event.reason: event for event in transitions(before, status)}
    assert ("RemovalUnknown" in told) is (not left)
    if not left:
        assert told["RemovalUnknown"].warning
        assert told["RemovalUnknown"].note.endswith("Those that remain are below s3://adapters/x-trials/uid-1")


def test_a_merge_whose_rank_costs_more_than_it_should_is_warned_of() -> None:
    text = "rank 128, the largest that is chosen by itself, leaves a relative error of 0.4"
    merging = snapshot(running(), kind=Kind.ADAPTERMERGE)
    before = compute_status(merging)
    said = {**RESULT, "rank": 128, "rankError": "0.4", "rankTooLow": text}
    status = compute_status(dataclasses.replace(merging, main=Attempt(DONE, (ended(says=said),))))
    assert (status["phase"], condition(status, "RankSufficient")) == ("Succeeded", ("False", "RankTooLow"))
    told = {event.reason: event for event in transitions(before, status)}
    assert (told["RankTooLow"].warning, told["RankTooLow"].note) == (True, text)
    assert not told["Succeeded"].warning
    AdapterMergeStatus.model_validate(status)


def test_what_is_used_of_other_objects_is_written_down() -> None:
    reference = {"name": "y", "uid": "u", "uri": "s3://adapters/y"}
    assert status_for(input_references=(reference,))["inputReferences"] == [reference]


def test_a_credential_in_a_message_is_taken_out() -> None:
    assert "AKIAIOSFODNN7EXAMPLE" not in str(compute_status(failed(1, says="cannot open with AKIAIOSFODNN7EXAMPLE")))


def test_events_tell_each_transition_once() -> None:
    before = status_for()
    after = status_for(ended(says=RESULT), train=DONE, status=before)
    told = transitions(before, after)
    assert [(event.reason, event.ends) for event in told] == [
        ("Evaluated", True),
        ("AdapterUploaded", True),
        ("Succeeded", True),
    ]
    assert transitions(after, after) == ()
    failed_ = status_for(
        ended(code=64, says={"failure": {"reason": "ModelGated", "message": "no"}}),
        train=job(failed_reason="PodFailurePolicy"),
    )
    assert [(event.reason, event.ends) for event in transitions(before, failed_)] == [("ModelGated", True)]
    assert not any(event.ends for event in transitions({}, status_for(running())))


def test_what_preflight_warns_of_in_the_data_is_a_warning_once() -> None:
    said = {"dataset": {"rows": 9, "warnings": ["2 of 9 answers are not trained", "3 rows are left out"]}}
    attempt = Attempt(DONE, (ended(says=said),))
    before = compute_status(nothing(preflight_needed=True, preflight=Attempt(DONE, (running(),))))
    after = compute_status(nothing(preflight_needed=True, preflight=attempt, status=before))
    (warning,) = [event for event in transitions(before, after) if event.warning]
    assert (warning.reason, warning.note) == ("DatasetWarning", "; ".join(said["dataset"]["warnings"]))
    assert warning.time == next(c["lastTransitionTime"] for c in after["conditions"] if c["type"] == "Preflight")
    assert after["dataset"] == said["dataset"]
    # The result of training says it once more.
    trained = {**RESULT, "dataset": said["dataset"]}
    done = status_for(ended(says=trained), train=DONE, status=after)
    assert "DatasetWarning" not in [event.reason for event in transitions(after, done)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (45, "45s"), (200, "3m20s"), (7500, "2h5m"), (90_000, "1d1h")]
)
def test_durations(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text


SAVED = {"checkpoint": {"uri": "s3://b/tunery-checkpoints/ns/x-uid-1/step-000900", "step": 900}}
KEPT = (
    "Stored checkpoint: step 900; a new LoRAJob with the same model, data, method, rank, and maxLength continues from "
)
KEPT += "it with resumeFrom.loraJobRef.name: x."
LOWER = recreate("Lower training.maxLength", "training.maxLength")


def words_of(reason: str, *remedies: Remedy) -> dict[str, Any]:
    """Return the termination message of a container that failed."""
    return {"failure": Failure(reason=reason, message="m", remedies=list(remedies)).to_json_dict()}


def test_a_long_message_stands_whole_in_one_condition_and_in_the_event() -> None:
    message = "31 of 300 rows are invalid: " + "; ".join(
        f"d.jsonl line {line}: completion: is missing" for line in range(9)
    )
    words = ended(code=64, says={"failure": {"reason": "DatasetInvalid", "message": message}})
    attempt = Attempt(job(failed_reason="BackoffLimitExceeded"), (words,))
    before = compute_status(nothing(preflight_needed=True))
    status = compute_status(nothing(preflight_needed=True, preflight=attempt, status=before))
    told = {each["type"]: each.get("message", "") for each in status["conditions"]}
    assert [type_ for type_, text in told.items() if message in text] == ["Failed"]
    for type_ in ("Preflight", "Succeeded"):
        assert told[type_].startswith("31 of 300 rows are invalid: d.jsonl line 0")
        assert told[type_].endswith("… (condition Failed has all of it)")
        assert len(told[type_]) < 220
    assert status["failure"]["message"] == message
    assert [event.note for event in transitions(before, status) if event.reason == "DatasetInvalid"] == [message]


RETRY = 'To retry: kubectl annotate lorajob x -n ns --overwrite tunery.dev/retry="$(date +%s)"'


@pytest.mark.parametrize(
    ("reason", "remedies", "command"),
    [
        ("DatasetInvalid", [], True),
        ("DatasetInvalid", [retry("Add rows"), recreate("Raise training.epochs", "training.epochs")], True),
        ("DatasetInvalid", [LOWER], False),
        ("DatasetInvalid", [retry("Look at the report. " * 30)] * 3, True),
        ("ModelUnsupported", [retry("Upload a.safetensors again")], True),
        ("ModelUnsupported", [], False),
    ],
)
def test_a_hint_ends_with_the_retry_command_where_a_retry_can_help(
    reason: str, remedies: list[Remedy], command: bool
) -> None:
    words = words_of(reason, *remedies)
    words["failure"]["facts"] = {"dataReport": "s3://b/data-report.md"}
    hint = compute_status(failed(64, says=words))["failure"]["hint"]
    assert hint.endswith(RETRY) is command
    assert len(hint.encode()) <= 1024
    assert "Data report: s3://b/data-report.md." in hint or len(remedies) == 3


@pytest.mark.parametrize("reason", ["GPUOutOfMemory", "DiskFull", "NotImproved", "LossDiverged", "InternalError"])
def test_a_failure_names_a_checkpoint_that_a_new_job_can_continue_from(reason: str) -> None:
    goes_on = reason not in ("LossDiverged", "InternalError")
    saved, bare = (compute_status(failed(64, says={**words_of(reason, LOWER), **more})) for more in (SAVED, {}))
    assert (KEPT in saved["failure"]["hint"]) is goes_on
    assert "resumeFrom" not in bare["failure"]["hint"]
    assert saved["checkpoint"] == SAVED["checkpoint"]


@pytest.mark.parametrize(
    ("found", "goes_on"),
    [
        ("NoGradient", False),
        ("LossRising", False),
        ("GradientNotFinite", False),
        ("WorseThanBase", True),
        ("NotLearning", True),
    ],
)
def test_nobody_is_sent_on_from_weights_that_are_spoilt(found: str, goes_on: bool) -> None:
    words = words_of("NotImproved", LOWER)
    findings = [{"type": found, "severity": "Problem", "step": 5}]
    status = compute_status(failed(64, says={**words, **SAVED, "findings": findings}))
    assert (KEPT in status["failure"]["hint"]) is goes_on


@pytest.mark.parametrize("status", [{}, SAVED, {"checkpoint": SAVED["checkpoint"] | {"step": 0}}])
def test_a_deadline_speaks_of_checkpoints_only_where_there_are_some(status: dict[str, Any]) -> None:
    hint = compute_status(snapshot(running(), status=status, deadline_seconds=60))["failure"]["hint"]
    assert "tunery.dev/retry" in hint
    assert (KEPT in hint) is (status == SAVED)


def test_a_rejected_adapter_is_no_adapter_and_goes_with_a_retry() -> None:
    words = {"failure": {"reason": "NotImproved", "message": "m"}, "rejectedAdapter": RESULT["adapter"]}
    status = compute_status(failed(64, says=words))
    LoRAJobStatus.model_validate(status)
    assert status["rejectedAdapter"] == RESULT["adapter"]
    assert "adapter" not in status
    again = reopened(status, "1")
    assert again is not None
    assert "rejectedAdapter" not in again

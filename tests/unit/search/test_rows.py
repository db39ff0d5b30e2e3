"""What a sweep knows of its trials: from their LoRAJobs, whatever became of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.names import ORIGIN_ANNOTATION, TRIAL_LABEL
from tunery_api.reasons import FailureReason
from tunery_api.status import FINAL_PHASES, Phase
from tunery_api.sweepstatus import TrialStatus
from tunery_search.failures import FAULTS, Fault, classify_failure
from tunery_search.trial_rows import invalid_row, merge_trials, read_trial, trial_number
from tunery_search.trials import STOPPED_BY_SWEEP, Trial, stop_text

from kit.sweeps import START, lorajob, read

EVALUATIONS = [{"step": 20, "loss": "1.90012"}, {"step": 40, "loss": "1.61238"}, {"step": 60, "loss": "1.70001"}]
MEASURED = {
    "metrics": {"evalLoss": "1.61238", "baseEvalLoss": "2.0311"},
    "evaluations": EVALUATIONS,
    "resolved": {"trainableParameters": 4884480, "steps": 80},
    "progress": {"step": 60, "totalSteps": 60},
    "gpuSeconds": 1210,
    "runSeconds": 1210,
    "attempts": 1,
}
ADAPTER = {"uri": "s3://out/0", "manifestSha256": "ab" * 32, "sizeBytes": 10}
PROBLEM = {"type": "WorseThanBase", "severity": "Problem", "step": 20, "message": "it is 9 % above the base model's"}


def failed(reason: str, message: str = "so it is", **status: Any) -> dict[str, Any]:
    return {**MEASURED, "phase": "Failed", "failure": {"reason": reason, "message": message}, **status}


def row(status: dict[str, Any], **spec: Any) -> TrialStatus:
    return read_trial(lorajob(0, status, **spec), read).row


def test_a_trial_that_succeeded_is_complete_with_all_that_is_known_of_it() -> None:
    found = row({**MEASURED, "phase": "Succeeded", "adapter": ADAPTER}).to_json_dict()
    assert found == {
        "number": 0,
        "name": "support-000",
        "origin": "TPE",
        "state": "Complete",
        "value": "1.61238",
        "baseValue": "2.0311",
        "parameters": {"training.learningRate": "0.0001"},
        "trainableParameters": 4884480,
        "steps": 60,
        "evaluations": EVALUATIONS,
        "gpuSeconds": 1210,
        "runSeconds": 1210,
        "adapter": {"uri": "s3://out/0", "manifestSha256": "ab" * 32},
    }


@pytest.mark.parametrize(
    ("told", "value"),
    [
        ("1.61238", "1.61238"),
        ("1.612", "1.61238"),
        ("1.7", "1.70001"),
        ("1.61239", "1.61239"),
    ],
    ids=["as measured", "of four digits", "the last one's", "measured once more"],
)
def test_the_value_is_that_of_what_is_published_as_exactly_as_it_is_known(told: str, value: str) -> None:
    status = {**MEASURED, "phase": "Succeeded", "adapter": ADAPTER, "metrics": {"evalLoss": told}}
    assert row(status).value == value


def test_a_success_without_a_measure_is_no_result() -> None:
    found = row({"phase": "Succeeded", "adapter": ADAPTER})
    assert (found.state, found.why) == ("Failed", "it succeeded, but its held-out loss is unknown")


def test_what_was_measured_and_is_not_better_is_complete_without_an_adapter() -> None:
    found = row(failed("NotImproved", rejectedAdapter=ADAPTER))
    assert (found.state, found.value, found.adapter, found.reason) == ("Complete", "1.61238", None, "NotImproved")


def test_what_its_own_diagnosis_ended_is_pruned_or_infeasible() -> None:
    early = {"evaluations": EVALUATIONS[:1], "progress": {"step": 20, "totalSteps": 80}, "findings": [PROBLEM]}
    pruned = row(failed("NotImproved", "stopped at step 20", **early))
    assert (pruned.state, pruned.value, pruned.at) == ("Pruned", "1.90012", "0.25")
    assert (pruned.reason, pruned.why) == ("NotImproved", "stopped at step 20")
    assert row(failed("LossDiverged", **early)).state == "Infeasible"


def test_a_run_that_found_a_problem_at_its_very_end_was_measured() -> None:
    assert row(failed("NotImproved", findings=[PROBLEM])).state == "Complete"


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        (stop_text("it is number 5 of 7"), "it is number 5 of 7"),
        ("enough", "by hand: enough"),
        (None, "it exceeded activeDeadlineSeconds"),
    ],
)
def test_a_stopped_trial_is_pruned_and_says_who_stopped_it(stop: str | None, why: str) -> None:
    status = {**MEASURED, "phase": "Stopped", "stopped": {"reason": "StopRequested", "afterStep": 15}}
    found = row(status, stop=stop)
    assert (found.state, found.value, found.at, found.why) == ("Pruned", "1.61238", "0.25", why)


def test_a_stop_of_the_sweep_is_as_long_as_the_field_takes() -> None:
    text = stop_text("x " * 300)
    assert text.startswith(STOPPED_BY_SWEEP)
    assert len(text.encode()) <= 256


@pytest.mark.parametrize("reason", FailureReason)
def test_a_failure_is_infeasible_where_the_parameters_are_at_fault(reason: FailureReason) -> None:
    found = row(failed(reason.value, evaluations=None, metrics={}))
    if reason is FailureReason.NOT_IMPROVED:
        assert found.state == "Pruned"
    else:
        assert found.state == ("Infeasible" if FAULTS.get(reason) is Fault.PARAMETERS else "Failed")
    assert (found.reason, found.why) == (reason.value, "so it is")


def test_some_faults_depend_on_the_trial() -> None:
    rate, steps = {"training.learningRate": "0.001"}, {"adalora.initialWarmupSteps": "90"}
    assert classify_failure("InvalidSpec", rate, ["adalora.initialWarmupSteps"], ran=False) is Fault.EVERY
    assert classify_failure("InvalidSpec", steps, ["adalora.initialWarmupSteps"], ran=False) is Fault.PARAMETERS
    for refused in ({"lora.targetModules": "q_proj"}, {"method": "IA3"}, {"quantization.type": "FP4"}):
        assert classify_failure("ModelUnsupported", refused, ran=False) is Fault.PARAMETERS
    assert classify_failure("SecretNotFound", {"method": "IA3"}, ran=False) is Fault.EVERY
    assert classify_failure("AdapterMissing", {}, ran=False) is Fault.EVERY
    assert classify_failure("AdapterMissing", {}, ran=True) is Fault.TRANSIENT
    assert classify_failure("OfALaterVersion", {}, ran=False) is Fault.TRANSIENT


def test_a_trial_under_way_tells_what_the_row_does_not_hold() -> None:
    status = {
        **MEASURED,
        "phase": "Training",
        "progress": {"step": 41, "totalSteps": 80},
        "findings": [{"type": "LossSpikes", "severity": "Warning", "step": 3}, PROBLEM],
        "conditions": [{"type": "Preflight", "status": "True"}],
        "attemptHistory": [
            {"uid": "a", "pod": "a", "startTime": "2026-11-27T11:00:00Z", "endTime": "2026-11-27T11:10:00Z"},
            {"uid": "b", "pod": "b", "startTime": "2026-11-27T12:00:00Z"},
        ],
    }
    found = read_trial(lorajob(0, status), read)
    assert (found.row.state, found.row.value, found.row.evaluations) == ("Running", None, None)
    assert found.live is not None
    assert found.eval_losses == ((0.25, 1.90012), (0.5, 1.61238), (0.75, 1.70001))
    assert found.live.problem == "WorseThanBase: it is 9 % above the base model's"
    assert (found.live.checked, found.live.waiting, found.live.stopping, found.live.stops_itself) == (
        True,
        False,
        False,
        True,
    )
    assert found.gpu_seconds(START + timedelta(seconds=30)) == 1240
    on_cpu = read_trial(lorajob(0, status, resources={"gpus": 0}, stop="enough"), read)
    assert on_cpu.gpu_seconds(START + timedelta(seconds=30)) == 1210
    assert on_cpu.live is not None
    assert on_cpu.live.stopping
    # Of a trial on two nodes each pod holds its GPUs, since it started.
    second = {"uid": "c", "pod": "c", "startTime": "2026-11-27T12:00:20Z", "index": 1, "attempt": 2}
    both = {**status, "attemptHistory": [*status["attemptHistory"], second]}
    on_nodes = read_trial(lorajob(0, both, resources={"gpus": 4, "nodes": 2}), read)
    assert on_nodes.gpu_seconds(START + timedelta(seconds=30)) == 1210 + 4 * (30 + 10)


@pytest.mark.parametrize(
    ("status", "held"),
    [
        ({}, False),
        ({"phase": "Queued"}, True),
        ({"phase": "Waiting"}, True),
        ({"phase": "Starting", "failure": {"reason": "Unschedulable", "message": "no node"}}, True),
        ({"phase": "Suspended"}, False),
    ],
)
def test_a_trial_waits(status: dict[str, Any], held: bool) -> None:
    found = read_trial(lorajob(0, status), read)
    assert found.row.state == "Waiting"
    assert found.live is not None
    assert found.live.waiting is held
    assert (found.live.blocker is not None) == bool(status.get("failure"))


def test_final_rows_win_and_a_trial_that_is_gone_was_deleted() -> None:
    rows = [
        TrialStatus(number=0, name="support-000", state="Complete", value="1.5"),
        TrialStatus(number=1, name="support-001", state="Running"),
        TrialStatus(number=2, name="support-002", state="Running", parameters={"training.learningRate": "0.0003"}),
    ]
    children = [lorajob(0, {"phase": "Training"}), lorajob(1, {"phase": "Stopped"}), lorajob(4, {})]
    merged = merge_trials(rows, reversed(children), read)
    states = [(each.row.number, each.row.state) for each in merged]
    assert states == [(0, "Complete"), (1, "Pruned"), (2, "Deleted"), (4, "Waiting")]
    assert merged[0].row is rows[0]
    assert merged[2].row.parameters == {"training.learningRate": "0.0003"}


def test_a_lorajob_without_a_number_is_no_trial() -> None:
    stranger = lorajob(0, {})
    del stranger["metadata"]["labels"]["tunery.dev/trial"]
    assert merge_trials([], [stranger], read) == ()


LIVES = ("Pending", "Preflight", "Queued", "Starting", "Downloading", "Training", "Evaluating")
ENDS = (
    {**MEASURED, "phase": "Succeeded", "adapter": ADAPTER},
    {**MEASURED, "phase": "Stopped"},
    failed("GPUOutOfMemory"),
    failed("NodeLost"),
)
CAREERS = st.lists(
    st.tuples(st.lists(st.sampled_from(LIVES), max_size=3), st.sampled_from([*ENDS, None])), min_size=1, max_size=4
)


@given(CAREERS, st.data())
def test_looking_at_some_of_what_happens_ends_as_looking_at_all_of_it(
    careers: list[tuple[list[str], dict[str, Any] | None]], data: st.DataObject
) -> None:
    """Each trial goes through phases to its end; a sweep that slept through any of them knows the same at the end."""
    lives = [[*({"phase": phase} for phase in phases), *([end] if end else [])] or [{}] for phases, end in careers]
    moments = [
        [lorajob(number, life[min(tick, len(life) - 1)]) for number, life in enumerate(lives)]
        for tick in range(max(map(len, lives)))
    ]
    seen = [children for children in moments[:-1] if data.draw(st.booleans())]

    def known(looks: list[list[dict[str, Any]]]) -> tuple[Trial, ...]:
        trials: tuple[Trial, ...] = ()
        for children in looks:
            trials = merge_trials([each.row for each in trials], data.draw(st.permutations(children)), read)
        return trials

    assert known([*seen, moments[-1]]) == known([moments[-1]])


def test_every_final_phase_of_a_lorajob_is_final_here() -> None:
    for phase in Phase:
        found = read_trial(lorajob(0, {"phase": phase.value}), read)
        assert found.has_ended == (phase.value in FINAL_PHASES)
        assert (found.live is None) == found.has_ended


def test_what_anybody_may_write_on_a_lorajob_ends_no_look() -> None:
    body = lorajob(0, {"phase": "Training"})
    body["metadata"]["annotations"] = {ORIGIN_ANNOTATION: "x" * 1000}
    body["spec"]["training"]["learningRate"] = "1" * 1000
    found = read_trial(body, read).row
    assert (found.origin, found.parameters) == ("x" * 64, {"training.learningRate": "1" * 256})
    body["metadata"]["labels"][TRIAL_LABEL] = "9" * 60
    assert trial_number(body) is None


def test_a_trials_origin_is_that_of_its_row() -> None:
    forged = lorajob(0, {"phase": "Training"})
    forged["metadata"]["annotations"] = {ORIGIN_ANNOTATION: "Final"}
    (known,) = merge_trials([row({"phase": "Training"})], [forged], read)
    assert (known.row.origin, known.is_final_trial) == ("TPE", False)


def test_of_one_that_could_not_be_read_nothing_is_said_but_its_row() -> None:
    known = row({"phase": "Training"})
    (trial,) = merge_trials([known], [], read, unread={0})
    assert trial == Trial(known)
    assert not trial.has_ended


def test_a_trial_whose_values_are_invalid_together_is_final_counts_and_is_not_deleted() -> None:
    error = InvalidSpec([FieldError("spec.lora.rank", "IA3 has no such setting")])
    found = invalid_row(lorajob(3, {}), read, error)
    assert (found.number, found.state, found.reason) == (3, "Infeasible", "InvalidSpec")
    assert found.why == "these values together: lora.rank: IA3 has no such setting"
    (known,) = merge_trials([found], [], read)
    assert known == Trial(found)
    assert known.counts
    assert known.gpu_seconds(START) == 0

"""What a sweep does next: a table of situations, and that it does not matter when or how often it is asked."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery_api.failures import Failure
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.reasons import FailureReason
from tunery_api.sweepstatus import MAX_TRIAL_ROWS, EndReason, TrialState
from tunery_search.decision import Decision, DecisionContext, decide, failure_limit
from tunery_search.failures import FAULTS, Fault
from tunery_search.trial_rows import read_trial
from tunery_search.trials import Live, Trial

from kit.sweeps import START, lorajob, moment, read, running, sweep, trial

S = TrialState
WAITING = trial(0, S.WAITING)


def done(number: int, value: float | None = None, **fields: Any) -> Trial:
    return trial(number, S.COMPLETE, value, **fields)


def unfit(number: int) -> Trial:
    return trial(number, S.INFEASIBLE, reason="WontFit", why="40 GiB of 24")


def failure_of(spec: LoRASweepSpec, trials: list[Trial], context: DecisionContext | None = None) -> Failure:
    failure = decide(spec, trials, context or moment()).fail
    assert failure is not None
    return failure


def by_chance(number: int, reason: str = "NodeLost") -> Trial:
    return trial(number, S.FAILED, reason=reason, why=f"node {number} is gone")


BEFORE_PREFLIGHT = {
    "the first": ([], (0,)),
    "it waits": ([WAITING], ()),
    "it is being checked": ([running(0, checked=False)], ()),
    "it passed": ([running(0)], (1, 2, 3)),
    "it is complete": ([done(0)], (1, 2, 3, 4)),
    "it did not fit": ([unfit(0)], (1,)),
    "it failed by chance in preflight": ([by_chance(0)], (1,)),
    "it failed on the GPU": ([trial(0, S.INFEASIBLE, reason="GPUOutOfMemory", run_seconds=9)], (1, 2, 3, 4)),
    "it was pruned": ([trial(0, S.PRUNED, 2.0, losses=(2.0,))], (1, 2, 3, 4)),
    "it was deleted": ([trial(0, S.DELETED)], (1,)),
}


@pytest.mark.parametrize(("trials", "create"), BEFORE_PREFLIGHT.values(), ids=BEFORE_PREFLIGHT)
def test_one_trial_goes_ahead_until_one_has_passed_preflight(trials: list[Trial], create: tuple[int, ...]) -> None:
    decision = decide(sweep(parallelTrials=4), trials, moment())
    assert (decision.create, decision.end_reason, decision.publish, decision.fail) == (create, None, None, None)


@pytest.mark.parametrize(
    ("trials", "create"),
    [
        ([done(0), running(1)], (2,)),
        ([done(0), running(1), running(2)], ()),
        ([done(0), running(1, waiting=True)], ()),
        ([done(0), running(7)], (8,)),
    ],
    ids=["one place is free", "none is", "one waits for quota", "numbers are never used again"],
)
def test_as_many_run_as_may_unless_one_waits(trials: list[Trial], create: tuple[int, ...]) -> None:
    assert decide(sweep(parallelTrials=2), trials, moment()).create == create


def test_nothing_is_made_while_suspended() -> None:
    spec = sweep(suspend=True, maxTrials=1, final={"training": {"epochs": 3}})
    assert decide(spec, [], moment()) == Decision()
    assert decide(spec, [done(0)], moment()) == Decision(end_reason=EndReason.MAX_TRIALS)


def test_nothing_fails_for_want_of_a_result_while_suspended() -> None:
    none = trial(0, S.INFEASIBLE, reason="LossDiverged")
    assert decide(sweep(suspend=True, maxTrials=1), [none], moment()) == Decision(end_reason=EndReason.MAX_TRIALS)
    late = sweep(suspend=True, activeDeadlineSeconds=1)
    assert decide(late, [none], moment(9)) == Decision(end_reason=EndReason.DEADLINE)
    assert decide(sweep(maxTrials=1), [none], moment()).fail is not None


def test_limits_may_change_while_it_runs() -> None:
    trials = [done(number) for number in range(5)]
    assert decide(sweep(maxTrials=5), trials, moment()).publish == 0
    assert decide(sweep(maxTrials=6), trials, moment()).create == (5,)
    assert decide(sweep(maxTrials=3), [*trials, running(5)], moment()) == Decision()


def test_what_does_not_fit_is_no_trial_of_the_search_until_most_does_not() -> None:
    spec = sweep(maxTrials=3, parallelTrials=4)
    assert decide(spec, [done(0), unfit(1), unfit(2)], moment()).create == (3, 4)
    best = decide(spec, [done(0), unfit(1), unfit(2), unfit(3)], moment())
    assert (best.publish, best.end_reason) == (0, EndReason.MOST_WONT_FIT)
    none = failure_of(spec, [unfit(0), unfit(1), unfit(2)])
    assert (none.reason, none.message) == (
        "WontFit",
        "3 of 3 trials ended as WontFit, and none is complete; the last: 40 GiB of 24",
    )


def test_a_search_in_which_most_does_not_fit_goes_on_once_more_trials_are_allowed() -> None:
    trials = [*map(unfit, range(5)), done(5)]
    assert decide(sweep(maxTrials=5), [*trials, running(6)], moment()) == Decision()
    ended = decide(sweep(maxTrials=5), trials, moment())
    assert (ended.publish, ended.end_reason) == (5, EndReason.MOST_WONT_FIT)
    assert decide(sweep(maxTrials=50), trials, moment(recorded=EndReason.MOST_WONT_FIT)).create == (6,)
    enough = [*map(unfit, range(3)), *(done(number) for number in range(3, 6))]
    assert decide(sweep(maxTrials=3), enough, moment()).end_reason is EndReason.MAX_TRIALS


def forgiving(number: int) -> DecisionContext:
    return DecisionContext(START, START, forgiven=number)


def test_a_retry_makes_others_for_the_trials_that_had_failed() -> None:
    spec = sweep(maxTrials=4, parallelTrials=9)
    away = [by_chance(number, "StorageUnavailable") for number in range(4)]
    assert decide(spec, away, forgiving(4)) == Decision(create=(4,))
    assert decide(spec, [*away, done(4)], forgiving(4)).create == (5, 6, 7)
    assert decide(sweep(maxTrials=1), [by_chance(0, "SecretNotFound")], forgiving(1)).create == (1,)
    mixed = [done(0), by_chance(1), unfit(2), trial(3, S.DELETED), by_chance(4)]
    assert decide(spec, mixed, forgiving(4)).create == (5,), "one complete, one deleted, and one that failed after it"
    ended = [*away, *(done(number) for number in range(4, 8))]
    assert decide(spec, ended, forgiving(4)) == Decision(publish=4, end_reason=EndReason.MAX_TRIALS)


def test_what_was_stopped_as_the_sweep_had_failed_is_forgiven_with_it() -> None:
    spec, wrong = sweep(maxTrials=3, parallelTrials=3), trial(1, S.FAILED, reason="SecretNotFound", why="no Secret")
    stop = decide(spec, [done(0, 1.0), wrong, running(2, 2.0)], moment()).stop[2]
    ended = read_trial(lorajob(2, {"phase": "Stopped", "runSeconds": 9}, stop=stop), read)
    by_hand = read_trial(lorajob(2, {"phase": "Stopped"}, stop="enough"), read)
    assert decide(spec, [done(0, 1.0), wrong, ended], forgiving(3)).create == (3, 4)
    assert decide(spec, [done(0, 1.0), wrong, by_hand], forgiving(3)).create == (3,)
    patient = sweep(stopAfterTrialsWithoutImprovement=1)
    assert decide(patient, [done(0, 1.0), wrong, ended], forgiving(3)).create == (3,), "it says nothing of its values"


def test_what_was_stopped_for_a_failure_that_came_to_nothing_does_not_count_though_nobody_retried() -> None:
    before, raised = (sweep(maxTrials=4, parallelTrials=4, maxFailedTrials=most) for most in (0, 1))
    stop = decide(before, [done(0), by_chance(1), running(2), running(3)], moment()).stop
    ended = [read_trial(lorajob(number, {"phase": "Stopped"}, stop=stop[number]), read) for number in (2, 3)]
    assert decide(before, [done(0), by_chance(1), *ended], moment()).fail is not None
    assert decide(raised, [done(0), by_chance(1), *ended], moment()) == Decision(create=(4, 5))
    over = decide(raised, [done(0), by_chance(1), *ended, done(4), done(5)], moment())
    assert over == Decision(publish=0, end_reason=EndReason.MAX_TRIALS)


def test_what_was_forgiven_is_not_why_a_sweep_fails_later() -> None:
    trials = [by_chance(0), by_chance(1), trial(2, S.INFEASIBLE, reason="LossDiverged", why="at step 9")]
    failure = failure_of(sweep(maxTrials=1), trials, forgiving(2))
    assert failure.message == "1 of 1 trials ended as LossDiverged, and none is complete; the last: at step 9"


def test_there_are_never_more_trials_than_a_status_has_rows() -> None:
    spec = sweep(maxTrials=128, parallelTrials=32)
    away = [by_chance(number) for number in range(MAX_TRIAL_ROWS - 4)]
    assert len(decide(spec, [*away, done(MAX_TRIAL_ROWS - 4)], forgiving(MAX_TRIAL_ROWS)).create) == 2
    full = [*away, *(done(MAX_TRIAL_ROWS - number) for number in (4, 3, 2))]
    assert decide(spec, full, forgiving(MAX_TRIAL_ROWS)).end_reason is EndReason.MAX_TRIALS


EVERY = [reason for reason, fault in FAULTS.items() if fault is Fault.EVERY]


@pytest.mark.parametrize("reason", EVERY)
def test_a_failure_of_every_trial_ends_the_sweep_after_one(reason: FailureReason) -> None:
    failed = trial(0, S.FAILED, reason=reason.value, why="Secret s3 has no AWS_ACCESS_KEY_ID")
    decision = decide(sweep(parallelTrials=4), [failed, running(1)], moment())
    assert decision.fail is not None
    assert decision.fail.reason is reason
    why = "Secret s3 has no AWS_ACCESS_KEY_ID"
    assert decision.fail.message == f"trial 0 (support-000) failed as every trial would: {why}"
    assert decision.stop == {1: "sweep: the sweep has failed"}
    assert decision.create == ()


def test_failures_by_chance_are_counted() -> None:
    failed = [by_chance(0, "NodeLost"), by_chance(1, "GPUFault"), by_chance(2, "NodeLost"), by_chance(3, "NodeLost")]
    assert decide(sweep(maxFailedTrials=4), failed, moment()).create == (4,)
    failure = failure_of(sweep(maxTrials=10), [done(4), *failed])
    assert (failure.reason, failure.message) == (
        "NodeLost",
        "4 trials failed, and spec.maxFailedTrials allows 3 by default; the last: node 3 is gone",
    )
    assert [failure_limit(sweep(maxTrials=most)) for most in (1, 20, 40, 128)] == [3, 4, 8, 25]
    assert failure_limit(sweep(maxFailedTrials=0)) == 0


def test_who_lowers_max_trials_to_end_it_has_the_best_whatever_failed_by_chance_so_far() -> None:
    trials = [*map(by_chance, range(4)), done(4)]
    ended = Decision(publish=4, end_reason=EndReason.MAX_TRIALS)
    assert decide(sweep(maxTrials=20), trials, moment()).create == (5,)
    assert decide(sweep(maxTrials=1), trials, moment()) == ended
    assert decide(sweep(maxTrials=1), [*trials, running(5)], moment()) == Decision(), "what runs comes to its end"
    asked = failure_of(sweep(maxTrials=1, maxFailedTrials=3), trials)
    assert asked.message.startswith("4 trials failed, and spec.maxFailedTrials allows 3;")
    lost = failure_of(sweep(maxTrials=1), trials[:4])
    assert lost.message == "4 of 4 trials ended as NodeLost, and none is complete; the last: node 3 is gone"


def test_a_reason_of_a_later_version_is_of_chance() -> None:
    assert decide(sweep(), [by_chance(0, "MoonIsFull")], moment()).create == (1,)


def test_the_worse_ones_are_stopped_by_the_sweep() -> None:
    elders = [done(number, losses=(3.0, 2.0)) for number in range(6)]
    decision = decide(sweep(parallelTrials=2), [*elders, running(6, 3.0, 9.0)], moment())
    assert decision.stop.keys() == {6}
    text = "sweep: after 25 % of the steps its lowest held-out loss is 3: number 7 of 7, and the best 4 continue"
    assert decision.stop[6] == text
    assert decision.create == (7,)


def test_no_improvement_for_so_many_trials_ends_it_once_nothing_runs() -> None:
    spec = sweep(stopAfterTrialsWithoutImprovement=3)
    worse = [trial(1, S.PRUNED, 9.0), trial(2, S.INFEASIBLE, reason="LossDiverged")]
    assert decide(spec, [done(0, 1.0), *worse, by_chance(3), unfit(4)], moment()).create == (5,)
    ended = [done(0, 1.0), *worse, done(3, 2.0)]
    assert decide(spec, [*ended, running(4)], moment()) == Decision()
    assert decide(spec, ended, moment()) == Decision(publish=0, end_reason=EndReason.NO_IMPROVEMENT)
    assert decide(spec, [*ended, done(4, 0.5)], moment()).create == (5,)


def test_a_space_that_is_exhausted_ends_it() -> None:
    spec, known = sweep(), moment(recorded=EndReason.SPACE_EXHAUSTED)
    assert decide(spec, [done(0), running(1)], known) == Decision(end_reason=EndReason.SPACE_EXHAUSTED)
    assert decide(spec, [done(0), done(1)], known) == Decision(publish=0, end_reason=EndReason.SPACE_EXHAUSTED)


def test_the_deadline_stops_all_and_publishes_the_best() -> None:
    spec = sweep(activeDeadlineSeconds=3600, final={"training": {"epochs": 3}})
    trials = [done(0), running(1), trial(2, S.WAITING), running(3, stopping=True)]
    before = decide(spec, trials, moment(3599))
    assert (before.stop, before.requeue_at) == ({}, START + timedelta(seconds=3600))
    after = decide(spec, trials, moment(3600))
    text = "sweep: the sweep reached spec.activeDeadlineSeconds"
    assert (after.stop, after.create, after.end_reason) == ({1: text, 2: text}, (), EndReason.DEADLINE)
    ended = [done(0), trial(1, S.PRUNED), trial(2, S.PRUNED), trial(3, S.PRUNED)]
    assert decide(spec, ended, moment(3600)) == Decision(publish=0, end_reason=EndReason.DEADLINE)


def test_a_budget_that_is_spent_stops_all_and_publishes_the_best() -> None:
    spec = sweep(budget={"gpuSeconds": 150})
    runs = running(1, since=(START,))
    before = decide(spec, [done(0), runs], moment(49))
    assert (before.stop, before.requeue_at) == ({}, START + timedelta(seconds=50))
    after = decide(spec, [done(0), runs], moment(50))
    assert (after.stop, after.end_reason) == ({1: "sweep: the budget is spent"}, EndReason.BUDGET)
    ended = [done(0), trial(1, S.PRUNED, gpu_seconds=51)]
    assert decide(spec, ended, moment(99)) == Decision(publish=0, end_reason=EndReason.BUDGET)


def test_while_something_runs_a_limit_that_is_near_or_reached_is_looked_at_again() -> None:
    three = running(0, since=(START,), gpus=3)
    almost = decide(sweep(budget={"gpuSeconds": 1}), [three], moment(0.333333))
    assert (almost.end_reason, almost.requeue_at) == (None, START + timedelta(seconds=0.334333))
    spent = decide(sweep(budget={"gpuSeconds": 1}), [three], moment(2))
    late = decide(sweep(activeDeadlineSeconds=1), [running(0, stopping=True)], moment(2))
    assert spent.requeue_at == late.requeue_at == START + timedelta(seconds=12)


@given(st.floats(0, 200), st.integers(1, 150), st.integers(1, 150), st.integers(1, 7))
def test_with_a_limit_of_time_there_is_always_a_next_look(now: float, budget: int, deadline: int, gpus: int) -> None:
    trials = [done(0, gpu_seconds=1), running(1, since=(START,), gpus=gpus)]
    for spec in (sweep(budget={"gpuSeconds": budget}), sweep(activeDeadlineSeconds=deadline)):
        again = decide(spec, trials, moment(now)).requeue_at
        assert again is not None
        assert moment(now).now < again <= START + timedelta(seconds=max(now + 10, 150))


@pytest.mark.parametrize(
    ("budget", "trials", "create"),
    [
        (1000, [done(0)], (1, 2, 3, 4)),
        (399, [done(0)], (1, 2)),
        (400, [done(0)], (1, 2, 3)),
        (400, [done(0), running(1)], (2, 3)),
        (400, [done(0), running(1, since=(START,))], (2, 3)),
        (400, [done(0), trial(1, S.PRUNED, gpu_seconds=25)], (2, 3)),
        (250, [done(0), running(1)], ()),
    ],
    ids=["enough", "for two", "for three", "one runs", "one has begun", "one was pruned", "for what runs alone"],
)
def test_a_trial_is_made_only_where_the_budget_has_room_for_it(
    budget: int, trials: list[Trial], create: tuple[int, ...]
) -> None:
    decision = decide(sweep(parallelTrials=4, budget={"gpuSeconds": budget}), trials, moment(30))
    assert (decision.create, decision.end_reason) == (create, None)


def test_a_budget_without_room_for_another_trial_ends_it() -> None:
    decision = decide(sweep(budget={"gpuSeconds": 199}), [done(0)], moment())
    assert decision == Decision(publish=0, end_reason=EndReason.BUDGET)


def test_a_budget_that_ran_out_before_anything_was_complete_says_so() -> None:
    failure = failure_of(sweep(budget={"gpuSeconds": 100}), [trial(0, S.PRUNED, gpu_seconds=101)])
    assert failure.reason is FailureReason.BUDGET_EXHAUSTED
    assert failure.message == "spec.budget was exceeded before any trial published an adapter"


def test_without_anything_complete_the_commonest_reason_is_the_sweeps() -> None:
    out = [trial(number, S.INFEASIBLE, reason="GPUOutOfMemory", why=f"at step {number}") for number in (0, 2)]
    failure = failure_of(sweep(maxTrials=3), [*out, trial(1, S.INFEASIBLE, reason="LossDiverged")])
    assert (failure.reason, failure.message) == (
        "GPUOutOfMemory",
        "2 of 3 trials ended as GPUOutOfMemory, and none is complete; the last: at step 2",
    )


def test_what_was_measured_but_published_nothing_cannot_be_the_result() -> None:
    trials = [done(number, adapter=None, reason="NotImproved", why="it is no better") for number in range(2)]
    failure = failure_of(sweep(maxTrials=2), trials)
    assert (failure.reason, failure.message) == (
        "NotImproved",
        "2 of 2 trials ended as NotImproved, and none has an adapter; the last: it is no better",
    )
    lost = failure_of(sweep(maxTrials=1), [done(0, adapter=None)])
    assert lost.message == "none of 1 trials has an adapter"
    late = failure_of(sweep(maxTrials=1), [trial(0, S.PRUNED, why="it exceeded activeDeadlineSeconds")])
    assert late.message == "none of 1 trials completed"
    assert {path.partition(".")[0] for each in late.remedies for path in each.fields} == {"template"}


def test_where_people_have_ended_all_of_them_more_are_needed() -> None:
    taken = [trial(0, S.PRUNED, why="by hand: enough"), trial(1, S.DELETED)]
    failure = failure_of(sweep(maxTrials=2), taken)
    assert (failure.reason, failure.message) == ("NotImproved", "all 2 trials were deleted or stopped by a user")
    assert [(each.action, each.fields) for each in failure.remedies] == [("Edit", ["maxTrials"])]
    assert decide(sweep(maxTrials=3), taken, forgiving(2)).create == (2,)
    every = failure_of(sweep(maxTrials=9), taken, moment(recorded=EndReason.SPACE_EXHAUSTED))
    assert [each.action for each in every.remedies] == ["Recreate"]


def test_the_best_is_trained_once_more_where_that_is_asked_for() -> None:
    spec = sweep(maxTrials=2, final={"training": {"epochs": 3}})
    searched, known = [done(0, 2.0), done(1, 1.5)], moment(recorded=EndReason.MAX_TRIALS)
    assert decide(spec, searched, moment()) == Decision(final=2, end_reason=EndReason.MAX_TRIALS)
    assert decide(spec, [*searched, running(2, origin="Final")], known) == Decision(end_reason=EndReason.MAX_TRIALS)
    better = decide(spec, [*searched, done(2, 1.2, origin="Final")], known)
    assert better == Decision(publish=2, end_reason=EndReason.MAX_TRIALS)
    assert decide(spec, [*searched, done(2, 1.7, origin="Final")], known).publish == 1
    lost = trial(2, S.FAILED, reason="SecretNotFound", origin="Final")
    assert decide(spec, [*searched, lost], known).publish == 1
    more = sweep(maxTrials=9, final={"training": {"epochs": 3}})
    assert decide(more, [*searched, running(2, origin="Final")], known).create == ()


@pytest.mark.parametrize("more", [{"suspend": True}, {"final": {"training": {"epochs": 2}}}, {"maxTrials": 1}])
def test_once_the_best_is_being_published_it_stays_that_whatever_is_written_down_or_asked_for(more: Any) -> None:
    spec = sweep(budget={"gpuSeconds": 150}, **more)
    assert decide(spec, [done(0), done(1)], moment(publishing=True)).publish == 0
    assert decide(spec, [done(0), done(1)], moment(publishing=True)).final is None


def test_while_the_best_is_published_nothing_else_is_done() -> None:
    known = moment(9999, recorded=EndReason.NO_IMPROVEMENT, publishing=True)
    spec = sweep(maxTrials=99, activeDeadlineSeconds=1)
    assert decide(spec, [done(0)], known) == Decision(publish=0, end_reason=EndReason.NO_IMPROVEMENT)


def test_a_smaller_adapter_within_the_tolerance_is_the_best() -> None:
    spec = sweep(maxTrials=2, objective={"tolerance": 0.01})
    trials = [done(0, 1.0, trainable_parameters=900), done(1, 1.009, trainable_parameters=100)]
    assert decide(spec, trials, moment()).publish == 1
    assert decide(spec, trials, moment(publishing=True)).publish == 1


ONES = st.sampled_from(
    [
        done,
        lambda number: trial(number, S.PRUNED, 3.0, losses=(3.0,)),
        lambda number: trial(number, S.INFEASIBLE, reason="GPUOutOfMemory", run_seconds=5),
        unfit,
        by_chance,
        lambda number: trial(number, S.DELETED),
        lambda number: trial(number, S.WAITING),
        lambda number: running(number, 3.0, 2.0),
    ]
)
SPECS = st.builds(
    lambda trials, parallel, patience: sweep(
        maxTrials=trials, parallelTrials=min(parallel, trials), stopAfterTrialsWithoutImprovement=patience
    ),
    st.integers(1, 8),
    st.integers(1, 4),
    st.sampled_from([None, 2, 4]),
)
SITUATIONS = st.lists(ONES, max_size=10).map(lambda made: [one(number) for number, one in enumerate(made)])


@given(SPECS, SITUATIONS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(spec: Any, trials: list[Trial], chance: random.Random) -> None:
    mixed = list(trials)
    chance.shuffle(mixed)
    assert decide(spec, mixed, moment()) == decide(spec, trials, moment())


@given(SPECS, SITUATIONS)
def test_asked_again_once_it_was_done_nothing_is_done_twice(spec: Any, trials: list[Trial]) -> None:
    """However often it is asked: the trials that it made are there, those that it stopped are being stopped."""
    decision = decide(spec, trials, moment())
    after = [_told(each) if each.row.number in decision.stop else each for each in trials]
    after += [trial(number, S.WAITING) for number in decision.create]
    again = decide(spec, after, moment())
    assert (again.create, again.stop) == ((), {})


def _told(stopped: Trial) -> Trial:
    live = stopped.live or Live()
    return Trial(stopped.row, Live(**{**vars(live), "stopping": True}))


@given(SPECS, SITUATIONS)
def test_a_sweep_is_never_stuck(spec: Any, trials: list[Trial]) -> None:
    """Where nothing is under way, something is made, published, or failed; and never more than there may be."""
    decision = decide(spec, trials, moment())
    alive = sum(not each.has_ended for each in trials)
    if not alive:
        assert decision.create or decision.fail or decision.publish is not None
    assert alive + len(decision.create) <= max(alive, spec.parallel_trials)
    assert sum(each.counts for each in trials) + len(decision.create) <= max(
        spec.max_trials, sum(each.counts for each in trials)
    )
    assert set(decision.create).isdisjoint(each.row.number for each in trials)


@pytest.mark.slow
@given(SPECS, st.lists(ONES, max_size=30), st.data())
def test_whoever_slept_through_events_comes_to_the_same_end(spec: Any, fates: list[Any], data: st.DataObject) -> None:
    """The fate of a trial is its number's: a sweep that is looked at at any moments ends with the same trials."""
    final = [one(number) for number, one in enumerate(fates)]
    fate = [each if each.has_ended else done(each.row.number) for each in final]
    fate += [done(number) for number in range(len(fate), 40)]

    def played(*, asleep: bool) -> tuple[list[Trial], Decision]:
        trials: list[Trial] = []
        for _ in range(200):
            decision = decide(spec, trials, moment())
            if decision.fail or decision.publish is not None:
                return trials, decision
            trials += [running(number) for number in decision.create]
            open_ones = [index for index, each in enumerate(trials) if not each.has_ended]
            ended = (
                data.draw(st.lists(st.sampled_from(open_ones), min_size=1, unique=True)) if asleep else open_ones[:1]
            )
            for index in ended:
                trials[index] = fate[trials[index].row.number]
        raise AssertionError("it does not end")

    one_by_one, decision = played(asleep=False)
    in_bulk, other = played(asleep=True)
    if spec.parallel_trials == 1:
        assert (in_bulk, other) == (one_by_one, decision)
    assert (other.fail is None) == (other.publish is not None)
    assert sum(each.counts for each in in_bulk) <= spec.max_trials

"""The sentences of the client about an object."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from tunery.describe import blocker, improvement, news, progress, result
from tunery.errors import UsageError
from tunery.objects import View, parse_duration, view
from tunery.watching import Lines, live_line, show
from tunery_api.kinds import Kind

TRAINING = {
    "phase": "Training",
    "progress": {"step": 82, "totalSteps": 200, "percent": 41, "percentText": "41%", "eta": "3m",
                 "tokensPerSecond": "12345.6"},
    "metrics": {"loss": "1.23456", "evalLoss": "1.4", "baseEvalLoss": "2.5", "improvementError": "0.012"},
}  # fmt: skip
SPIKES = {"type": "LossSpikes", "severity": "Warning", "step": 9, "field": "training.learningRate", "suggest": "1e-4",
          "message": "3 steps are far above the others"}  # fmt: skip


def lorajob(status: dict[str, Any], kind: Kind = Kind.LORAJOB, **spec: Any) -> View:
    """Return a view of an object with a status."""
    metadata = {"name": "support", "namespace": "team", "uid": "1", "generation": 1}
    return view({"metadata": metadata, "spec": spec, "status": {"observedGeneration": 1, **status}}, kind)


def test_the_progress_names_what_is_measured() -> None:
    assert progress(lorajob(TRAINING)) == [
        "step 82/200", "loss 1.235", "held-out 1.4 (base 2.5)", "ETA 3m", "12,346 tokens/s",
    ]  # fmt: skip
    assert progress(lorajob({"phase": "Pending"})) == []


@pytest.mark.parametrize(
    ("kind", "status", "parts"),
    [
        (Kind.ADAPTERMERGE, {"phase": "Downloading", "progress": {"percentText": "7%"}}, ["7%"]),
        (
            Kind.BATCHINFERENCE,
            {"phase": "Answering", "lines": 90, "answered": 30, "errors": 2, "progress": {"eta": "1m"}},
            ["30 of 90 lines", "2 failed", "ETA 1m"],
        ),
        (Kind.BATCHINFERENCE, {"phase": "Starting"}, []),
        (
            Kind.LORASWEEP,
            {"phase": "Searching", "countsText": "3/8", "counts": {"running": 2}, "best": {"value": "1.5"}},
            ["trials 3/8", "2 running", "best 1.5"],
        ),
        (
            Kind.ADAPTERSERVER,
            {"phase": "Updating", "readyText": "1/2", "adaptersText": "3/4"},
            ["replicas 1/2", "adapters 3/4"],
        ),
    ],
)
def test_the_progress_of_each_kind(kind: Kind, status: dict[str, Any], parts: list[str]) -> None:
    assert progress(lorajob(status, kind)) == parts


@pytest.mark.parametrize("width", [8, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_the_live_line_fits_any_terminal(width: int, ascii_only: bool) -> None:
    text = live_line(lorajob(TRAINING), width, ascii_only=ascii_only).plain
    assert cell_len(text) < width
    assert "\n" not in text
    assert text.isascii() or not ascii_only


def test_forty_columns_show_phase_percentage_and_step() -> None:
    text = live_line(lorajob(TRAINING), 40).plain
    assert [each in text for each in ("support", "Training", "41 %", "step 82/200")] == [True] * 4


def test_eighty_columns_prefer_the_losses_to_the_bar() -> None:
    text = live_line(lorajob(TRAINING), 80).plain
    assert [each in text for each in ("loss 1.235", "held-out 1.4 (base 2.5)", "tokens/s")] == [True, True, False]


def test_a_wide_terminal_shows_all() -> None:
    text = live_line(lorajob(TRAINING), 160).plain
    assert all(part in text for part in ("━━━━━━━━────────────", *progress(lorajob(TRAINING))))


@pytest.mark.parametrize(
    ("status", "reason", "in_hint"),
    [
        ({"phase": "Training"}, None, ""),
        ({"phase": "Succeeded", "reason": "PreflightOnly"}, None, ""),
        (
            {"phase": "Queued", "reason": "WaitingForQuota", "queue": "gpus",
             "conditions": [{"type": "QuotaReserved", "reason": "WaitingForQuota", "message": "waiting for gpus"}]},
            "WaitingForQuota", "kubectl describe localqueue gpus -n team",
        ),
        ({"phase": "Suspended"}, "Suspended", "tunery -n team resume lorajob/support"),
        ({"phase": "Waiting", "reason": "WaitingForInputs"}, "WaitingForInputs", "lorajob/base"),
        ({"phase": "Starting", "reason": "Unschedulable",
          "failure": {"reason": "Unschedulable", "message": "0/1 nodes", "hint": "Free a node."}},
         "Unschedulable", "Free a node."),
        ({"phase": "Starting", "reason": "OfLater"}, "OfLater", ""),
    ],
    ids=["works", "finished", "quota", "suspended", "inputs", "blocked", "later-version"],
)  # fmt: skip
def test_what_an_object_waits_for(status: dict[str, Any], reason: str | None, in_hint: str) -> None:
    found = blocker(lorajob(status, continueFrom={"loraJobRef": {"name": "base"}}))
    assert (found.reason if found else None) == reason
    assert in_hint in (found.hint if found else "")


def test_news_come_once() -> None:
    first = lorajob({"phase": "Starting", "dataset": {"warnings": ["3 rows are cut"]}})
    second = lorajob({**TRAINING, "dataset": {"warnings": ["3 rows are cut"]}, "findings": [SPIKES]})
    third = lorajob({**TRAINING, "dataset": {"warnings": ["3 rows are cut"]}, "findings": [{**SPIKES, "step": 12}]})
    assert [line.text for line in news(None, first)] == ["data: 3 rows are cut"]
    assert [line.text for line in news(first, second)] == [
        "warning: LossSpikes: 3 steps are far above the others; try training.learningRate: 1e-4"
    ]
    assert list(news(second, third)) == []


def test_a_failed_attempt_and_the_next_one_are_news() -> None:
    entry = {"uid": "a", "pod": "support-x", "node": "n1"}
    ended = {**entry, "endTime": "2026-12-01T00:00:00Z", "reason": "NodeLost", "seconds": 12, "exitCode": 137}
    before = lorajob({**TRAINING, "attempts": 1, "attemptHistory": [entry]})
    now = lorajob({**TRAINING, "attempts": 2, "attemptHistory": [ended, {"uid": "b", "pod": "support-y"}]})
    assert [line.text for line in news(before, now)] == [
        "attempt: pod support-x on node n1 ended after 12 s: NodeLost, exit code 137",
        "attempt: number 2 has started",
    ]
    assert list(news(now, now)) == []


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (
            {**TRAINING, "phase": "Succeeded", "adapter": {"uri": "s3://a/x"}},
            ["lorajob/support has succeeded", "  adapter: s3://a/x", "  held-out loss: 2.5 → 1.4, −44.0 % (± 1.2 %)"],
        ),
        ({"phase": "Stopped"}, ["lorajob/support was stopped", "  nothing was published"]),
        (
            {"phase": "Stopped", "stopped": {"afterStep": 7}, "adapter": {"uri": "s3://a/x"}},
            ["lorajob/support was stopped after step 7", "  adapter: s3://a/x"],
        ),
        (
            {"phase": "Failed", "failure": {"reason": "DiskFull", "message": "no room", "hint": "Raise it."}},
            ["lorajob/support failed: DiskFull: no room", "  Raise it."],
        ),
    ],
    ids=["succeeded", "stopped", "stopped-published", "failed"],
)
def test_the_result(status: dict[str, Any], lines: list[str]) -> None:
    assert [line.text for line in result(lorajob(status))] == lines


def test_the_improvement_of_a_sweep_is_that_of_its_best_trial() -> None:
    status = {"phase": "Searching", "best": {"value": "1.5", "baseValue": "2.0"}}
    assert improvement(lorajob(status, Kind.LORASWEEP)) == "2 → 1.5, −25.0 %"


def test_a_pipe_gets_a_line_for_each_change_and_none_for_a_new_estimate_of_time() -> None:
    lines: list[str] = []
    later = {**TRAINING, "progress": {**TRAINING["progress"], "eta": "2m"}}  # type: ignore[dict-item]
    states = [lorajob(TRAINING), lorajob(later), lorajob({**TRAINING, "phase": "Evaluating"})]
    show(states, Lines(lines.append))
    assert [line.split()[1] for line in lines] == ["Training", "Evaluating"]


def test_a_server_is_followed_until_it_is_ready_and_says_where_it_answers() -> None:
    lines: list[str] = []
    url = {"url": "http://support:8000/v1", "readyReplicas": 1}
    states = [lorajob({"phase": phase, **url}, Kind.ADAPTERSERVER) for phase in ("Starting", "Ready", "Updating")]
    assert show(states, Lines(lines.append)).phase == "Ready"
    assert lines[-1].endswith("adapterserver/support answers at http://support:8000/v1")


def test_a_server_that_has_not_seen_its_new_spec_is_followed_on() -> None:
    old = lorajob({"phase": "Ready", "observedGeneration": 0}, Kind.ADAPTERSERVER)
    new = lorajob({"phase": "Ready"}, Kind.ADAPTERSERVER)
    assert show([old, new], Lines(lambda _: None)) is new


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), ("1d12h", 129_600)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2 h", "h", "-1s", "2w", "1h30"])
def test_an_invalid_duration_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_duration(text)

"""GPU hours: of the attempts inside of the time asked for, each once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tunery.commands.usage import Use, gpu_seconds, sum_up, use_of
from tunery.objects import View

NOW = datetime(2026, 12, 2, 12, tzinfo=UTC)
START = datetime(2026, 12, 1, 12, tzinfo=UTC)


def job(
    name: str = "a", *attempts: dict[str, Any], kind: str = "LoRAJob", created: str = "2026-11-01", **more: Any
) -> View:
    metadata = {"name": name, "uid": name, "namespace": "team", "creationTimestamp": f"{created}T00:00:00Z"}
    metadata["labels"] = more.pop("labels", {})
    spec = {"resources": {"gpus": more.pop("gpus", 2)}}
    return View(
        {"kind": kind, "metadata": metadata, "spec": spec, "status": {"attemptHistory": list(attempts), **more}}
    )


def attempt(start: str, end: str | None, seconds: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"startTime": f"2026-12-{start}:00Z"}
    return found | ({"endTime": f"2026-12-{end}:00Z", "gpuSeconds": seconds} if end else {})


@pytest.mark.parametrize(
    ("view", "seconds"),
    [
        (job("a", attempt("02T10:00", "02T11:00", 7200)), 7200),
        (job("a", attempt("01T11:00", "01T13:00", 14_400)), 7200),  # half of it is inside
        (job("a", attempt("01T10:00", "01T11:00", 7200)), 0),
        (job("a", attempt("02T11:30", None)), 3600),  # two GPUs run for half an hour
        (job("a", attempt("02T11:30", None), gpus=None), 1800),
        (job("a", attempt("02T10:00", "02T11:00", 7200), gpuSeconds=9000), 7200),
        (job("a", attempt("02T10:00", "02T11:00", 7200), gpuSeconds=9000, created="2026-12-02"), 9000),
        (job("a", attempt("02T10:00", "02T10:00", 0)), 0),
        (job("a", kind="LoRASweep", gpuSeconds=500, created="2026-12-02"), 0),
    ],
)
def test_only_the_time_asked_for_counts(view: View, seconds: float) -> None:
    assert gpu_seconds(view, START, NOW) == pytest.approx(seconds)


def test_trials_count_once_as_part_of_their_sweep() -> None:
    trial = job("s-000", attempt("02T10:00", "02T11:00", 7200), labels={"tunery.dev/sweep": "s"})
    trials = [{"uid": "s-000", "gpuSeconds": 7200}, {"uid": "deleted", "gpuSeconds": 60}, {"uid": "never-ran"}]
    sweep = job("s", kind="LoRASweep", trials=trials, gpuSeconds=7260)
    assert list(use_of([trial, sweep], "job", START, NOW)) == [Use("lorasweep/s", 7200), Use("lorasweep/s", 60)]


def test_a_sweep_that_ended_before_does_not_count() -> None:
    trials = [{"uid": "deleted", "gpuSeconds": 60}]
    sweep = job("s", kind="LoRASweep", trials=trials, completionTime="2026-12-01T11:00:00Z")
    assert list(use_of([sweep], "job", START, NOW)) == []


@pytest.mark.parametrize(
    ("by", "group"), [("job", "lorajob/a"), ("namespace", "team"), ("cost", "x"), ("other", "(no label)")]
)
def test_groups(by: str, group: str) -> None:
    view = job("a", attempt("02T10:00", "02T11:00", 7200), labels={"cost": "x"})
    assert list(use_of([view], by, START, NOW)) == [Use(group, 7200)]


def test_the_largest_sum_is_first() -> None:
    assert list(sum_up([Use("a", 3600), Use("b", 7200), Use("a", 1800)]).items()) == [("b", (1, 2.0)), ("a", (2, 1.5))]

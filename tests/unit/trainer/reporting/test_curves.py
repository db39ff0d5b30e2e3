"""The picture of a run and its curve: what they show, and that they are kept of a run without a result."""

from __future__ import annotations

import io
import itertools
import json
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib.axes
import pytest

from tunery_api.findings import FindingStatus
from tunery_api.measured import MAX_CURVE_POINTS, CurvePoint
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import Store, StorePath
from tunery_trainer.reporting.curve_file import CurveSummary, curve_lines
from tunery_trainer.reporting.curves import draw_curves
from tunery_trainer.reporting.kept_curves import KeptCurves, remove_curves
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.tasks.curves import named_curves


def test_a_mark_stands_where_something_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[tuple[str, float]] = []
    plain = matplotlib.axes.Axes.annotate

    def annotate(axes: matplotlib.axes.Axes, text: str, at: tuple[float, float], **more: object) -> object:
        marks.append((text, at[0]))
        return plain(axes, text, at, **more)

    monkeypatch.setattr(matplotlib.axes.Axes, "annotate", annotate)
    found = [
        FindingStatus(type=kind, severity="Warning", step=step)
        for kind, step in (("TooFewSteps", 0), ("WorseThanBase", 5), ("LossRising", 10), ("LossSpikes", 10))
    ]
    history = [{"step": step, "loss": 1.0, "learning_rate": 1e-4} for step in range(1, 21)]
    draw_curves(history, 1.2, tmp_path / "curves.png", found)
    assert marks == [("WorseThanBase", 5), ("LossRising, LossSpikes", 10)]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


HISTORY = [
    {"step": 1, "loss": 2.2416512, "learning_rate": 1e-4, "grad_norm": 0.5, "epoch": 0.1, "unchanged": True},
    {"step": 2, "loss": float("nan"), "tokens_per_second": 812.3, "time": "2026-11-28T18:00:00Z"},
    {"step": 2, "eval_loss": 2.5, "eval_reward_accuracy": 0.75},
    {"step": 2, "epoch": 0.2, "train_runtime": 12.0},
]


def test_a_curve_has_one_line_for_each_step_in_plain_json() -> None:
    assert [json.loads(line) for line in curve_lines(HISTORY, 3.0)] == [
        {"step": 0, "evalLoss": 3.0},
        {"step": 1, "epoch": 0.1, "loss": 2.24165, "learningRate": 1e-4, "gradNorm": 0.5},
        {
            "step": 2,
            "loss": None,
            "tokensPerSecond": 812.3,
            "time": "2026-11-28T18:00:00Z",
            "evalLoss": 2.5,
            "evalRewardAccuracy": 0.75,
        },
    ]
    assert "NaN" not in "".join(curve_lines(HISTORY, 3.0))


def summary_of(steps: int, every: int) -> list[CurvePoint]:
    """Return the points of a run that logs every step, and evaluates before training and after so many steps."""
    summary = CurveSummary()
    summary.add({"step": 0, "eval_loss": 3.0})
    for step in range(1, steps + 1):
        summary.add({"step": step, "loss": 2 + 1 / step})
        if step % every == 0:
            summary.add({"step": step, "eval_loss": 2.5})
    return summary.points()


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (23, 5), (40, 40), (1000, 7), (100_000, 1)])
def test_a_summary_keeps_the_first_and_the_latest_losses_and_equal_distances(steps: int, every: int) -> None:
    points = summary_of(steps, every)
    assert len(points) <= MAX_CURVE_POINTS
    assert [point.step for point in points] == sorted({point.step for point in points})
    losses = [point.step for point in points if point.loss]
    evaluated = [point.step for point in points if point.eval_loss]
    assert (losses[0], losses[-1]) == (1, steps)
    assert (evaluated[0], evaluated[-1]) == (0, steps - steps % every)
    for found in (losses, evaluated):
        assert len({after - before for before, after in itertools.pairwise(found[:-1])}) <= 1
    if steps > 100:
        assert len(losses) >= 20


def test_a_short_run_keeps_every_loss_and_leaves_out_what_is_no_number() -> None:
    summary = CurveSummary()
    for entry in ({"step": 1, "loss": 2.5}, {"step": 2, "loss": math.nan}, {"step": 2, "eval_loss": 2.25}):
        summary.add(entry)
    assert summary.points() == [CurvePoint(step=1, loss="2.5"), CurvePoint(step=2, eval_loss="2.25")]


def test_a_resumed_run_reports_the_curve_of_its_checkpoint_and_not_what_came_after_it(tmp_path: Path) -> None:
    reported: list[list[CurvePoint]] = []
    curves = KeptCurves(None, tmp_path, on_points=reported.append)
    curves.begin(3.0)
    history = [{"step": step, "loss": 2.0} for step in (1, 2, 3)]
    curves.log(history)
    curves.log(history[:2])
    curves.log([*history[:2], {"step": 3, "loss": 1.5}])
    assert [point.step for point in reported[1]] == [0, 1, 2]
    assert reported[2][-1] == CurvePoint(step=3, loss="1.5")


class Slow:
    """A store that takes nothing until it is opened, and refuses then if it is told to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.opened, self.begun, self.deleted = threading.Event(), threading.Event(), threading.Event()
        self.refuses = False
        self.puts = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def put_bytes(self, key: str, data: bytes) -> object:
        self.begun.set()
        self.puts += 1
        assert self.opened.wait(30)
        if self.refuses:
            raise TuneryError(FailureReason.STORAGE_ACCESS_DENIED, "no right to put")
        return self.store.put_bytes(key, data)

    def delete(self, key: str) -> None:
        self.store.delete(key)
        self.deleted.set()


def test_a_store_that_hangs_or_refuses_holds_no_step_up_and_is_no_failure(
    local_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow(local_store)
    curves = KeptCurves(StorePath(slow, "reports"), tmp_path / "result")  # type: ignore[arg-type]
    curves.begin(3.0)
    curves.log(HISTORY)
    began = time.monotonic()
    for _ in range(100):
        curves.store()
    assert time.monotonic() - began < 1
    assert curves.store_all([], 0.2) is None, "it is given up"
    assert time.monotonic() - began < 5
    slow.refuses = True
    slow.opened.set()
    assert curves.store_all([], 60) is None
    assert "the curves are not stored: StorageAccessDenied: no right to put" in caplog.messages
    slow.refuses = False
    uri = curves.store_all([], 60)
    assert uri == local_store.uri("reports/curve.jsonl")
    assert len(local_store.read_bytes("reports/curve.jsonl").splitlines()) == 3


def test_what_is_stored_late_leaves_nothing_behind_a_run_that_is_published(local_store: Store, tmp_path: Path) -> None:
    """The curve of the last checkpoint is under way as the run's own folder is cleared."""
    slow = Slow(local_store)
    place = StorePath(slow, "reports")  # type: ignore[arg-type]
    work, reporter = SimpleNamespace(reports=place, result=tmp_path / "result"), ProgressReporter({}, io.StringIO())
    heard: list[str] = []
    told: list[str | None] = []
    tell = reporter.curve
    reporter.curve = lambda uri: (heard.append(uri), tell(uri))[1]  # type: ignore[method-assign]
    reporter._sender = SimpleNamespace(send=lambda report: told.append(report.status.curve))
    with named_curves(work, reporter) as curves:  # type: ignore[arg-type]
        curves.log(HISTORY)
        curves.store()
        assert slow.begun.wait(30)
        curves.store()
        threading.Timer(0.3, slow.opened.set).start()
    reporter.close()
    uri = local_store.uri("reports/curve.jsonl")
    assert (heard, told[-1]) == ([uri, uri], None), "who watches is told, and in the end nothing of it"
    remove_curves(place, tracked=False)
    curves.store()
    assert curves.store_all([], 0.3) is None, "nothing is taken any more"
    assert (local_store.list("reports"), slow.puts) == ([], 2)


def test_a_put_that_hangs_is_given_up_and_takes_back_what_it_stored_late(
    local_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow(local_store)
    curves = KeptCurves(StorePath(slow, "reports"), tmp_path / "result")  # type: ignore[arg-type]
    curves.log(HISTORY)
    curves.store()
    assert slow.begun.wait(30)
    began = time.monotonic()
    assert not curves.close(0.2)
    assert time.monotonic() - began < 5
    said = f"{local_store.uri('reports/curve.jsonl')} is still being stored after 0.2 s; it may be left there"
    assert said in caplog.text
    slow.opened.set()
    assert slow.deleted.wait(30)
    assert local_store.list("reports") == []


def test_all_of_a_run_without_a_result_is_kept_and_cleared(store: Store, tmp_path: Path) -> None:
    place, runs = StorePath(store, "reports"), tmp_path / "result" / "runs"
    runs.mkdir(parents=True)
    (runs / "events.out.tfevents.1").write_bytes(b"e")
    curves = KeptCurves(place, tmp_path / "result")
    assert curves.store_all([], 60) is None, "nothing was logged"
    curves.log(HISTORY)
    assert curves.store_all([], 60) == store.uri("reports/curve.jsonl")
    store.put_bytes("reports/data-report.md", b"another's")
    kept = ["curve.jsonl", "data-report.md", "runs/events.out.tfevents.1", "training_curves.png"]
    assert [place.relative(entry) for entry in store.list("reports")] == kept
    remove_curves(place, tracked=True)
    assert [place.relative(entry) for entry in store.list("reports")] == ["data-report.md"]
    assert KeptCurves(None, tmp_path).store_all([], 60) is None

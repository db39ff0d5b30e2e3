"""What a run says of itself, by the real command line: each finding provoked, and that following it helps."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTTrainer

from tunery_api.exitcodes import ExitCode
from tunery_api.findings import CheckStatus, FindingStatus
from tunery_api.runspec import RunResult
from tunery_trainer.diagnosis.evaluations import Evaluations
from tunery_trainer.diagnosis.judge import Judge
from tunery_trainer.diagnosis.paired import RowLosses, paired
from tunery_trainer.local import load_run_spec
from tunery_trainer.model.collator import Collator
from tunery_trainer.process.memory import MemoryUse
from tunery_trainer.process.termination import TERMINATION_PATH_ENV
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.training import diagnosing
from tunery_trainer.training.trl_trainer import AdapterTrainer

from kit.learned import write_learned_model
from kit.story import WORDS, make_rows, manifest, run_here, write_manifest, write_rows

Rows = list[dict[str, str]]
EXACT = {"packing": False, "precision": "Float32", "optimizer": "AdamW"}


@pytest.fixture(scope="module")
def learned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that knows the rows of make_rows: a run can make it worse."""
    return write_learned_model(tiny_model, tmp_path_factory.mktemp("learned"))


@dataclass(frozen=True)
class Done:
    """A run that has ended."""

    code: int
    out: str
    error: str
    folder: Path
    words: RunResult
    """Its last ones, as the operator reads them."""
    findings: dict[str, FindingStatus]
    """As they were reported last."""
    checks: dict[str, CheckStatus]
    rows: RowLosses | None
    """What was measured last, row by row; None: it ended before the first evaluation."""

    @property
    def card(self) -> str:
        return (self.folder / "out" / "README.md").read_text()


Train = Callable[..., Done]


@pytest.fixture
def train(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains on rows with changes to the manifest; `at` names a folder, the same one for a run that is resumed."""
    seen: list[RowLosses] = []
    told: list[list[FindingStatus]] = []
    ticked: list[list[CheckStatus]] = []
    plain, tell, tick = Evaluations.add, ProgressReporter.findings, ProgressReporter.checks

    def add(self: Evaluations, step: int, rows: RowLosses) -> None:
        seen.append(rows)
        plain(self, step, rows)

    monkeypatch.setattr(Evaluations, "add", add)
    monkeypatch.setattr(ProgressReporter, "findings", lambda self, all: (told.append(all), tell(self, all))[1])
    monkeypatch.setattr(ProgressReporter, "checks", lambda self, all: (ticked.append(all), tick(self, all))[1])

    def run(rows: Rows, at: str = "run", **changes: Any) -> Done:
        folder = tmp_path / at
        if not folder.exists():
            folder.mkdir()
            (folder / "model").symlink_to(learned)
            write_rows(folder / "data.jsonl", rows)
        spec = {
            "dataset": {"uri": "file://data.jsonl", "evaluation": {"fraction": "0.2"}},
            **changes,
            "evaluation": {"everySteps": 5, "minImprovement": "-1000", **changes.get("evaluation", {})},
            "training": {**EXACT, "maxSteps": 24, **changes.get("training", {})},
        }
        job = load_run_spec(write_manifest(folder, manifest(folder, **spec)), folder / "work", None)
        path, last = folder / "run.json", folder / "words.json"
        path.write_text(json.dumps(job.to_json_dict()))
        done = run_here("train", path, **{TERMINATION_PATH_ENV: str(last)})
        return Done(
            code=done.returncode,
            out=done.stdout,
            error=done.stderr,
            folder=folder,
            words=RunResult.model_validate_json(last.read_bytes()),
            findings={each.type: each for each in told[-1]},
            checks={each.name: each for each in ticked[-1]},
            rows=seen[-1] if seen else None,
        )

    return run


def swapped(count: int = 160) -> Rows:
    """Return a task that the base does not know."""
    draw = random.Random(9)
    chosen = ((draw.choice(WORDS), draw.randint(0, 99)) for _ in range(count))
    return [{"prompt": f"twice {word} {number}", "completion": f"{number} {word}"} for word, number in chosen]


def unlike(count: int) -> Rows:
    """Return questions whose answers follow from nothing: they can only be learned by heart."""
    draw = random.Random(9)
    return [
        {"prompt": f"what of {number}", "completion": " ".join(draw.choice(WORDS) for _ in range(3))}
        for number in range(count)
    ]


def is_better(new: Done, old: Done) -> bool:
    assert new.rows is not None
    assert old.rows is not None
    found = paired(new.rows, old.rows)
    assert found is not None
    return found.z < -2


def said(finding: FindingStatus) -> tuple[str, int, str | None, str | None]:
    return finding.severity, finding.step, finding.field, finding.suggest


def test_a_rate_that_is_too_high_is_told_at_the_first_evaluation_and_a_fifth_of_it_is_better(train: Train) -> None:
    done = train(make_rows(160), training={"learningRate": "0.1"})
    assert done.code == ExitCode.OK, done.error
    assert said(done.findings["WorseThanBase"]) == ("Problem", 5, "training.learningRate", "0.02")
    assert said(done.findings["LossRising"]) == ("Problem", 10, "training.learningRate", "0.033")
    assert "Finding    Problem WorseThanBase at step 5: The held-out loss is" in done.out
    assert done.checks["LearningRate"].result == "Warning"
    assert [name for name in ("## What to know", "## Checklist") if name not in done.card] == []
    assert "| WorseThanBase | Problem | 5 |" in done.card
    lower = train(make_rows(160), "lower", training={"learningRate": done.findings["WorseThanBase"].suggest})
    assert is_better(lower, done)


def test_a_problem_ends_a_run_that_is_to_stop(train: Train) -> None:
    done = train(make_rows(160), diagnosis={"action": "Stop"}, training={"learningRate": "0.1"})
    assert done.words.failure is not None
    assert (done.words.failure.reason, done.code) == ("NotImproved", ExitCode.USER_ERROR)
    assert "stopped at step 10 by diagnosis.action, WorseThanBase: The held-out loss is" in done.words.failure.message
    assert "training.learningRate: 0.02 (now 0.1)" in (done.words.failure.hint or "")
    assert [each.type for each in done.words.findings or ()] == list(done.findings)
    assert not (done.folder / "out" / "manifest.json").exists()


@pytest.mark.parametrize("action", ["Warn", "Stop"])
def test_a_gradient_that_is_no_number_is_told_before_the_run_fails(train: Train, action: str) -> None:
    done = train(make_rows(160), diagnosis={"action": action}, training={"learningRate": "1e30"})
    assert done.words.failure is not None
    assert done.words.failure.reason == "LossDiverged"
    assert done.findings["GradientNotFinite"].field == "training.learningRate"
    assert ("by diagnosis.action" in done.words.failure.message) == (action == "Stop")


def test_a_rate_that_is_too_low_is_told_after_half_of_the_run_and_ten_times_it_is_better(train: Train) -> None:
    done = train(swapped(), training={"learningRate": "1e-6"})
    assert said(done.findings["LearningRateTooLow"]) == ("Warning", 15, "training.learningRate", "1e-5")
    assert not {"NotLearning", "StillLearning"} & set(done.findings)
    higher = train(swapped(), "higher", training={"learningRate": "1e-5"})
    assert is_better(higher, done)


def test_a_run_that_ended_too_early_is_told_and_three_times_the_rate_is_better(train: Train) -> None:
    done = train(swapped(), evaluation={"everySteps": 4}, training={"learningRate": "2e-4"})
    assert said(done.findings["StillLearning"]) == ("Info", 24, "training.learningRate", "6e-4")
    assert "training.maxSteps: 48 (now 24)" in (done.findings["StillLearning"].message or "")
    assert done.checks["LearningRate"].result == done.checks["BaseFrozen"].result == "Passed"
    assert done.checks["Generation"].message == "100 % of the answers end with a token that ends generation"
    assert "−" in (done.checks["Baseline"].message or "")
    longer = train(swapped(), "longer", evaluation={"everySteps": 4}, training={"learningRate": "6e-4"})
    assert is_better(longer, done)


def test_what_is_learned_by_heart_is_told_and_a_shorter_run_is_better(train: Train) -> None:
    blocks: dict[str, Any] = {
        "dataset": {"uri": "file://data.jsonl", "evaluation": {"fraction": "0.5"}},
        "lora": {"rank": 64, "dropout": "0"},
        "evaluation": {"everySteps": 12},
    }
    done = train(unlike(48), **blocks, training={"maxSteps": 120, "batchSize": 8, "learningRate": "1e-2"})
    over = done.findings["Overfitting"]
    assert (over.severity, over.field) == ("Warning", "training.maxSteps")
    assert int(over.suggest or 0) < 120
    assert "evaluation.earlyStoppingPatience: 2, or lora.dropout: 0.1 (now 0)" in (over.message or "")
    assert done.checks["Dropout"].result == "Warning"
    shorter = {"maxSteps": int(over.suggest or 0), "batchSize": 8, "learningRate": "1e-2"}
    assert is_better(train(unlike(48), "shorter", **blocks, training=shorter), done)


def test_a_run_that_cannot_learn_is_told_so(train: Train) -> None:
    """So small a rate changes no digit of the loss; the run ends NotImproved, as the adapter does nothing."""
    done = train(swapped(), training={"learningRate": "1e-12"})
    assert said(done.findings["NotLearning"]) == ("Warning", 15, "training.learningRate", "1e-11")


def test_no_gradient_is_a_problem(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AdapterTrainer.compute_loss
    monkeypatch.setattr(AdapterTrainer, "compute_loss", lambda *args, **more: 0 * plain(*args, **more))
    done = train(swapped(), diagnosis={"action": "Stop"})
    assert said(done.findings["NoGradient"]) == ("Problem", 3, "lora.targetModules", None)
    assert done.words.failure is not None
    assert done.words.failure.reason == "NotImproved"


def test_rows_with_random_answers_are_spikes_and_their_steps_are_named(train: Train) -> None:
    rows, draw = make_rows(200), random.Random(1)
    for place in range(10, 200, 50):
        rows[place] = rows[place] | {"completion": "".join(chr(draw.randint(33, 122)) for _ in range(60))}
    done = train(rows, evaluation={"everySteps": 20}, training={"maxSteps": 60, "learningRate": "1e-4"})
    spikes = done.findings["LossSpikes"]
    assert (spikes.field, spikes.suggest) == ("training.learningRate", "5e-5")
    assert "look at the rows around there" in (spikes.message or "")


def test_too_short_too_few_too_tight(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing, "container_memory", lambda: MemoryUse(95, 100))
    done = train(
        make_rows(120),
        dataset={"uri": "file://data.jsonl", "evaluation": {"fraction": "0.01"}},
        training={"maxSteps": 12, "gradientAccumulation": 2},
    )
    assert said(done.findings["TooFewSteps"]) == ("Warning", 0, "training.maxSteps", "20")
    assert said(done.findings["EvaluationTooSmall"]) == ("Info", 0, "dataset.evaluation.fraction", "0.02")
    assert done.findings["MemoryTight"].field == "resources.memory"
    results = {name: done.checks[name].result for name in ("GradientAccumulation", "HeldOut", "BatchFits")}
    assert set(results.values()) == {"Warning"}


def test_a_batch_that_does_not_fit_is_told_with_the_one_that_does(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SFTTrainer.training_step

    def small(self: SFTTrainer, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return plain(self, model, inputs, *args, **more)

    monkeypatch.setattr(SFTTrainer, "training_step", small)
    done = train(swapped(), training={"batchSize": 4, "learningRate": "1e-3"})
    assert done.code == ExitCode.OK, done.error
    assert said(done.findings["MicroBatchHalved"]) == ("Info", 0, "training.batchSize", "2")
    assert "Memory ran out with 4 × 1 rows at step 1" in (done.findings["MicroBatchHalved"].message or "")


def test_a_diagnosis_that_fails_does_not_end_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Judge, "_judge_learning", lambda self, step: 1 / 0)
    done = train(swapped(), training={"learningRate": "1e-3"})
    assert done.code == ExitCode.OK, done.error
    assert "the run is not diagnosed any more: ZeroDivisionError" in caplog.text
    assert (done.words.adapter is not None, done.words.findings) == (True, None)


def test_padding_and_waiting(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row | ({"completion": "red " * 20} if place % 8 == 0 else {}) for place, row in enumerate(make_rows(160))]
    plain = Collator.__call__

    def slow(self: Collator, chosen: Any) -> dict[str, Any]:
        time.sleep(0.05)
        return plain(self, chosen)

    monkeypatch.setattr(Collator, "__call__", slow)
    done = train(rows, evaluation={"everySteps": 60}, training={"maxSteps": 52, "batchSize": 8, "learningRate": "1e-4"})
    assert said(done.findings["MuchPadding"])[2:] == ("training.packing", "true")
    assert said(done.findings["WaitingForData"])[2:] == ("resources.cpu", None)
    assert done.checks["Padding"].result == "Warning"


def test_a_resumed_run_says_what_a_straight_one_says(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: dict[str, Any] = {"training": {"learningRate": "1e-6"}, "checkpoint": {"everySteps": 6}}
    straight = train(swapped(), **blocks)
    plain = AdapterTrainer.training_step

    def fails_once(self: AdapterTrainer, *args: Any, **more: Any) -> Any:
        if self.state.global_step == 20:
            raise ValueError("the node is gone")
        return plain(self, *args, **more)

    with monkeypatch.context() as broken:
        broken.setattr(AdapterTrainer, "training_step", fails_once)
        assert train(swapped(), "again", **blocks).code != ExitCode.OK
    resumed = train(swapped(), "again", **blocks)
    assert "Resuming from the checkpoint of step 18" in resumed.out
    assert resumed.findings == straight.findings
    assert resumed.checks["Baseline"] == straight.checks["Baseline"]
    assert [each.type for each in resumed.words.findings or ()] == list(straight.findings)
    log = json.loads((straight.folder / "out" / "manifest.json").read_text())["lineage"]
    assert [each["type"] for each in log["findings"]] == list(straight.findings)

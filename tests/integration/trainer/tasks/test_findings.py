"""What a run says of its learning, by the real command line: each finding provoked, and that following it helps."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tunery_api.reasons import ExitCode
from tunery_trainer.diagnosis.judge import Judge
from tunery_trainer.training.trl_trainer import AdapterTrainer

from kit.explained import Train, is_better, said, swapped, tossed, unlike
from kit.story import make_rows


@pytest.mark.slow
def test_a_rate_that_is_too_high_is_told_at_the_first_evaluation_and_the_highest_usual_one_is_better(
    train: Train,
) -> None:
    done = train(make_rows(160), training={"learningRate": 0.1})
    assert done.code == ExitCode.OK, done.error
    assert said(done.findings["WorseThanBase"]) == ("Problem", 5, "training.learningRate", "5e-4")
    assert said(done.findings["LossRising"]) == ("Problem", 10, "training.learningRate", "5e-4")
    assert "Finding    Problem WorseThanBase at step 5: The held-out loss is" in done.out
    assert done.checks["LearningRate"].result == "Warning"
    assert [name for name in ("## What to know", "## Checklist") if name not in done.card] == []
    assert "| WorseThanBase | Problem | 5 |" in done.card
    assert done.checks["Baseline"].result == "Warning"
    assert "| Baseline | Warning | " in done.card
    lower = train(
        make_rows(160), "lower", training={"learningRate": float(done.findings["WorseThanBase"].suggest or 0)}
    )
    assert is_better(lower, done)


@pytest.mark.slow
def test_a_few_held_out_rows_tell_a_rate_that_ruins_the_model_as_early(train: Train) -> None:
    """Below 8 rows nothing is known of chance, and the training loss alone takes until step 24 to be sure."""
    held_out = {"uri": "file://data.jsonl", "evaluation": {"fraction": 0.05}}
    done = train(make_rows(80), dataset=held_out, training={"learningRate": 0.5, "maxGradNorm": 0})
    assert done.rows is not None
    assert len(done.rows.sums) < 8
    assert said(done.findings["WorseThanBase"]) == ("Problem", 5, "training.learningRate", "5e-4")
    assert " times the base model's " in (done.findings["WorseThanBase"].message or "")


@pytest.mark.slow
def test_a_problem_ends_a_run_that_is_to_stop(train: Train) -> None:
    done = train(make_rows(160), diagnosis={"action": "Stop"}, training={"learningRate": 0.1})
    assert done.words.failure is not None
    assert (done.words.failure.reason, done.code) == ("NotImproved", ExitCode.USER_ERROR)
    assert "stopped at step 10 by diagnosis.action, WorseThanBase: The held-out loss is" in done.words.failure.message
    changes, train_on = done.words.failure.remedies
    assert "training.learningRate: 5e-4 (now 0.1)" in changes.text
    assert "training.learningRate" in changes.fields
    assert train_on.fields == ["diagnosis.action"]
    assert [each.type for each in done.words.findings or ()] == list(done.findings)
    assert not (done.folder / "out" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("action", ["Warn", "Stop"])
def test_a_gradient_that_is_no_number_is_told_before_the_run_fails(train: Train, action: str) -> None:
    done = train(make_rows(160), diagnosis={"action": action}, training={"learningRate": 1e30})
    assert done.words.failure is not None
    assert done.words.failure.reason == "LossDiverged"
    assert done.findings["GradientNotFinite"].field == "training.learningRate"
    assert ("by diagnosis.action" in done.words.failure.message) == (action == "Stop")


@pytest.mark.slow
def test_a_rate_that_is_too_low_is_told_after_half_of_the_run_and_ten_times_it_is_better(train: Train) -> None:
    done = train(swapped(), training={"learningRate": 1e-6})
    assert said(done.findings["LearningRateTooLow"]) == ("Warning", 15, "training.learningRate", "1e-5")
    assert not {"NotLearning", "StillLearning"} & set(done.findings)
    higher = train(swapped(), "higher", training={"learningRate": 1e-5})
    assert is_better(higher, done)


@pytest.mark.slow
def test_a_run_that_ended_too_early_is_told_and_three_times_the_rate_is_better(train: Train) -> None:
    done = train(swapped(), evaluation={"everySteps": 4}, training={"learningRate": 2e-4})
    assert said(done.findings["StillLearning"]) == ("Info", 24, "training.learningRate", "6e-4")
    assert "training.maxSteps: 48 (now 24)" in (done.findings["StillLearning"].message or "")
    assert done.checks["LearningRate"].result == done.checks["BaseFrozen"].result == "Passed"
    assert done.checks["Generation"].message == "100 % of the answers end with a token that ends generation"
    assert "−" in (done.checks["Baseline"].message or "")
    longer = train(swapped(), "longer", evaluation={"everySteps": 4}, training={"learningRate": 6e-4})
    assert is_better(longer, done)


@pytest.mark.slow
def test_what_is_learned_by_heart_is_told_and_a_shorter_run_is_better(train: Train) -> None:
    """At this rate it is so in Float32 and BFloat16, and with other seeds: CPUs differ in what they compute in."""
    blocks: dict[str, Any] = {
        "dataset": {"uri": "file://data.jsonl", "evaluation": {"fraction": 0.5}},
        "lora": {"rank": 64, "dropout": 0},
        "evaluation": {"everySteps": 24},
    }
    done = train(unlike(48), **blocks, training={"maxSteps": 240, "batchSize": 8, "learningRate": 3e-3})
    over = done.findings["Overfitting"]
    assert (over.severity, over.field) == ("Warning", "training.maxSteps")
    assert int(over.suggest or 0) < 240
    assert "evaluation.earlyStoppingPatience: 2, or lora.dropout: 0.1 (now 0)" in (over.message or "")
    assert done.checks["Dropout"].result == "Warning"
    shorter = {"maxSteps": int(over.suggest or 0), "batchSize": 8, "learningRate": 3e-3}
    assert is_better(train(unlike(48), "shorter", **blocks, training=shorter), done)


@pytest.mark.slow
def test_a_run_that_has_levelled_off_without_learning_by_heart_is_told(train: Train) -> None:
    blocks = {
        "dataset": {"uri": "file://data.jsonl", "evaluation": {"fraction": 0.05}},
        "evaluation": {"everySteps": 30},
        "lora": {"rank": 8},
    }
    done = train(tossed(2500), **blocks, training={"maxSteps": 300, "batchSize": 8, "learningRate": 5e-4})
    assert said(done.findings["Plateau"]) == ("Info", 300, "lora.rank", "16")
    assert not {"StillLearning", "Overfitting", "NotLearning"} & set(done.findings)


def test_a_run_that_cannot_learn_is_told_so(train: Train) -> None:
    """So small a rate changes no digit of the loss; the run ends NotImproved, as the adapter does nothing."""
    done = train(swapped(), training={"learningRate": 1e-12})
    assert said(done.findings["NotLearning"]) == ("Warning", 15, "training.learningRate", "1e-11")


@pytest.fixture
def deaf(learned: Path, tmp_path: Path) -> Path:
    """The same base with attention that adds nothing to what goes on: its o_proj is zero."""
    folder = shutil.copytree(learned, tmp_path / "deaf")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: 0 * each if "o_proj" in name else each for name, each in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


@pytest.mark.slow
def test_an_adapter_where_nothing_acts_has_no_gradient(train: Train, deaf: Path) -> None:
    asked = {"lora": {"targetModules": ["q_proj", "k_proj"]}, "diagnosis": {"action": "Stop"}}
    done = train(swapped(), model=deaf, **asked)
    assert said(done.findings["NoGradient"]) == ("Problem", 3, "lora.targetModules", None)
    assert done.words.failure is not None
    assert done.words.failure.reason == "NotImproved"


@pytest.mark.slow
def test_a_gradient_that_vanishes_after_steps_that_are_too_large_is_the_rates(train: Train) -> None:
    asked = {"training": {"learningRate": 1e6, "maxSteps": 12}, "evaluation": {"minImprovement": 0.01}}
    done = train(make_rows(60), **asked)
    found = done.findings["NoGradient"]
    assert (found.severity, found.field, found.suggest) == ("Problem", "training.learningRate", "5e-4")
    assert "and has been zero since" in (found.message or "")
    assert done.words.failure is not None
    assert done.words.failure.reason == "NotImproved"
    (remedy,) = done.words.failure.remedies
    assert (remedy.action, remedy.fields) == ("Recreate", ["training.learningRate"])
    assert remedy.text.startswith("Try training.learningRate: 5e-4")


@pytest.mark.slow
def test_steps_that_are_lost_in_rounding_are_told_after_three_of_them(train: Train) -> None:
    done = train(swapped(), diagnosis={"action": "Stop"}, training={"learningRate": 1e-60})
    assert said(done.findings["NoGradient"]) == ("Problem", 3, "training.learningRate", "1e-4")
    assert done.words.failure is not None
    assert "stopped at step 3" in done.words.failure.message


@pytest.mark.slow
def test_rows_with_random_answers_are_spikes_and_their_steps_are_named(train: Train) -> None:
    rows, draw = make_rows(200), random.Random(1)
    for place in range(10, 200, 50):
        rows[place] = rows[place] | {"completion": "".join(chr(draw.randint(33, 122)) for _ in range(60))}
    done = train(rows, evaluation={"everySteps": 20}, training={"maxSteps": 60, "learningRate": 1e-4})
    spikes = done.findings["LossSpikes"]
    assert (spikes.field, spikes.suggest) == ("training.learningRate", "5e-5")
    assert "look at the rows around there" in (spikes.message or "")


@pytest.mark.slow
def test_a_diagnosis_that_fails_does_not_end_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Judge, "_judge_learning", lambda self, step: 1 / 0)
    done = train(swapped(), training={"learningRate": 1e-3})
    assert done.code == ExitCode.OK, done.error
    assert "the run is not diagnosed any more: ZeroDivisionError" in caplog.text
    assert (done.words.adapter is not None, done.words.findings) == (True, None)


@pytest.mark.slow
def test_a_resumed_run_says_what_a_straight_one_says(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: dict[str, Any] = {"training": {"learningRate": 1e-6}, "checkpoint": {"everySteps": 6}}
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

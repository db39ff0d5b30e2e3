"""What is told of the data, and a base model's plain completions, by the real command line."""

from __future__ import annotations

import json
from typing import Any

from tunery_api.reasons import ExitCode

from kit.story import Case, run_here

SHORT = {"maxSteps": 4, "learningRate": 1e-2, "batchSize": 4, "gradientAccumulation": 1, "maxLength": 24}


def test_plain_completions_are_trained_and_what_is_cut_is_told(case: Case) -> None:
    rows = {"format": "PromptCompletion", "template": "Plain"}
    path = case(dataset=rows, training=SHORT, evaluation={"minImprovement": -1})
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    manifest: dict[str, Any] = json.loads((path.parent / "out" / "manifest.json").read_text())
    found = manifest["lineage"]["found"]
    assert (found["template"], found["assistantTurns"], found["trainedTurns"]) == ("none", 120, 120)
    assert found["lostTokens"] > 0
    (warning,) = found["warnings"]
    assert f"Preflight  warning: {warning}" in done.stdout
    assert "Preflight  data: 120 of 120 answers count in the loss" in done.stdout
    card = (path.parent / "out" / "README.md").read_text()
    assert "| Answers that count in the loss | 120 of 120 |" in card
    assert f"| Note | {warning} |" in card
    assert manifest["lineage"]["hyperparameters"]["dataset.template"] == "Plain"
    # A chat template in the folder would be used by whoever serves it.
    assert "chat_template.jinja" not in manifest["files"]


def test_plain_on_conversations_is_refused_before_training(case: Case) -> None:
    path = case(dataset={"template": "Plain"})
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (path.parent / "data.jsonl").write_text(json.dumps(row) + "\n")
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.USER_ERROR
    assert "InvalidSpec: spec.dataset.template: Plain is for prompts with completions" in done.stderr

"""modulesToSave in bfloat16: modules in float32 on a base in bfloat16, in every path that evaluates."""

from __future__ import annotations

from typing import Any

import pytest

from tunery_api.reasons import ExitCode

from kit.story import Case, manifest, run_here, write_manifest

SAVED: dict[str, Any] = {"rank": 4, "modulesToSave": ["lm_head"]}
HALF = {"precision": "BFloat16"}


@pytest.mark.slow
def test_an_adapter_with_saved_modules_is_trained_on(case: Case) -> None:
    path = case(lora=SAVED, training=HALF)
    folder = path.parent
    done = run_here("run", path, "--work-dir", folder / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    changes = {"continueFrom": {"uri": "file://out"}, "output": {"uri": "file://out2"}, "lora": None, "training": HALF}
    again = run_here("run", write_manifest(folder, manifest(folder, **changes)), "--work-dir", folder / "work2")
    assert again.returncode == ExitCode.OK, again.stderr


@pytest.mark.slow
def test_a_run_that_finished_and_did_not_publish_can_still_be_judged(case: Case) -> None:
    """Its second attempt loads what the first trained, and has only the evaluation left."""
    path = case(lora=SAVED, training=HALF, evaluation={"minImprovement": 0.99})
    for _ in range(2):
        done = run_here("run", path, "--work-dir", path.parent / "work")
        assert done.returncode == ExitCode.USER_ERROR, done.stderr
        assert "NotImproved: " in done.stderr
    assert "Resuming from the checkpoint of step 20" in done.stdout

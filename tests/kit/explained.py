"""Runs by the real command line, with what they said of themselves: on a base that has learned something."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tunery_api.findings import CheckStatus, FindingStatus
from tunery_api.runspec import RunResult
from tunery_common.termination import TERMINATION_PATH_ENV
from tunery_trainer.diagnosis.evaluations import Evaluations
from tunery_trainer.diagnosis.paired import RowLosses, paired
from tunery_trainer.local import load_run_spec
from tunery_trainer.reporting.progress import ProgressReporter

from kit.story import WORDS, manifest, run_here, write_manifest, write_rows

Rows = list[dict[str, str]]
EXACT: Final = {"packing": False, "precision": "Float32", "optimizer": "AdamW"}


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
"""Trains on rows with changes to the manifest; `at` names a folder, the same one for a run that is resumed, `model`
another base."""


def explained_runs(folder: Path, learned: Path, patch: pytest.MonkeyPatch) -> Train:
    """Return what trains below `folder`, on `learned` where no other base is named."""
    seen: list[RowLosses] = []
    told: list[list[FindingStatus]] = []
    ticked: list[list[CheckStatus]] = []
    plain, tell, tick = Evaluations.add, ProgressReporter.findings, ProgressReporter.checks

    def add(self: Evaluations, step: int, rows: RowLosses) -> None:
        seen.append(rows)
        plain(self, step, rows)

    patch.setattr(Evaluations, "add", add)
    patch.setattr(ProgressReporter, "findings", lambda self, all: (told.append(all), tell(self, all))[1])
    patch.setattr(ProgressReporter, "checks", lambda self, all: (ticked.append(all), tick(self, all))[1])

    def run(rows: Rows, at: str = "run", model: Path = learned, **changes: Any) -> Done:
        place = folder / at
        if not place.exists():
            place.mkdir()
            (place / "model").symlink_to(model)
            write_rows(place / "data.jsonl", rows)
        spec = {
            "dataset": {"uri": "file://data.jsonl", "evaluation": {"fraction": 0.2}},
            **changes,
            "evaluation": {"everySteps": 5, "minImprovement": -1000, **changes.get("evaluation", {})},
            "training": {**EXACT, "maxSteps": 24, **changes.get("training", {})},
        }
        job = load_run_spec(write_manifest(place, manifest(place, **spec)), place / "work", None)
        path, last = place / "run.json", place / "words.json"
        path.write_text(json.dumps(job.to_json_dict()))
        done = run_here("train", path, **{TERMINATION_PATH_ENV: str(last)})
        return Done(
            code=done.returncode,
            out=done.stdout,
            error=done.stderr,
            folder=place,
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


def tossed(count: int) -> Rows:
    """Return answers by chance: that they are zeros and ones is all that can be learned, or told beforehand."""
    draw = random.Random(9)
    return [
        {"prompt": f"toss {number}", "completion": "".join(draw.choice("01") for _ in range(12))}
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

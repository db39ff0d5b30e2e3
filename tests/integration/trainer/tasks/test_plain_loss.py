"""What `make demo-sweep` measures itself: the rows that a run held out, by plain PEFT, have the loss that it told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunery_api.reasons import ExitCode

from kit import kubectl_yaml
from kit.held_out import held_out_lines, plain_peft_loss
from kit.story import Case, run_here, write_rows


@pytest.mark.slow
def test_plain_peft_gives_the_held_out_loss_of_a_fraction(case: Case, tmp_path: Path) -> None:
    """Rows that are longer than maxLength among them, which a run cuts there."""
    path = case(dataset={"evaluation": {"fraction": 0.2}})
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}."},
                {"role": "assistant", "content": f"{n}, " * (90 if n % 4 == 0 else 1) + f"{n}."},
            ]
        }
        for n in range(60)
    ]
    write_rows(tmp_path / "data.jsonl", rows)
    done = run_here("run", path, "--work-dir", tmp_path / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    told = json.loads((tmp_path / "out/manifest.json").read_text())["lineage"]["metrics"]["evalLoss"]
    spec = kubectl_yaml.load(path.read_text())["spec"]
    lines = held_out_lines(tmp_path / "data.jsonl", spec)
    assert len(lines) == 12
    held = tmp_path / "held.jsonl"
    held.write_text("".join(lines))
    places = (tmp_path / "model", tmp_path / "out", held)
    assert plain_peft_loss(*places, spec["training"]["maxLength"]) == pytest.approx(told, rel=1e-3)
    assert plain_peft_loss(*places) != pytest.approx(told, rel=3e-3), "some of those held out are longer"

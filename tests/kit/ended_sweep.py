"""A sweep at its end: rows made by hand, the trials' adapters published by the real publisher, and its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from peft import LoraConfig

from tunery_api.manifest import EvaluationRecord, Lineage, SourceRecord
from tunery_api.names import trials_uri
from tunery_api.runspec import LoRASweepRun, RunIdentity, RunSpec
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_common.storage import Store, StorePath
from tunery_common.storage.publisher import Target, publish
from tunery_trainer.diagnosis.answers import Answer, write_answers

from kit.adapters import trained_adapter

UID: Final = "5f3e9c1a-uid"
BEST: Final = 2
LOSSES: Final[Mapping[int, tuple[TrialState, str | None]]] = {
    0: (TrialState.COMPLETE, "1.61"),
    1: (TrialState.PRUNED, None),
    2: (TrialState.COMPLETE, "1.41234"),
    3: (TrialState.INFEASIBLE, None),
    4: (TrialState.COMPLETE, "1.52"),
    5: (TrialState.FAILED, None),
    6: (TrialState.COMPLETE, "2.9"),
}
"""By number; the last was measured, but rejected."""
PUBLISHED: Final = (0, 2, 4)
SPACE: Final[Sequence[Mapping[str, Any]]] = (
    {"path": "lora.rank", "words": "4, 8", "choices": ["4", "8"]},
    {"path": "training.learningRate", "words": "0.00001 to 0.01, by factors", "log": True},
)
NEIGHBOURS: Final = (
    f"out-trials/{UID}-other/000/manifest.json",
    f"out-trials/{UID}x/000/manifest.json",
    "out-trials/another-uid/000/adapter_model.safetensors",
    f"out-trials-x/{UID}/000/manifest.json",
    "out-trials/manifest.json",
    f"out/{UID}/000/manifest.json",
    "tunery-checkpoints/team/support-001-more-t-1/step-000010/complete.json",
    "tunery-checkpoints/team/support-001-t-11/step-000010/complete.json",
    "tunery-checkpoints/other/support-001-t-1/step-000010/complete.json",
    "tunery-reports/team/support-001-t-11/data-report.md",
    "tunery-reports/team/support-002-t-2/data-report.md",
)
"""What others have stored, as near as can be to what is removed."""
PICTURES: Final = {"sweep-history.png", "sweep-parallel.png", "sweep-curves.png"}
FILES: Final = PICTURES | {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "answers.jsonl",
    "sweep.json",
    "training_curves.png",
}
"""What lies at the output afterwards, beside the manifest."""
LEFT: Final = (
    f"out-trials/{UID}/005/adapter_model.safetensors",
    f"out-trials/{UID}/006-rejected/manifest.json",
    f"out-trials/{UID}/006-rejected/adapter_model.safetensors",
    f"out-trials/{UID}/002x/manifest.json",
)
"""What trials have left below their folder that is no adapter to keep."""
CHECKPOINTS: Final = (
    "tunery-checkpoints/team/support-001-t-1/step-000010/complete.json",
    "tunery-checkpoints/team/support-001-t-1/step-000010/optimizer.pt",
    "tunery-checkpoints/team/support-005-t-5/step-000020/complete.json",
)
REPORTS: Final = (
    "tunery-reports/team/support-001-t-1/data-report.json",
    "tunery-reports/team/support-001-t-1/data-report.md",
    "tunery-reports/team/support-005-t-5/data-report.md",
)


@dataclass(frozen=True)
class EndedSweep:
    """What a sweep has stored before its end, below a place."""

    place: StorePath
    base: Path
    """The folder of the base model."""
    rows: list[TrialStatus] = field(default_factory=list)

    def publish_trials(self, folder: Path) -> None:
        """Publish the adapters of the complete trials, and put down what others and failed trials have stored."""
        for number, (state, value) in LOSSES.items():
            published = self._publish(folder, number, value or "") if number in PUBLISHED else None
            self.rows.append(_row(number, state, value, published))
        for key in (*NEIGHBOURS, *LEFT, *CHECKPOINTS, *REPORTS):
            self.place.store.put_bytes(self.place.key(key), key.encode())

    def one_more(self, folder: Path, value: str) -> int:
        """Publish the adapter of one more complete trial, of that loss; returns its number."""
        number = len(self.rows)
        self.rows.append(_row(number, TrialState.COMPLETE, value, self._publish(folder, number, value)))
        return number

    def run(self, work: Path, *, secret: Path | None = None, **changes: Any) -> RunSpec:
        """Return what the operator writes into run.json."""
        output = self.place.below("out").uri
        named = {"name": "s3", "path": str(secret), "field": "spec.output.secretRef"}
        sweep = {
            "trials": self.rows,
            "best": BEST,
            "trialsUri": trials_uri(output, UID),
            "seed": 42,
            "sampler": "TPE",
            "space": SPACE,
            "rungs": [0.25, 0.5],
            "endReason": "MaxTrials",
            **changes,
        }
        return RunSpec(
            identity=RunIdentity(kind="LoRASweep", namespace="team", name="support", uid=UID),
            lora_sweep=LoRASweepRun.model_validate(sweep),
            output_uri=output,
            secrets={"output": named} if secret else {},
            work_dir=str(work),
        )

    def stored(self) -> set[str]:
        """Return all that lies below the place, by its name as seen from there."""
        return {self.place.relative(entry) for entry in self.place.store.list(self.place.prefix)}

    def _publish(self, folder: Path, number: int, loss: str) -> tuple[str, str]:
        saved = trained_adapter(
            self.base, LoraConfig(r=4, target_modules=["q_proj"]), folder / f"trial-{number}", seed=number
        )
        (saved / "README.md").write_text("# The trial's own card\n")
        (saved / "training_curves.png").write_bytes(b"\x89PNG of the trial")
        write_answers([Answer("say red", "red red", "blue", "red red")], saved)
        place = self.place.below(f"out-trials/{UID}/{number:03}")
        run = RunIdentity(kind="LoRAJob", namespace="team", name=f"support-{number:03}", uid=f"t-{number}")
        published = publish(saved, Target(place, run), _lineage(self.base, loss))
        return published.uri, published.manifest_sha256


def below(store: Store, prefix: str, base: Path) -> EndedSweep:
    """Return a sweep that stores below a prefix."""
    return EndedSweep(StorePath(store, prefix), base)


def stays(keys: set[str], *numbers: int) -> None:
    """Assert that of the trials these alone are there, each whole, and that nothing of others is gone."""
    trials = {key.split("/")[2] for key in keys if key.startswith(f"out-trials/{UID}/")}
    assert trials == {f"{number:03}" for number in numbers}
    assert set(NEIGHBOURS) <= keys


def _lineage(base: Path, loss: str) -> Lineage:
    return Lineage(
        model=SourceRecord(uri=base.as_uri()),
        served_name=str(base),
        method="LoRA",
        rank=4,
        hyperparameters={"lora.rank": 4},
        seed=1,
        metrics={"evalLoss": float(loss), "baseEvalLoss": 2.031},
        evaluations=[EvaluationRecord(step=20, loss=float(loss))],
    )


def _row(number: int, state: TrialState, value: str | None, published: tuple[str, str] | None) -> TrialStatus:
    losses = {TrialState.COMPLETE: ("1.98", "1.8", "1.7", value), TrialState.PRUNED: ("2.01", "1.99")}.get(state)
    facts: dict[str, Any] = {
        "number": number,
        "name": f"support-{number:03}",
        "uid": f"t-{number}",
        "origin": "TPE",
        "state": state.value,
        "value": value,
        "baseValue": "2.031",
        "parameters": {"lora.rank": "4" if number % 2 else "8", "training.learningRate": f"0.000{number + 1}"},
        "trainableParameters": 4096,
        "steps": 20,
        "gpuSeconds": 1200 + number,
        "evaluations": losses and [{"step": 5 * (at + 1), "loss": loss} for at, loss in enumerate(losses)],
        "why": None if state is TrialState.COMPLETE else f"why trial {number} ended | so",
        "adapter": published and {"uri": published[0], "manifestSha256": published[1]},
    }
    return TrialStatus.model_validate(facts)

"""The diagnosis of one training run: what is watched, by whom it is judged, and what is said of it at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from tunery_api.findings import TRAINING_CHECKS, CheckResult, CheckStatus, FindingStatus
from tunery_api.methods import PREFERENCE_TASKS, PROMPT_LEARNING
from tunery_api.training import DiagnosisAction
from tunery_trainer.data.mask import IGNORED
from tunery_trainer.diagnosis.checks import Ends, Measured, measured_checks
from tunery_trainer.diagnosis.judge import Judge, Subject
from tunery_trainer.diagnosis.paired import Difference
from tunery_trainer.plan.training_plan import TrainingPlan
from tunery_trainer.reporting.progress import ProgressReporter, say
from tunery_trainer.resuming.resume import Resumed
from tunery_trainer.team.team import ALONE, Team
from tunery_trainer.training.diagnosing import DiagnosisCallback, Watched
from tunery_trainer.training.frozen import changed, fingerprints, strangers
from tunery_trainer.training.ground import Ground
from tunery_trainer.training.trl_trainer import AdapterTrainer

_ROWS_LOOKED_AT: Final = 200
"""Of the training rows, for what their answers end with."""


@dataclass(frozen=True)
class Run:
    """What a diagnosis needs to know of a run."""

    plan: TrainingPlan
    ground: Ground
    resumed: Resumed | None
    team: Team = ALONE

    @property
    def before(self) -> float:
        """The held-out loss before training."""
        return self.ground.before["loss"]

    @property
    def held_out(self) -> int:
        """Held-out rows."""
        return len(self.ground.rows.evaluation)


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of a run; its callback goes to the trainer."""

    run: Run
    callback: DiagnosisCallback
    reporter: ProgressReporter
    ends: Ends | None = None
    """What the answers that are trained end with; None where none ends."""
    frozen: Mapping[str, str] = field(default_factory=dict)
    """Digests of what training must not change."""

    def findings(self, history: Sequence[Mapping[str, Any]], last: dict[str, Any]) -> list[FindingStatus] | None:
        """Return what holds of a run with this log and `last` evaluation; None where judging has failed."""
        return self.callback.end(history, last)

    def checks(self, model: PeftModel, after: float, change: Difference | None) -> list[CheckStatus]:
        """Return the checklist at the end; `after` is the held-out loss of what is published.

        `change` is how far that is from before training; None where that cannot be told.
        """
        found = replace(
            self._measured(model, after, change),
            base_changed=changed(model, self.frozen),
            base_compared=len(self.frozen),
            ended=True,
        )
        done = measured_checks(self.run.plan.checklist(self.run.held_out), found)
        self.reporter.checks(done)
        for check in done:
            if self.run.team.leader and check.name in TRAINING_CHECKS and check.result == CheckResult.WARNING:
                say(f"Check      {check.name}: {check.message}")
        return done

    def checks_so_far(self, model: PeftModel, after: float, change: Difference | None) -> list[CheckStatus]:
        """Return the checklist of a run that is stopped now, as `checks`; `after` is NaN where it was not measured.

        Told, too: the few words of the pod that publishes a stopped run have no room for its sentences.
        """
        done = measured_checks(self.run.plan.checklist(self.run.held_out), self._measured(model, after, change))
        self.reporter.checks(done)
        return done

    def _measured(self, model: PeftModel, after: float, change: Difference | None) -> Measured:
        return Measured(
            strangers=strangers(model),
            padding=self.callback.padding,
            memory=self.callback.memory,
            on_gpu=self.run.plan.basis.on_gpu,
            ends=self.ends,
            before=self.run.before,
            after=after,
            change=change,
            ended=False,
        )


def diagnose(run: Run, model: PeftModel, trainer: AdapterTrainer, reporter: ProgressReporter) -> Diagnosis:
    """Return who watches `trainer`; `model` is as before training."""
    plan, resumed = run.plan, run.resumed
    watched = Watched(
        trainer=trainer,
        evaluations=run.ground.evaluations,
        tell=reporter.findings,
        aloud=run.team.leader,
        # Speed and memory differ from process to process, and with them what is found.
        action=plan.basis.spec.diagnosis.action if run.team.leader else DiagnosisAction.WARN,
        on_gpu=plan.basis.on_gpu,
        memory_limit=plan.basis.device.memory_bytes,
    )
    reporter.checks(plan.checklist(run.held_out))
    subject = Subject(
        settings=plan.settings,
        steps=plan.steps,
        points=max(1, plan.steps // max(1, int(trainer.args.logging_steps))),
        base=run.before,
        rows=run.ground.evaluations.before,
        held_out=run.held_out,
        fraction=plan.fraction,
        total=plan.data.rows,
        on_gpu=plan.basis.on_gpu,
        packable=_packable(plan),
        since=resumed.step if resumed and not resumed.own else 0,
    )
    callback = DiagnosisCallback(Judge(subject), watched)
    return Diagnosis(run, callback, reporter, _ends(plan, run.ground.rows.train), fingerprints(model))


def _packable(plan: TrainingPlan) -> bool:
    settings = plan.settings
    alone = settings.task in PREFERENCE_TASKS or settings.training.group_by_length
    return plan.basis.facts.packable and settings.method not in PROMPT_LEARNING and not alone


def _ends(plan: TrainingPlan, rows: Sequence[Mapping[str, Any]]) -> Ends | None:
    """Return what the answers of the first rows end with, and what ends one in serving; None where none ends."""
    tokenizer = plan.basis.tokenizer
    counted = Counter(token for row in islice(rows, _ROWS_LOOKED_AT) for token in _last_taught(row))
    if not counted or plan.data.tokens is None or plan.data.tokens.template == "none":
        return None
    stops = _stops(plan.basis.base.folder, tokenizer)
    stopping = sum(count for token, count in counted.items() if token in stops) / counted.total()
    return Ends(stopping, _text(tokenizer, counted.most_common(1)[0][0]), tuple(_text(tokenizer, one) for one in stops))


def _last_taught(row: Mapping[str, Any]) -> Iterator[int]:
    """Yield the last token that counts of each example of a row that was not cut."""
    start = 0
    for length in row.get("seq_lengths") or [len(row["labels"])]:
        taught = [label for label in row["labels"][start : start + length] if label != IGNORED]
        if taught:
            yield taught[-1]
        start += length


def _stops(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end generation: the model's own, and the tokenizer's."""
    path = Path(folder) / "generation_config.json"
    own = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.exists() else None
    listed: Iterable[Any] = own if isinstance(own, list) else [own]
    return tuple(dict.fromkeys(int(each) for each in (*listed, tokenizer.eos_token_id) if isinstance(each, int)))


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token])) or str(token)

"""The search of a sweep without a cluster: the same decisions as there, from a file in place of the API server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tunery_api.errors import InvalidSpec
from tunery_api.kinds import Kind
from tunery_api.lorajob import PreflightPolicy
from tunery_api.lorasweep import LoRASweepSpec, PrunerSpec, PrunerType, SamplerType
from tunery_api.names import API_VERSION, ORIGIN_ANNOTATION, TRIAL_LABEL, child_name, trials_uri
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_api.runspec import LoRASweepRun, RunSpec
from tunery_api.sweepstatus import EndReason, TrialState, TrialStatus
from tunery_common.errors import TuneryError
from tunery_search.decision import Decision, DecisionContext, decide
from tunery_search.history import IMPORTANCE_FROM, Suggestion, SuggestionReply, final_suggestion, sweep_request
from tunery_search.sampler import SuggestionFailed, suggest
from tunery_search.space import Space, final_spec, read_values, space_of, trial_spec
from tunery_search.summary import best, importance_shown, searched_parameters
from tunery_search.trial_rows import invalid_row, merge_trials, trial_number
from tunery_search.trial_spec import pin_inputs, preflight_policy, resolved_inputs, with_trial_settings
from tunery_search.trials import FINAL_ORIGIN, Trial
from tunery_trainer.local import run_spec_of
from tunery_trainer.sweeping.ledger import Ledger, damaged, read_ledger, write_ledger

_NO_OPTUNA: Final = "spec.sampler.type: TPE needs Optuna, which is not installed for this Python"
_GET_OPTUNA: Final = (
    retry('Install Optuna: pip install "optuna>=5"'),
    recreate("Set sampler.type to Random or Grid", "sampler.type"),
)
_CONTINUE: Final = retry("Keep the sweep's folder, which has its trials")
Body = dict[str, Any]


def as_here(spec: LoRASweepSpec) -> LoRASweepSpec:
    """Return the spec as it is without a cluster: one trial at a time, and nobody who ends one by its progress.

    Raises TuneryError where its sampler is not installed.
    """
    if spec.sampler.type is SamplerType.TPE and find_spec("optuna") is None:
        raise TuneryError(FailureReason.INVALID_SPEC, _NO_OPTUNA, *_GET_OPTUNA)
    alone = {"parallel_trials": 1, "suspend": False, "pruner": PrunerSpec(type=PrunerType.NONE)}
    return spec.model_copy(update=alone)


@dataclass
class Search:
    """A sweep and what is known of it, all of which is on the disk."""

    spec: LoRASweepSpec
    run: RunSpec
    """Of its end; without trials."""
    folder: Path
    ledger: Ledger
    space: Space
    _begun: float = field(default_factory=time.monotonic)
    _before: float = 0.0
    _running: datetime | None = None
    """When the process of the trial that is under way was started."""
    _earlier: float = 0.0
    """How long that trial's processes before it ran."""

    @classmethod
    def of(cls, spec: LoRASweepSpec, run: RunSpec, folder: Path) -> Search:
        """Return the search as it was left; raises TuneryError where what is there is not of this sweep."""
        ledger = read_ledger(folder, run.identity.uid)
        found = cls(spec, run, folder, ledger, space_of(spec), _before=ledger.seconds)
        try:
            best(found.trials)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(folder, error) from error
        return found

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Return every trial, by number."""
        body = self.ledger.under_way
        return merge_trials(
            self.ledger.trials, [self._seen(body)] if body else [], lambda job: read_values(self.space, job)
        )

    def _seen(self, body: Body) -> Body:
        """Return the LoRAJob of the trial that is under way, with what its processes that are over have taken."""
        seconds = self.ledger.under_way_seconds if self._running is None else self._earlier
        taken = {"gpuSeconds": round(seconds * self.spec.template.resources.gpus)} if seconds else {}
        if self._running is None:
            return {**body, "status": {**body["status"], **taken}}
        attempt = {"startTime": self._running.isoformat()}
        return {**body, "status": {**body["status"], **taken, "phase": "Training", "attemptHistory": [attempt]}}

    def next(self) -> Decision:
        """Return what is to be done now, and remember why no more trials are made."""
        now = datetime.now(UTC)
        started = now - timedelta(seconds=self.seconds)
        ledger = self.ledger
        moment = DecisionContext(now, started, ledger.end_reason, forgiven=ledger.forgiven)
        decision = decide(self.spec, self.trials, moment)
        self.note(end_reason=decision.end_reason)
        return decision

    @property
    def seconds(self) -> float:
        """Return how long the sweep ran, before and now."""
        return self._before + time.monotonic() - self._begun

    def note(self, **known: Any) -> None:
        """Take note of fields of the ledger."""
        self.ledger = self.ledger.model_copy(update=known)

    def save(self) -> None:
        """Write down what is known."""
        self.note(seconds=round(self.seconds, 3))
        write_ledger(self.folder, self.ledger)

    # Trials that are made

    def make(self, decision: Decision) -> TrialStatus | None:
        """Make the trial that is due, or remember that there is none left; raises TuneryError.

        Returns the row of one that no LoRAJob can be, as its values do not go together; it has ended with that.
        """
        trials = self.trials
        if decision.final is not None:
            last = final_suggestion(self.spec, trials, decision.final)
            found = [last] if last else []
        else:
            found = list(self._ask(trials, decision.create).suggestions)
        row = None
        if found:
            row = self._begin(self._body(trials, found[0]))
        else:
            self.note(end_reason=EndReason.SPACE_EXHAUSTED)
        self.save()
        return row

    def _begin(self, body: Body) -> TrialStatus | None:
        try:
            run = run_spec_of(manifest_of(body), self.folder, Path(self.run.work_dir))
        except InvalidSpec as error:
            row = invalid_row(body, lambda job: read_values(self.space, job), error)
            self.note(trials=[*self.ledger.trials, row])
            return row
        body["metadata"]["uid"] = run.identity.uid
        self.note(under_way=body)
        return None

    def _ask(self, trials: Sequence[Trial], numbers: Sequence[int]) -> SuggestionReply:
        try:
            return suggest(sweep_request(self.spec, self.space, trials, numbers, self.ledger.forgiven))
        except SuggestionFailed as error:
            raise TuneryError(FailureReason.INTERNAL_ERROR, f"the sampler: {error}", _CONTINUE) from error

    def _body(self, trials: Sequence[Trial], suggestion: Suggestion) -> Body:
        """Return the LoRAJob of a trial, as the operator makes it in a cluster."""
        number, values = suggestion.number, suggestion.values
        final = suggestion.origin == FINAL_ORIGIN
        spec = final_spec(self.spec, values) if final else trial_spec(self.spec, values)
        # What `final` puts on top may change data and memory.
        preflight = PreflightPolicy.REQUIRED if final else preflight_policy(self.spec.preflight, trials, values)
        terms = with_trial_settings(spec, preflight, self.spec.pruner)
        read = self.ledger.trial_inputs
        # Nobody else publishes below the uid of this sweep.
        output = {"uri": f"{self._trials_uri}/{number:03d}", "overwrite": True}
        name = child_name(self.run.identity.name, "final" if final else f"{number:03d}")
        return {
            "metadata": {
                "name": name,
                "labels": {TRIAL_LABEL: f"{number:03d}"},
                "annotations": {ORIGIN_ANNOTATION: suggestion.origin},
            },
            "spec": {**(pin_inputs(terms, read) if read is not None else terms), "output": output},
            "status": {},
        }

    @property
    def _trials_uri(self) -> str:
        return trials_uri(self.run.output_uri.rstrip("/"), self.run.identity.uid)

    # The trial that is under way

    @property
    def under_way(self) -> Body:
        """Return the LoRAJob of the trial that has not ended."""
        assert self.ledger.under_way is not None  # noqa: S101 - whoever asks has seen it
        return self.ledger.under_way

    @property
    def number(self) -> int:
        """Return its number."""
        return trial_number(self.under_way) or 0

    def trains(self, since: datetime | None) -> None:
        """Take note that its process was started, or is over."""
        self._running = since
        self._earlier = self.ledger.under_way_seconds

    def end(self, status: Mapping[str, Any]) -> TrialStatus:
        """Take note of how it ended, and return its row, which never changes again."""
        self._running = None
        number = self.number
        self.under_way["status"] = dict(status)
        self.note(under_way_seconds=0.0)  # what it took in all is in its status
        self.note(trial_inputs=self.ledger.trial_inputs or resolved_inputs(self.under_way))
        row = next(trial.row for trial in self.trials if trial.row.number == number)
        self.note(trials=[*self.ledger.trials, row], under_way=None)
        self.save()
        return row

    # The end

    def found(self, number: int) -> RunSpec:
        """Return the RunSpec of the sweep's end: the trial of that number is published."""
        self._weigh()
        sweep = LoRASweepRun(
            trials=[row.without_advice() for row in self.ledger.trials],
            best=number,
            trials_uri=self._trials_uri,
            keep_adapters=self.spec.keep_adapters,
            overwrite=self.spec.output.overwrite,
            seed=self.spec.seed,
            sampler=self.spec.sampler.type.value,
            space=searched_parameters(self.space.dimensions),
            importance=self.ledger.importance,
            end_reason=self.ledger.end_reason,
        )
        return self.run.model_copy(update={"lora_sweep": sweep})

    def _weigh(self) -> None:
        """Ask what has mattered, where enough is known to say it: nothing hangs on it."""
        complete = sum(row.state == TrialState.COMPLETE for row in self.ledger.trials)
        if complete < IMPORTANCE_FROM or self.ledger.importance:
            return
        try:
            shares = self._ask(self.trials, ()).importance
        except TuneryError:
            return
        self.note(importance=importance_shown(shares) or [])
        self.save()

    def forgive(self) -> None:
        """Record that the trials that have failed so far no longer count against the sweep."""
        self.note(forgiven=max((row.number + 1 for row in self.ledger.trials), default=0))
        if not any(row.value is not None for row in self.ledger.trials):
            # No trial was measured: the data itself may have been corrected.
            self.note(trial_inputs=None)
        self.save()


def manifest_of(body: Body) -> Body:
    """Return the manifest of a trial, as a person would write it."""
    name = {"name": body["metadata"]["name"]}
    return {"apiVersion": API_VERSION, "kind": Kind.LORAJOB.value, "metadata": name, "spec": body["spec"]}
